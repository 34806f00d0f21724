//! What the worker says of its memory: plain data, the figures that all else is derived from.

use serde::{Deserialize, Serialize};

/// Names a loaded pipeline, in the messages to the worker and here; never given twice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct PipelineId(pub u64);

/// Weights of one component that the very same pipelines hold together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// `unet`, `vae`, `text_encoder` …
    pub component: String,
    /// Sorted; one alone owns them, several share them.
    pub users: Vec<PipelineId>,
    pub bytes: u64,
}

/// One of a pipeline's networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    pub name: String,
    /// How most of it is stored in the file: fp32, fp16, bf16, fp8.
    pub stored: String,
    /// What it computes in: fp32, bf16 or fp16.
    #[serde(default)]
    pub dtype: String,
    pub file_bytes: u64,
    /// As it is held in memory.
    pub bytes: u64,
}

/// What computes, as the worker says it when it is up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Computing {
    /// The library: `candle` or `libtorch`.
    pub engine: String,
    /// `cpu`, `cuda:0` or `metal`.
    pub device: String,
    /// How the denoiser's numbers are stored: `fp32`, `bf16` or `fp16`.
    pub precision: String,
    /// What its maker calls the device, where the engine knows it.
    #[serde(default)]
    pub name: Option<String>,
}

/// What the device's allocator says, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceMemory {
    pub allocated: u64,
    /// What it has taken from the device: what is allocated, and what it keeps for later.
    pub reserved: u64,
    /// The most that was allocated at a time since the last job was begun.
    pub peak: u64,
}

/// Everything that the worker holds, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Held {
    pub pipelines: Vec<PipelineId>,
    pub segments: Vec<Segment>,
    /// All that its process has allocated on the device: weights, tables, what a library keeps.
    pub allocated_bytes: u64,
    /// As in [`DeviceMemory`], here and below.
    #[serde(default)]
    pub reserved_bytes: u64,
    #[serde(default)]
    pub peak_bytes: u64,
    pub lora_cache: LoraCacheUse,
    /// Weights of the upscaler; they are no pipeline's.
    #[serde(default)]
    pub upscaler_bytes: u64,
}

/// Opened LoRA files that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoraCacheUse {
    pub files: u32,
    pub bytes: u64,
    pub hits: u64,
    pub misses: u64,
}

/// What a pipeline would be, before anything of it is read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Estimate {
    pub components: Vec<Component>,
    /// All that would be held, the new pipeline among the users.
    pub segments: Vec<Segment>,
    /// What reading takes beside the weights, at most.
    pub working_bytes: u64,
    /// What the worker's process has allocated besides weights.
    pub other_bytes: u64,
}

impl Estimate {
    /// The pipeline's weights, shared ones included.
    pub fn weights_bytes(&self) -> u64 {
        self.components.iter().map(|component| component.bytes).sum()
    }
}

impl Held {
    /// All weights, each counted once.
    pub fn weights_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum::<u64>() + self.upscaler_bytes
    }
}

/// What a pipeline holds: alone, and together with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shares {
    pub own_bytes: u64,
    pub shared_bytes: u64,
}

/// A pipeline's part in what is held.
pub fn shares(segments: &[Segment], id: PipelineId) -> Shares {
    let mut shares = Shares::default();
    for segment in segments.iter().filter(|segment| segment.users.contains(&id)) {
        match segment.users.len() {
            1 => shares.own_bytes += segment.bytes,
            _ => shares.shared_bytes += segment.bytes,
        }
    }
    shares
}
