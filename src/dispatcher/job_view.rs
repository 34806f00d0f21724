//! A job as it is shown to whoever asks.

use serde_json::Value;

use crate::{
    job::{Job, JobId, JobState, Terms},
    queue::Entry,
    worker::protocol::DrawnReport,
};

/// A job and how it stands. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    pub id: JobId,
    pub job: Job,
    pub terms: Terms,
    pub state: JobState,
    /// How many times it was begun: 2 if the worker died in the first attempt.
    pub attempts: u32,
    /// While it waits: how many jobs come before it, the running one included.
    pub jobs_before: usize,
    pub created_unix_ms: u64,
    pub started_unix_ms: Option<u64>,
    pub finished_unix_ms: Option<u64>,
    /// What a custom job returned. (An image goes to its caller and is not kept.)
    pub result: Option<Value>,
    /// How long that is as JSON.
    pub result_bytes: u64,
    /// How the images of a generation came about, once they are drawn.
    pub report: Option<DrawnReport>,
    /// How many of its images are kept.
    pub images: u32,
    /// When its drawing began, of the last attempt: behind all loading.
    pub drawing_unix_ms: Option<u64>,
    /// While it waits: when it will be begun, by what jobs took lately; `None` while nothing has
    /// been measured.
    pub estimated_start_unix_ms: Option<u64>,
}

impl JobView {
    /// About how much it takes in memory.
    pub fn bytes(&self) -> u64 {
        const WITHOUT_TEXTS: u64 = 1 << 10;
        let request = match &self.job {
            Job::Generation { request, .. } => {
                request.prompt.len() + request.negative_prompt.as_ref().map_or(0, String::len)
            }
            Job::Upscale { parameters, .. } => parameters.len(),
            Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => {
                0
            }
        };
        let reason = if let JobState::Failed { reason } = &self.state { reason.len() } else { 0 };
        WITHOUT_TEXTS + self.result_bytes + (self.terms.prompt.len() + request + reason) as u64
    }

    /// Whether it is neither waiting nor at its end.
    pub fn is_begun(&self) -> bool {
        self.state != JobState::Queued && !self.state.is_terminal()
    }

    /// One that waits.
    pub fn of(entry: Entry) -> Self {
        Self {
            created_unix_ms: entry.arrived_ms,
            id: entry.id,
            job: entry.job,
            terms: entry.terms,
            state: JobState::Queued,
            attempts: 0,
            jobs_before: 0,
            started_unix_ms: None,
            finished_unix_ms: None,
            result: None,
            result_bytes: 0,
            report: None,
            images: 0,
            drawing_unix_ms: None,
            estimated_start_unix_ms: None,
        }
    }
}
