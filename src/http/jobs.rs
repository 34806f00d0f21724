//! `/api/jobs`: what becomes of jobs.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    budget::TEXTS_IN_WORK,
    custom,
    guards::Caller,
    job_info::JobInfo,
    problem::{Kind, Problem, X_JOB_ID},
};
use crate::{
    dispatcher::JobView,
    job::{JobId, JobState},
    request::{FieldError, InvalidFields},
};

/// What is known of a job. Finished ones are forgotten after a while.
#[utoipa::path(get, path = "/api/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "From X-Job-Id or Location")),
    responses(
        (status = 200, body = JobInfo),
        (status = 404, description = "No such job"),
    ))]
pub async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<JobInfo>, Problem> {
    Ok(Json(JobInfo::from(find(&api, &id)?)))
}

/// The job of that name.
pub fn find(api: &Api, id: &str) -> Result<JobView, Problem> {
    let view = id.parse().ok().and_then(|id: JobId| api.dispatcher.job(id));
    view.ok_or_else(|| {
        Problem::new(Kind::UnknownJob, "there is no such job, or it is long finished")
    })
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only those in one of these states, separated by commas.
    #[param(example = "queued,running")]
    state: Option<String>,
    /// Only those of that mode.
    mode: Option<String>,
    /// Only those with that tag.
    tag: Option<String>,
    /// What `next_cursor` of the page before says.
    cursor: Option<String>,
    /// How many at most, 1 to 200 [50].
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
}

/// A page ends before it takes more, however many jobs are asked for.
const MAX_PAGE_BYTES: u64 = 4 << 20;

#[derive(Debug, Serialize, ToSchema)]
pub struct JobList {
    /// The newest first; fewer than `limit` where they have long texts.
    jobs: Vec<JobInfo>,
    /// For the next page; `null` where this is the last one.
    next_cursor: Option<String>,
}

/// The jobs that wait, run, or have ended lately.
#[utoipa::path(get, path = "/api/jobs", tag = "jobs", params(ListQuery),
    responses(
        (status = 200, body = JobList),
        (status = 400, description = "A parameter is repeated"),
        (status = 422, description = "Invalid parameters"),
        (status = 503, description = "Too much is listed or sent; see Retry-After"),
    ))]
pub async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let Wanted { states, cursor, limit } = Wanted::read(&query)?;
    let ListQuery { mode, tag, .. } = query;
    let wanted = move |view: &JobView| {
        (states.is_empty() || states.iter().any(|state| *state == view.state.name()))
            && mode.as_deref().is_none_or(|mode| view.job.mode() == Some(mode))
            && tag.as_ref().is_none_or(|tag| view.terms.tags.contains(tag))
    };
    // It may be megabytes of texts to copy and to write; how many, only the page itself tells. Its
    // place lasts until the answer has its own.
    let making = TEXTS_IN_WORK.take(2 * MAX_PAGE_BYTES).await?;
    let listing = spawn_blocking(move || {
        let (views, has_more) = api.dispatcher.jobs(cursor, (limit, MAX_PAGE_BYTES), wanted);
        let next_cursor = views.last().filter(|_| has_more).map(|view| view.id.to_string());
        let jobs = views.into_iter().map(JobInfo::from).collect();
        (Json(JobList { jobs, next_cursor }).into_response(), making)
    });
    let (listed, _making) = listing.await.map_err(Problem::internal)?;
    Ok(listed)
}

/// A query that was understood.
struct Wanted {
    states: Vec<&'static str>,
    cursor: Option<JobId>,
    limit: usize,
}

impl Wanted {
    const MAX: usize = 200;

    fn read(query: &ListQuery) -> Result<Self, InvalidFields> {
        let mut errors = Vec::new();
        let states = query.state.as_deref().unwrap_or_default();
        let mut wanted = Self { states: Vec::new(), cursor: None, limit: 50 };
        for name in states.split(',').filter(|name| !name.is_empty()) {
            match JobState::NAMES.into_iter().find(|state| *state == name.trim()) {
                Some(state) => wanted.states.push(state),
                None => {
                    let all = JobState::NAMES.join(", ");
                    let detail = format!("there is no state '{name}' (there are: {all})");
                    errors.push(FieldError::of("state", detail));
                }
            }
        }
        if let Some(cursor) = &query.cursor {
            wanted.cursor = cursor.parse().ok();
            if wanted.cursor.is_none() {
                errors.push(FieldError::of("cursor", "is none that next_cursor has given"));
            }
        }
        if let Some(limit) = &query.limit {
            match limit.parse() {
                Ok(limit @ 1..=Self::MAX) => wanted.limit = limit,
                _ => {
                    let detail = format!("is no number from 1 to {}", Self::MAX);
                    errors.push(FieldError::of("limit", detail));
                }
            }
        }
        if errors.is_empty() { Ok(wanted) } else { Err(InvalidFields(errors)) }
    }
}

/// Cancels a job: one that waits leaves the queue, one that runs stops at its next step. A worker
/// that does not stop it within `--stop-grace` is replaced. The admin key, if one is configured, is
/// needed for loads, unloads, mode switches and commands.
#[utoipa::path(delete, path = "/api/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "From X-Job-Id or Location"),
           ("X-Admin-Key" = Option<String>, Header, description =
        "Where one is set: for a job that needs it to be submitted")),
    responses(
        (status = 200, description = "Cancelled", body = JobInfo),
        (status = 202, description = "It will be at its next step, tile or tensor", body = JobInfo),
        (status = 401, description = "Without the admin key"),
        (status = 404, description = "No such job"),
        (status = 409, description = "It has ended, or has failed and loads the mode before it again"),
    ))]
pub async fn cancel(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let view = find(&api, &id)?;
    if custom::needs_admin(&view.job, &api) {
        caller.require_admin(&api)?;
    }
    if !api.dispatcher.cancel(view.id).await {
        let state = find(&api, &id)?.state.name();
        let detail = format!("the job is {state}: it has ended, or cannot be stopped");
        return Err(Problem::new(Kind::Conflict, detail));
    }
    let view = find(&api, &id)?;
    let status = if view.state.is_terminal() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(JobInfo::from(view))).into_response())
}

/// 202, with where to follow the job.
pub fn accepted(id: JobId, body: impl Serialize) -> Response {
    let headers = [(header::LOCATION, format!("/api/jobs/{id}")), (X_JOB_ID, id.to_string())];
    (StatusCode::ACCEPTED, headers, Json(body)).into_response()
}
