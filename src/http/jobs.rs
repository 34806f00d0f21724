//! `/api/jobs`: what becomes of a job; jobs of one's own.

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Api,
    body::JsonBody,
    loras::LoraInfo,
    problem::{Kind, Problem, X_JOB_ID},
};
use crate::{
    dispatcher::JobView,
    job::{Job, JobId, JobState, Unload},
    modes::{did_you_mean, nearest_name},
    request::{Fields, GenerateRequest, Source},
};

/// A job and where it is on its way. Times are in milliseconds since 1970.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobInfo {
    #[schema(example = "0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11")]
    id: String,
    #[serde(rename = "type")]
    kind: JobKind,
    #[serde(flatten)]
    place: Place,
    /// Of a generation, a mode switch, a load, or the unloading of one mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    /// Of a mode switch: how long it may wait for the jobs before it, if that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_secs: Option<u32>,
    /// Of a generation: what is drawn, all defaults filled in.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestInfo>,
    /// Of a generation: the mode's LoRAs and the request's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    loras: Option<Vec<LoraInfo>>,
    /// Of a custom job.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// How often it was begun: 2 if the worker died under it once.
    attempts: u32,
    /// -10 to 10; the greater one comes first.
    priority: i8,
    created_unix_ms: u64,
    started_unix_ms: Option<u64>,
    finished_unix_ms: Option<u64>,
    /// What a custom job returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

/// Where a job is on its way.
#[derive(Debug, Serialize, ToSchema)]
pub struct Place {
    state: StateName,
    /// While running: the denoising steps that are done, and how many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<u32>,
    /// While loading: how much of it has been read.
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    /// While queued: how many jobs come before it, the running one included.
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs_before: Option<usize>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A request, but for the bytes of its images.
#[derive(Debug, Serialize, ToSchema)]
pub struct RequestInfo {
    #[serde(flatten)]
    request: GenerateRequest,
    /// That an image is drawn over.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceInfo>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SourceInfo {
    denoise_strength: f32,
    /// Whether there is a mask.
    mask: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Generation,
    ModeSwitch,
    Load,
    Unload,
    Custom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    Queued,
    Loading,
    Running,
    Done,
    Failed,
    Cancelled,
}

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
    let view = id.parse().ok().and_then(|id: JobId| api.dispatcher.job(id));
    let unknown = || Problem::new(Kind::UnknownJob, "there is no such job, or it is long finished");
    view.map(|view| Json(view.into())).ok_or_else(unknown)
}

impl From<JobView> for JobInfo {
    fn from(view: JobView) -> Self {
        // No arm takes the pipeline along: it holds paths on disk.
        let (mut mode, mut request, mut loras, mut name) = (None, None, None, None);
        let mut timeout_secs = None;
        let kind = match view.job {
            Job::Generation { request: asked, pipeline } => {
                mode = Some(asked.mode.clone());
                request = Some(RequestInfo::from(asked));
                loras = Some(pipeline.loras.iter().map(LoraInfo::from).collect());
                JobKind::Generation
            }
            Job::ModeSwitch { mode: to, timeout_secs: limit, .. } => {
                (mode, timeout_secs) = (Some(to), limit);
                JobKind::ModeSwitch
            }
            Job::Load { mode: of, pipeline: _ } => {
                mode = Some(of);
                JobKind::Load
            }
            Job::Unload { what: Unload::All } => JobKind::Unload,
            Job::Unload { what: Unload::Mode { mode: of, pipeline: _ } } => {
                mode = Some(of);
                JobKind::Unload
            }
            Job::Custom { name: of, args: _ } => {
                name = Some(of);
                JobKind::Custom
            }
        };
        Self {
            id: view.id.to_string(),
            kind,
            place: Place::of(view.state, view.jobs_before),
            mode,
            timeout_secs,
            request,
            loras,
            name,
            attempts: view.attempts,
            priority: view.terms.priority,
            created_unix_ms: view.created_unix_ms,
            started_unix_ms: view.started_unix_ms,
            finished_unix_ms: view.finished_unix_ms,
            result: view.result,
        }
    }
}

impl Place {
    fn of(state: JobState, jobs_before: usize) -> Self {
        let at = |state| Self {
            state,
            step: None,
            steps: None,
            percent: None,
            jobs_before: None,
            reason: None,
        };
        match state {
            JobState::Queued => Self { jobs_before: Some(jobs_before), ..at(StateName::Queued) },
            JobState::Loading { percent } => {
                Self { percent: Some(percent), ..at(StateName::Loading) }
            }
            JobState::Running { step, steps } => {
                Self { step: Some(step), steps: Some(steps), ..at(StateName::Running) }
            }
            JobState::Done => at(StateName::Done),
            JobState::Failed { reason } => Self { reason: Some(reason), ..at(StateName::Failed) },
            JobState::Cancelled => at(StateName::Cancelled),
        }
    }
}

impl From<GenerateRequest> for RequestInfo {
    fn from(mut request: GenerateRequest) -> Self {
        let source = request.source.take();
        let source = source.map(|Source { image: _, mask, denoise_strength }| SourceInfo {
            denoise_strength,
            mask: mask.is_some(),
        });
        Self { request, source }
    }
}

#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct CustomRequest {
    /// The name that the handler was registered under.
    name: String,
    /// Anything; the handler knows what to do with it.
    args: Option<Value>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    #[schema(example = "0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11")]
    id: String,
    state: StateName,
}

/// Queues a job for a handler that this daemon was built with.
#[utoipa::path(post, path = "/api/jobs/custom", tag = "jobs", request_body = CustomRequest,
    responses(
        (status = 202, description = "Queued; Location has the job", body = Accepted),
        (status = 400, description = "The body is not JSON"),
        (status = 404, description = "No such handler"),
        (status = 422, description = "Invalid fields"),
        (status = 429, description = "The queue is full; see Retry-After"),
        (status = 503, description = "Shutting down"),
    ))]
pub async fn submit_custom(
    State(api): State<Api>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let mut fields = Fields::read(&body, &["name", "args"])?;
    let name = fields.text("name");
    fields.require("name");
    let args = fields.get("args").cloned().unwrap_or_default();
    let name = fields.finish(name)?.unwrap_or_default();
    let known = api.dispatcher.custom_names();
    if !known.contains(&name) {
        return Err(unknown_handler(&name, known));
    }
    let id = api.dispatcher.submit(Job::Custom { name, args }).await?.detach();
    Ok(accepted(id, Accepted { id: id.to_string(), state: StateName::Queued }))
}

/// 202, with where to follow the job.
pub fn accepted(id: JobId, body: impl Serialize) -> Response {
    let headers = [(header::LOCATION, format!("/api/jobs/{id}")), (X_JOB_ID, id.to_string())];
    (StatusCode::ACCEPTED, headers, Json(body)).into_response()
}

fn unknown_handler(name: &str, mut known: Vec<String>) -> Problem {
    known.sort();
    let nearest = nearest_name(name, known.iter().map(String::as_str));
    let hint = did_you_mean(nearest.as_deref());
    let list = if known.is_empty() { "none is registered".into() } else { known.join(", ") };
    let detail = format!("there is no custom job '{name}'{hint} (there are: {list})");
    Problem::new(Kind::UnknownHandler, detail)
}
