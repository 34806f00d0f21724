//! A job as clients see it.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::loras::LoraInfo;
use crate::{
    dispatcher::JobView,
    job::{Job, JobKind, JobState},
    request::{GenerateRequest, Source, Superres},
    webhook::{Delivery, Event},
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
    /// Of a mode switch: how long it may wait for the jobs before it; of a generation: how long
    /// drawing may take; if that was said.
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
    created_unix_ms: u64,
    started_unix_ms: Option<u64>,
    finished_unix_ms: Option<u64>,
    /// What a custom job returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// The greater one comes first.
    priority: i8,
    /// The caller's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    /// How many images there are at `/api/jobs/{id}/image/0` and on; absent where none are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<u32>,
    /// Of an upscale, and of a generation whose images are made larger.
    #[serde(skip_serializing_if = "Option::is_none")]
    superres: Option<SuperresInfo>,
    /// How long that took, once it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    superres_ms: Option<u64>,
    /// By when it is to have ended, if that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_unix_ms: Option<u64>,
    /// While queued: when it will be begun, by what jobs took lately; `null` while nothing has been
    /// measured, or the queue is paused.
    estimated_start_unix_ms: Option<u64>,
    /// Of a generation that is done: where its time went.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

/// Milliseconds by stage. What loading its mode took in a switch of its own is among `queued_ms`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Timings {
    /// From when it was accepted until it was begun.
    queued_ms: u64,
    /// Until its drawing began: what was loaded in its own turn, and attempts that failed.
    loading_ms: u64,
    /// The prompt, and an image to draw over.
    encode_ms: u64,
    denoise_ms: u64,
    decode_ms: u64,
    /// From when it was accepted until it was done.
    total_ms: u64,
}

impl Timings {
    fn of(view: &JobView) -> Option<Self> {
        let report = view.report.as_ref()?;
        let (started, finished) = (view.started_unix_ms?, view.finished_unix_ms?);
        Some(Self {
            queued_ms: started.saturating_sub(view.created_unix_ms),
            loading_ms: view.drawing_unix_ms?.saturating_sub(started),
            encode_ms: report.encode_ms,
            denoise_ms: report.denoise_ms,
            decode_ms: report.decode_ms,
            total_ms: finished.saturating_sub(view.created_unix_ms),
        })
    }
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

/// How images are made larger.
#[derive(Debug, Serialize, ToSchema)]
pub struct SuperresInfo {
    /// Each side becomes 2, 4 or 8 times as long: 1, 2 or 3.
    magnitude: u32,
    /// As modes.yaml names it, or `lanczos`.
    model: String,
}

impl From<&Superres> for SuperresInfo {
    fn from(superres: &Superres) -> Self {
        Self { magnitude: superres.magnitude, model: superres.model_name().to_owned() }
    }
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

/// What a job's webhook is told once it has ended: what `GET /api/jobs/{id}` answers then.
pub fn delivery(view: JobView) -> Option<Delivery> {
    let (job, event) = (view.id, Event::of(&view.state)?);
    let webhook = view.terms.webhook.clone()?;
    let body = serde_json::to_vec(&JobInfo::from(view)).ok()?;
    Some(Delivery { job, event, webhook, body })
}

impl StateName {
    pub fn of(state: &JobState) -> Self {
        match state {
            JobState::Queued => Self::Queued,
            JobState::Loading { .. } => Self::Loading,
            JobState::Running { .. } => Self::Running,
            JobState::Done => Self::Done,
            JobState::Failed { .. } => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<JobView> for JobInfo {
    fn from(view: JobView) -> Self {
        let timings = Timings::of(&view);
        let (kind, mode) = (view.job.kind(), view.job.mode().map(str::to_owned));
        let (mut request, mut loras, mut name, mut timeout_secs) = (None, None, None, None);
        let mut superres = None;
        let superres_ms = view.report.and_then(|report| report.superres).map(|it| it.superres_ms);
        // No arm takes the pipeline along: it holds paths on disk.
        match view.job {
            Job::Generation { request: asked, pipeline } => {
                superres = asked.superres.as_ref().map(SuperresInfo::from);
                request = Some(RequestInfo::from(asked));
                loras = Some(pipeline.loras.iter().map(LoraInfo::from).collect());
                timeout_secs = view.terms.timeout_secs;
            }
            Job::ModeSwitch { timeout_secs: limit, .. } => timeout_secs = limit,
            Job::Load { .. } | Job::Unload { .. } => {}
            Job::Custom { name: of, args: _ } => name = Some(of),
            Job::Upscale { superres: of, .. } => superres = Some(SuperresInfo::from(&of)),
        }
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
            created_unix_ms: view.created_unix_ms,
            started_unix_ms: view.started_unix_ms,
            finished_unix_ms: view.finished_unix_ms,
            result: view.result,
            priority: view.terms.priority,
            tags: view.terms.tags,
            images: (view.images > 0).then_some(view.images),
            superres,
            superres_ms,
            deadline_unix_ms: view.terms.deadline_unix_ms,
            estimated_start_unix_ms: view.estimated_start_unix_ms,
            timings,
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
        // It holds a path on disk, and stands beside the request.
        request.superres = None;
        let source = request.source.take();
        let source = source.map(|Source { image: _, mask, denoise_strength }| SourceInfo {
            denoise_strength,
            mask: mask.is_some(),
        });
        Self { request, source }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    #[schema(example = "0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11")]
    pub id: String,
    pub state: StateName,
}
