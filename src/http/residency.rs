//! `POST /api/models/load`, `/api/models/unload` and `/api/modes/switch`: what is loaded, and what
//! is drawn with. Each is a job that waits in line like all others; who wants to, waits for its end.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Api,
    body::JsonBody,
    guards::{Admin, WithFile},
    jobs::accepted,
    models::{ModeModel, Residency},
    problem::{Problem, X_JOB_ID},
};
use crate::{
    dispatcher::{Outcome, Status, SubmitError},
    job::{Job, JobId, SwitchOrigin, Terms, Unload},
    modes::{Modes, UnknownMode},
    request::{Fields, InvalidFields},
};

/// The longest that a switch can be told to wait: a day.
const MAX_TIMEOUT_SECS: u32 = 86_400;

#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct LoadRequest {
    /// A name from `GET /api/modes`.
    mode: String,
    /// Whether the answer comes when it is loaded; `false` if it is not named.
    wait: Option<bool>,
}

/// What is loaded, as in `GET /api/models`.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoadAnswer {
    status: LoadStatus,
    #[serde(flatten)]
    model: ModeModel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoadStatus {
    Loaded,
    AlreadyLoaded,
}

/// A job that waits.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueuedAnswer {
    #[schema(example = "queued")]
    status: &'static str,
    #[schema(example = "0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11")]
    job_id: String,
    message: String,
}

/// Loads a mode behind the work that is waiting, beside the current one, which stays current.
/// Hanging up does not cancel it.
#[utoipa::path(post, path = "/api/models/load", tag = "models", request_body = LoadRequest,
    params(("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    responses(
        (status = 200, description = "Loaded, or loaded already", body = LoadAnswer),
        (status = 202, description = "Queued; Location has the job", body = QueuedAnswer),
        (status = 400, description = "The body is not JSON"),
        (status = 401, description = "Without the admin key"),
        (status = 404, description = "No such mode"),
        (status = 409, description = "The job was cancelled"),
        (status = 415, description = "Not application/json"),
        (status = 422, description = "Invalid fields, or no room for the model beside what stays"),
        (status = 429, description = "The queue is full; see Retry-After"),
        (status = 500, description = "The model is unusable, or the worker died twice"),
        (status = 503, description = "Out of memory, or shutting down; see Retry-After"),
    ))]
pub async fn load(
    _: Admin,
    State(api): State<Api>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let mut fields = Fields::read(&body, &["mode", "wait"])?;
    let (name, wait) = (fields.text("mode"), fields.flag("wait"));
    fields.require("mode");
    let (name, wait) = fields.finish((name.unwrap_or_default(), wait.unwrap_or(false)))?;
    let modes = api.config.current();
    let mode = modes.get(&name)?;
    let answer = |status, now: &Status| LoadAnswer { status, model: ModeModel::of(mode, now) };
    let now = api.dispatcher.status();
    // What an unloading takes that waits is as good as gone.
    let stays = !api.dispatcher.awaits(|job| matches!(job, Job::Unload { .. }));
    if stays && Residency::of_mode(mode, &now) != Residency::NotLoaded {
        return Ok(Json(answer(LoadStatus::AlreadyLoaded, &now)).into_response());
    }
    let job = Job::Load { mode: name.clone(), pipeline: mode.pipeline.clone(), warm_up: false };
    match submit(&api, job, wait).await? {
        Submitted::Queued(id) => {
            let message = format!("mode '{name}' is loaded when the jobs before it are done");
            Ok(queued(id, message))
        }
        Submitted::Done(id, _) => {
            Ok(done(id, answer(LoadStatus::Loaded, &api.dispatcher.status())))
        }
    }
}

/// Exactly one of the two says what.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct UnloadRequest {
    /// A mode: its pipeline goes, and what its requests' LoRAs made of it.
    mode: Option<String>,
    /// `true`: everything goes, pinned modes too.
    all: Option<bool>,
    /// Whether the answer comes when it is unloaded; `false` if it is not named.
    wait: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct UnloadAnswer {
    #[schema(example = "unloaded")]
    status: &'static str,
    /// The modes whose pipelines have left; none if nothing was loaded.
    modes: Vec<String>,
}

