//! The unit of work: plain data that serializes, so that any process which has the files can do it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{modes::PipelineSpec, request::GenerateRequest};

/// Names a job everywhere: in the API, in the log and in every message to the worker.
/// Time-ordered (UUID version 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(uuid::Uuid);

impl JobId {
    #[expect(clippy::new_without_default, reason = "each one is different")]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Job {
    /// Draw an image.
    Generation { request: GenerateRequest, pipeline: PipelineSpec },
    /// Make a mode's pipeline the loaded one.
    ModeSwitch { mode: String, pipeline: PipelineSpec, asked_by: SwitchOrigin },
    /// Run a handler that was registered under that name.
    Custom { name: String, args: serde_json::Value },
}

/// Why a mode switch is in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchOrigin {
    /// Somebody asked for the switch itself: requests that name no mode follow it.
    User,
    /// It stands before a generation that needs it, and leaves with it.
    Generation,
    /// The configuration was changed: what is loaded is not what its mode says any more.
    Reload,
}

/// Where a job is on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    Queued,
    /// Its pipeline is being loaded.
    Loading,
    Running {
        step: u32,
        steps: u32,
    },
    Done,
    Failed {
        reason: String,
    },
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen to the job.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Done | Self::Failed { .. } | Self::Cancelled => true,
            Self::Queued | Self::Loading | Self::Running { .. } => false,
        }
    }
}
