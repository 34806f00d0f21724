//! What became of a job, or why it was not accepted.

use std::{fs::File, sync::Arc};

use serde_json::Value;

use crate::{
    job::JobState, modes::did_you_mean, request::RequestField, worker::protocol::DrawnImages,
};

/// What became of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Images(Arc<DrawnImages>),
    Switched,
    Loaded,
    /// The modes whose pipelines are not loaded any more.
    Unloaded(Vec<String>),
    Custom(Value),
    Failed(JobFailure),
    Cancelled,
}

impl Outcome {
    /// How the job stands with it.
    pub fn state(&self) -> JobState {
        match self {
            Self::Images(_)
            | Self::Switched
            | Self::Loaded
            | Self::Unloaded(_)
            | Self::Custom(_) => JobState::Done,
            Self::Failed(failure) => JobState::Failed { reason: failure.message.clone() },
            Self::Cancelled => JobState::Cancelled,
        }
    }
}

/// An image that is kept.
pub enum KeptImage {
    /// A file, its parameters embedded.
    Png(File),
    /// With the others of its job.
    Drawn(Arc<DrawnImages>),
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JobFailure {
    pub kind: FailureKind,
    /// May be shown to clients: it names files as the user does, and quotes no driver.
    pub message: String,
}

impl JobFailure {
    pub(super) fn shutting_down() -> Self {
        Self { kind: FailureKind::ShuttingDown, message: "the daemon is shutting down".to_owned() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The checkpoint cannot be used as it is on disk.
    UnusableModel,
    /// Nor can the LoRA of that place in the pipeline's list, or it does not fit the checkpoint.
    UnusableLora { index: usize },
    /// The mode's model cannot do what the request asks for; it can do others.
    InvalidRequest { field: RequestField },
    /// By itself it is larger than the memory that there is, or than what others leave of it, who
    /// stay.
    NoRoom,
    /// Memory ran out while it was worked on, and again when all had left that may.
    OutOfMemory,
    /// A switch has waited as long as it may.
    TimedOut,
    /// It had not ended by the time that it was wanted by.
    DeadlinePassed,
    /// It was not begun within the time that its caller waits.
    NotAdmitted,
    /// Drawing took longer than it may.
    DrawingTimedOut,
    /// The worker died, or would not start, twice while it was this job's turn.
    WorkerDied,
    /// A custom job's handler failed or panicked.
    Handler,
    /// The daemon was shut down before the job was done.
    ShuttingDown,
    /// Anything that should not have happened.
    Internal,
}

/// Why a job was not accepted; nothing was queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the queue is full ({limit} jobs wait); try again in {retry_after_secs} s")]
    QueueFull {
        limit: usize,
        /// When a place may be free: the mean time that a job took lately, at least 1.
        retry_after_secs: u64,
    },
    /// As `QueueFull`, of what the waiting jobs' callers sent along.
    #[error("{what} take {limit_bytes} bytes; try again in {retry_after_secs} s")]
    TooMuchToHold { what: &'static str, limit_bytes: usize, retry_after_secs: u64 },
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// It could not be written down, or what came before could not be: the disk is full.
    #[error("the job could not be written to disk")]
    NotWritten,
    /// A user's switch to what will be loaded anyway when its turn comes.
    #[error("the mode is already loaded")]
    AlreadyLoaded,
    #[error(
        "there is no custom job '{name}'{} (there are: {})",
        did_you_mean(.nearest.as_deref()),
        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
    )]
    UnknownHandler { name: String, nearest: Option<String>, known: Vec<String> },
}