/// Gives back the memory of a mode, or all of it, behind the work that is waiting: nothing leaves
/// under a job that needs it. Hanging up does not cancel it.
#[utoipa::path(post, path = "/api/models/unload", tag = "models", request_body = UnloadRequest,
    params(("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    responses(
        (status = 200, description = "Unloaded", body = UnloadAnswer),
        (status = 202, description = "Queued; Location has the job", body = QueuedAnswer),
        (status = 400, description = "The body is not JSON"),
        (status = 401, description = "Without the admin key"),
        (status = 404, description = "No such mode"),
        (status = 409, description = "The job was cancelled"),
        (status = 415, description = "Not application/json"),
        (status = 422, description = "Invalid fields: one of 'mode' and 'all' is needed, not both"),
        (status = 429, description = "The queue is full; see Retry-After"),
        (status = 503, description = "Shutting down; see Retry-After"),
    ))]
pub async fn unload(
    _: Admin,
    State(api): State<Api>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (name, wait) = unload_fields(&body)?;
    let (what, whose) = match name {
        None => (Unload::All, "everything".to_owned()),
        Some(name) => {
            let what = what_to_unload(&api.config.current(), &api.dispatcher.status(), &name)?;
            (what, format!("mode '{name}'"))
        }
    };
    match submit(&api, Job::Unload { what }, wait).await? {
        Submitted::Queued(id) => {
            let message = format!("{whose} is unloaded when the jobs before it are done");
            Ok(queued(id, message))
        }
        Submitted::Done(id, outcome) => {
            let modes = match outcome {
                Outcome::Unloaded(modes) => modes,
                _ => Vec::new(),
            };
            Ok(done(id, UnloadAnswer { status: "unloaded", modes }))
        }
    }
}

/// The mode, or none for all; and whether to wait.
fn unload_fields(body: &Value) -> Result<(Option<String>, bool), InvalidFields> {
    let mut fields = Fields::read(body, &["mode", "all", "wait"])?;
    let name = fields.text("mode");
    let (all, wait) = (fields.flag("all").unwrap_or(false), fields.flag("wait").unwrap_or(false));
    match (fields.get("mode").is_some(), all) {
        (true, true) => fields.error_here("'mode' and 'all' are both named: one is needed"),
        (false, false) => {
            fields.error_here("one of 'mode' (a name) and 'all' (true) is needed");
        }
        (true, false) | (false, true) => {}
    }
    fields.finish((name, wait))
}

/// A mode that is in the file, or one that was and is still loaded.
fn what_to_unload(modes: &Modes, status: &Status, name: &str) -> Result<Unload, UnknownMode> {
    let pipeline = match modes.get(name) {
        Ok(mode) => &mode.pipeline,
        Err(unknown) => {
            let mut loaded = status.vram.models.iter().map(|model| &model.loaded);
            &loaded.find(|loaded| loaded.mode == name).ok_or(unknown)?.pipeline
        }
    };
    Ok(Unload::Mode { mode: name.to_owned(), pipeline: pipeline.clone() })
}

#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct SwitchRequest {
    /// A name from `GET /api/modes`.
    mode: String,
    /// Whether the answer comes when it is done; `false` if it is not named.
    wait: Option<bool>,
    /// How long it may wait for the jobs before it, 1 to 86400; if they take longer, nothing is
    /// switched. Not named: as long as they take.
    #[schema(minimum = 1, maximum = 86_400)]
    timeout_secs: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SwitchAnswer {
    status: SwitchStatus,
    /// What was current when this was asked; `null` if nothing was.
    from_mode: Option<String>,
    to_mode: String,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SwitchStatus {
    Queued,
    AlreadyLoaded,
    Switched,
}

/// Makes a mode the current one, behind the work that is waiting; requests that name no mode follow
/// it. Hanging up does not cancel it.
#[utoipa::path(post, path = "/api/modes/switch", tag = "modes", request_body = SwitchRequest,
    params(("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    responses(
        (status = 200, description = "Switched, or loaded already", body = SwitchAnswer),
        (status = 202, description = "Queued; Location has the job", body = SwitchAnswer),
        (status = 400, description = "The body is not JSON"),
        (status = 401, description = "Without the admin key"),
        (status = 404, description = "No such mode"),
        (status = 409, description = "The job was cancelled; or there is one mode only, described \
                                      by the environment"),
        (status = 415, description = "Not application/json"),
        (status = 422, description = "Invalid fields, or no room for the model"),
        (status = 429, description = "The queue is full; see Retry-After"),
        (status = 500, description = "The model is unusable, or the worker died twice"),
        (status = 503, description = "Out of memory, or shutting down; see Retry-After"),
        (status = 504, description = "It waited for timeout_secs; nothing was switched"),
    ))]
