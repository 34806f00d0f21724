//! What the user declared, once it is known to be valid: plain data, no files, no YAML.
//!
//! [`Modes`] is an immutable snapshot. A reload builds a new one; work that was accepted under
//! the old one keeps it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

mod compute;
mod custom;
mod diff;
mod http;
mod jobs;
mod memory;
mod names;
mod order;
mod size;
mod time;
mod webhooks;

pub use compute::{Built, Compute, ComputeWish, Device, EngineChoice, InvalidDevice, Precision};
pub use custom::{BUILT_IN_JOBS, CustomCommand, is_built_in};
pub use diff::ModesDiff;
pub use http::{Authority, HostName, Http, WebOrigin};
pub use jobs::{Jobs, Retention};
pub use memory::{
    IdleUnload, InvalidIdleUnload, Keep, LoraCacheLimits, Memory, bytes_of_gb, gb_of_bytes, gib,
};
pub use names::{
    Eviction, LongPrompts, ModelKind, OnLoraError, Prediction, PromptSyntax, SchedulerId,
    Scheduling, Spacing, Switch, UnknownName, Watch, did_you_mean, nearest_name,
};
pub use order::Order;
pub use size::{Dimensions, InvalidSize, Size};
pub use time::{InvalidTime, InvalidTimeout, Time, Timeout};
pub use webhooks::{Secret, Webhooks};

/// Everything that `modes.yaml` says, resolved. `default_mode` is always a key of `modes`.
#[derive(Debug, Clone, PartialEq)]
pub struct Modes {
    pub default_mode: String,
    pub model_root: PathBuf,
    /// Where LoRAs are looked for that a request names.
    pub lora_root: PathBuf,
    /// The largest image that a request may ask for.
    pub max_pixels: u64,
    pub watch: Watch,
    pub memory: Memory,
    pub order: Order,
    pub jobs: Jobs,
    pub modes: BTreeMap<String, Arc<Mode>>,
    /// Commands that custom jobs run, by the jobs' names.
    pub custom_jobs: BTreeMap<String, CustomCommand>,
    pub webhooks: Webhooks,
    pub http: Http,
    /// What makes images larger where a request asks for that; `None`: Lanczos' filter.
    pub superres: Option<CheckpointRef>,
    /// How long drawing may take.
    pub timeout: Timeout,
    /// What computes, and on what.
    pub compute: Compute,
}

impl Modes {
    /// The mode of that name, or the nearest name there is.
    pub fn get(&self, name: &str) -> Result<&Arc<Mode>, UnknownMode> {
        self.modes.get(name).ok_or_else(|| UnknownMode {
            name: name.to_owned(),
            nearest: nearest_name(name, self.modes.keys().map(String::as_str)),
        })
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("there is no mode '{name}'{}", did_you_mean(.nearest.as_deref()))]
pub struct UnknownMode {
    pub name: String,
    pub nearest: Option<String>,
}

/// One named way to draw: a checkpoint, its LoRAs and the defaults of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mode {
    pub name: String,
    pub pipeline: PipelineSpec,
    pub defaults: Defaults,
    /// Its pipeline leaves memory only when it is asked to by name.
    pub pinned: bool,
    /// Its pipeline is loaded at the start.
    pub preload: bool,
    /// Passed through to clients as it was written.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// How long drawing with it may take.
    #[serde(default)]
    pub timeout: Timeout,
}

/// What must be loaded before an image can be drawn; two modes with equal specs share a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelineSpec {
    pub checkpoint: CheckpointRef,
    /// Drawn with instead of the checkpoint's own autoencoder.
    pub vae: Option<CheckpointRef>,
    /// Merged in this order.
    pub loras: Vec<LoraRef>,
    pub on_lora_error: OnLoraError,
    /// What the UNet predicts; `None`: what the checkpoint says or its family does.
    pub prediction: Option<Prediction>,
    /// Another number once one of the files has been replaced; 0 where nobody has looked.
    #[serde(default)]
    pub stamp: u64,
}

impl PipelineSpec {
    /// A checkpoint as it is.
    pub fn of(checkpoint: CheckpointRef) -> Self {
        Self {
            checkpoint,
            vae: None,
            loras: Vec::new(),
            on_lora_error: OnLoraError::Fail,
            prediction: None,
            stamp: 0,
        }
    }
}

/// A checkpoint on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// As the user wrote it, relative to `model_root`; this is what clients are shown.
    pub name: String,
    pub path: PathBuf,
}

/// A LoRA on disk and how strongly it is applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraRef {
    /// As the user wrote it, relative to `lora_root`; this is what clients are shown.
    pub name: String,
    pub path: PathBuf,
    pub strength: f32,
    pub adapter_name: Option<String>,
}

impl LoraRef {
    /// Strengths go from minus this to this.
    pub const MAX_STRENGTH: f32 = 100.0;
}

/// How a request names a LoRA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraName {
    /// The file, relative to `lora_root`.
    Path(String),
    /// The file's name without its extension, in whichever folder below `lora_root`; or the
    /// `adapter_name` of one that a mode has.
    Name(String),
}

/// What became of a LoRA when its pipeline was loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraReport {
    /// As in [`LoraRef::name`].
    pub name: String,
    pub strength: f32,
    /// Modules of the checkpoint that it changes.
    pub merged: usize,
    /// Modules that it has something for and the checkpoint does not have.
    pub unmatched: usize,
    /// Why it was left out, where the mode allows that.
    pub skipped: Option<String>,
}

/// What a file or folder of models is, as far as its headers say.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspected {
    pub kind: ModelKind,
    /// Of a checkpoint its family; of a LoRA what it was made for, if that can be told.
    pub family: Option<String>,
    /// How most of its bytes are stored: fp32, fp16, bf16, fp8 …
    pub precision: Option<String>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// Looks at a file: what the user calls it, and where it is.
pub type Inspector = fn(&str, &std::path::Path) -> Inspected;

/// What a mode fills in where a request is silent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    pub size: Size,
    pub steps: u32,
    pub guidance_scale: f32,
    /// How much of the contrast that guidance adds is taken back, 0 to 1 (Lin et al., 2023,
    /// arXiv:2305.08891, section 3.4).
    pub guidance_rescale: f32,
    /// `None`: the checkpoint's own.
    pub scheduler: Option<SchedulerId>,
    /// `None`: the checkpoint's own.
    pub timestep_spacing: Option<Spacing>,
    pub negative_prompt: Option<String>,
    /// Layers of the text encoder to skip from its end, counted as diffusers does:
    /// 0 is the last layer, 1 the one before it (which other tools call "clip skip 2").
    pub clip_skip: u32,
    pub long_prompts: LongPrompts,
    pub prompt_syntax: PromptSyntax,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            size: Size { width: 512, height: 512 },
            steps: 4,
            guidance_scale: 1.0,
            guidance_rescale: 0.0,
            scheduler: None,
            timestep_spacing: None,
            negative_prompt: None,
            clip_skip: 0,
            long_prompts: LongPrompts::Cut,
            prompt_syntax: PromptSyntax::Plain,
        }
    }
}

/// The bounds that a mode's defaults and a caller's own values keep to alike.
impl Defaults {
    pub const MAX_STEPS: u32 = 999;
    pub const MAX_GUIDANCE_SCALE: f32 = 100.0;
    pub const MAX_CLIP_SKIP: u32 = 12;
}
