//! The unit of work: plain data that serializes, so that any process which has the files can do it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod json_text;

pub use json_text::JsonText;

use crate::{
    modes::PipelineSpec,
    request::{EncodedImage, GenerateRequest, Overrides, Superres, Webhook},
};

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

    /// When the id was made, in milliseconds since the Unix epoch.
    pub fn unix_ms(self) -> Option<u64> {
        let (secs, nanos) = self.0.get_timestamp()?.to_unix();
        Some(1000 * secs + u64::from(nanos) / 1_000_000)
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

/// What is agreed on for a job, besides what is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// -10 to 10; the greater one comes first.
    #[serde(default)]
    pub priority: i8,
    /// The caller's own, to find it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// A generation's prompt as its caller wrote it, tags and all.
    #[serde(default)]
    pub prompt: String,
    /// Its caller was told that it is queued, and does not wait for it: it outlives the connection,
    /// and its images are kept for whoever asks for them later.
    #[serde(default)]
    pub durable: bool,
    /// What its caller would repeat to be given this job again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<IdempotencyKey>,
    /// Who is told that it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// By then it has ended, or it fails; in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_unix_ms: Option<u64>,
    /// How long it may wait until it is begun. (Its caller waits for it.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission_secs: Option<u32>,
    /// How long an attempt to draw may take, from the prompt to the last image; not what is loaded
    /// for it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u32>,
    /// Whether the measured pace of its kind limits it as well (`timeout: auto`).
    #[serde(default)]
    pub timeout_by_pace: bool,
    /// Whose it is: a hash of the caller's key; `None`: nobody's in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// A caller's name for a request, and what stands for the request itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    pub key: String,
    /// Equal requests have the same.
    pub fingerprint: String,
}

impl Terms {
    pub const PRIORITIES: std::ops::RangeInclusive<i8> = Overrides::PRIORITIES;

    /// Those of the switch that the job brings along: it stands before it, and nobody has asked for it.
    pub fn of_its_switch(&self) -> Self {
        Self { priority: self.priority, ..Self::default() }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Job {
    /// Draw an image.
    Generation { request: GenerateRequest, pipeline: PipelineSpec },
    /// Make a mode the current one, and have its pipeline loaded.
    ModeSwitch {
        mode: String,
        pipeline: PipelineSpec,
        asked_by: SwitchOrigin,
        /// How long it may wait for the jobs before it; `None`: as long as they take.
        #[serde(default)]
        timeout_secs: Option<u32>,
    },
    /// Have a mode's pipeline loaded, beside the current one's.
    Load {
        mode: String,
        pipeline: PipelineSpec,
        /// And draw one step with it.
        #[serde(default)]
        warm_up: bool,
    },
    /// Give memory back.
    Unload { what: Unload },
    /// Run a handler that was registered under that name.
    Custom { name: String, args: JsonText },
    /// Make an image larger.
    Upscale {
        image: EncodedImage,
        superres: Superres,
        /// What the image says of how it was drawn, for the new one to say so, too.
        #[serde(default)]
        parameters: String,
    },
}

/// What an unloading takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unload {
    All,
    /// A mode's pipeline, and what its requests' LoRAs made of it.
    Mode {
        mode: String,
        pipeline: PipelineSpec,
    },
}

/// The kinds of jobs, without what they carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Generation,
    ModeSwitch,
    Load,
    Unload,
    Custom,
    Upscale,
}

impl JobKind {
    pub const ALL: [Self; 6] =
        [Self::Generation, Self::ModeSwitch, Self::Load, Self::Unload, Self::Custom, Self::Upscale];

    pub fn name(self) -> &'static str {
        match self {
            Self::Generation => "generation",
            Self::ModeSwitch => "mode_switch",
            Self::Load => "load",
            Self::Unload => "unload",
            Self::Custom => "custom",
            Self::Upscale => "upscale",
        }
    }
}

impl Job {
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Generation { .. } => JobKind::Generation,
            Self::ModeSwitch { .. } => JobKind::ModeSwitch,
            Self::Load { .. } => JobKind::Load,
            Self::Unload { .. } => JobKind::Unload,
            Self::Custom { .. } => JobKind::Custom,
            Self::Upscale { .. } => JobKind::Upscale,
        }
    }

    /// The same without its images and arguments: all there is to say once it has ended.
    pub fn forget_inputs(&mut self) {
        match self {
            Self::Generation { request, .. } => request.forget_images(),
            Self::Upscale { image, .. } => *image = EncodedImage::default(),
            Self::Custom { args, .. } => *args = JsonText::default(),
            Self::ModeSwitch { .. } | Self::Load { .. } | Self::Unload { .. } => {}
        }
    }

    /// The mode that it is about, where it is about one.
    pub fn mode(&self) -> Option<&str> {
        match self {
            Self::Generation { request, .. } => Some(&request.mode),
            Self::ModeSwitch { mode, .. } | Self::Load { mode, .. } => Some(mode),
            Self::Unload { what: Unload::Mode { mode, .. } } => Some(mode),
            Self::Unload { what: Unload::All } | Self::Custom { .. } | Self::Upscale { .. } => None,
        }
    }
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
    /// Its pipeline is being loaded, and so much of it has been read.
    Loading {
        percent: u8,
    },
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
    pub const NAMES: [&str; 6] = ["queued", "loading", "running", "done", "failed", "cancelled"];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Loading { .. } => "loading",
            Self::Running { .. } => "running",
            Self::Done => "done",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen to the job.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Done | Self::Failed { .. } | Self::Cancelled => true,
            Self::Queued | Self::Loading { .. } | Self::Running { .. } => false,
        }
    }
}