pub async fn switch(
    _: Admin,
    _: WithFile,
    State(api): State<Api>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let mut fields = Fields::read(&body, &["mode", "wait", "timeout_secs"])?;
    let (name, wait) = (fields.text("mode"), fields.flag("wait"));
    let timeout_secs = fields.whole_number("timeout_secs", 1..=MAX_TIMEOUT_SECS);
    fields.require("mode");
    let (name, wait) = fields.finish((name.unwrap_or_default(), wait.unwrap_or(false)))?;
    let modes = api.config.current();
    let pipeline = modes.get(&name)?.pipeline.clone();
    let from_mode = api.dispatcher.status().current_mode.clone();
    let asked_by = SwitchOrigin::User;
    let job = Job::ModeSwitch { mode: name.clone(), pipeline, asked_by, timeout_secs };
    let answer = |status, message: String| SwitchAnswer {
        status,
        from_mode,
        to_mode: name.clone(),
        message,
    };
    match submit(&api, job, wait).await {
        Ok(Submitted::Queued(id)) => {
            let message = format!("mode '{name}' is loaded when the jobs before it are done");
            Ok(accepted(id, answer(SwitchStatus::Queued, message)))
        }
        Ok(Submitted::Done(id, _)) => {
            let message = format!("mode '{name}' is the current one");
            Ok(done(id, answer(SwitchStatus::Switched, message)))
        }
        Err(NotDone::Refused(SubmitError::AlreadyLoaded)) => {
            let message = format!("mode '{name}' is loaded already");
            Ok(Json(answer(SwitchStatus::AlreadyLoaded, message)).into_response())
        }
        Err(error) => Err(error.into()),
    }
}

/// How far a job is when its caller is answered.
enum Submitted {
    Queued(JobId),
    Done(JobId, Outcome),
}

enum NotDone {
    Refused(SubmitError),
    Ended(Problem),
}

impl From<NotDone> for Problem {
    fn from(not_done: NotDone) -> Self {
        match not_done {
            NotDone::Refused(error) => error.into(),
            NotDone::Ended(problem) => problem,
        }
    }
}

async fn submit(api: &Api, job: Job, wait: bool) -> Result<Submitted, NotDone> {
    let terms = Terms { durable: !wait, ..Terms::default() };
    let ticket = api.dispatcher.submit_with(job, terms).await.map_err(NotDone::Refused)?;
    let id = ticket.id();
    if !wait {
        return Ok(Submitted::Queued(ticket.detach()));
    }
    // In a task of its own: others may profit from what is loaded, so hanging up cancels nothing.
    let ended = tokio::spawn(ticket.outcome()).await;
    match ended.map_err(|error| NotDone::Ended(Problem::internal(error)))? {
        Outcome::Failed(failure) => Err(NotDone::Ended(Problem::of_job(failure, id))),
        Outcome::Cancelled => Err(NotDone::Ended(Problem::cancelled(id))),
        outcome => Ok(Submitted::Done(id, outcome)),
    }
}

fn queued(id: JobId, message: String) -> Response {
    accepted(id, QueuedAnswer { status: "queued", job_id: id.to_string(), message })
}

/// 200, with the job that did it.
fn done(id: JobId, body: impl Serialize) -> Response {
    ([(X_JOB_ID, id.to_string())], Json(body)).into_response()
}
