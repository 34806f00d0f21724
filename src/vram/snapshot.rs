//! What is shown of memory: plain data.

use std::collections::BTreeMap;

use super::ledger::{Component, Computing, LoraCacheUse, PipelineId};
use crate::modes::{LoraReport, PipelineSpec};

/// What is known of a pipeline when it has been loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub id: PipelineId,
    pub mode: String,
    pub pipeline: PipelineSpec,
    pub family: String,
    pub components: Vec<Component>,
    pub estimated_bytes: u64,
    /// What the worker's allocations grew by.
    pub measured_bytes: u64,
    pub load_ms: u64,
    pub merge_ms: u64,
    pub loras: Vec<LoraReport>,
}

/// A pipeline that is loaded, as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidentModel {
    pub loaded: Loaded,
    /// Whether the current mode draws with it.
    pub active: bool,
    pub pinned: bool,
    pub own_bytes: u64,
    pub shared_bytes: u64,
    /// What its last job took besides all weights, at most.
    pub activation_peak_bytes: Option<u64>,
    pub last_used_unix_ms: u64,
}

/// Everything there is to say about memory at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// What computes; before the first worker is up, what was wished.
    pub computing: Computing,
    /// What the device is called, as it is shown to people.
    pub device_name: String,
    /// The device's memory: of a host, what this process may use of it.
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// `memory.limit_gb`, where it is set.
    pub limit_bytes: Option<u64>,
    /// What the worker process has in RAM, 0 while it does not live.
    pub worker_resident_bytes: u64,
    /// What the driver says that the worker has of the device; of a host what it has in RAM.
    pub process_bytes: Option<u64>,
    /// What it has allocated on the device, as it counts itself: weights and all else.
    pub allocated_bytes: u64,
    /// What its allocator has taken from the device, and the most that was allocated at a time since
    /// the last job was begun.
    pub reserved_bytes: u64,
    pub peak_bytes: u64,
    /// All weights, shared ones counted once.
    pub weights_bytes: u64,
    pub lora_cache: LoraCacheUse,
    pub models: Vec<ResidentModel>,
    /// By mode, since the daemon's start: how often its pipeline was loaded, and how often it was
    /// there already.
    pub loads: BTreeMap<String, u64>,
    pub hits: BTreeMap<String, u64>,
    pub evictions: BTreeMap<Reason, u64>,
    /// The NVIDIA cards in this machine, whether or not the worker computes on one.
    pub gpus: Vec<GpuInfo>,
}

/// Why a pipeline left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Another one needed its memory.
    Memory,
    /// There were more than `max_models`, or of requests' own more than `max_request_pipelines`.
    MaxModels,
    /// A job ran out of memory.
    OutOfMemory,
    /// Nobody had used it for a while.
    Idle,
    /// No mode has it any more.
    Unwanted,
    /// Somebody asked for it.
    Asked,
}

impl Reason {
    pub const ALL: [Self; 6] =
        [Self::Memory, Self::MaxModels, Self::OutOfMemory, Self::Idle, Self::Unwanted, Self::Asked];

    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::MaxModels => "max_models",
            Self::OutOfMemory => "out_of_memory",
            Self::Idle => "idle",
            Self::Unwanted => "unwanted",
            Self::Asked => "asked",
        }
    }
}

/// A card as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuInfo {
    /// The driver's number for it.
    pub index: u32,
    /// CUDA's in the worker, where it is shown there.
    pub cuda: Option<u32>,
    pub name: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Of that, what the worker process holds; `None` where the driver does not say.
    pub worker_bytes: Option<u64>,
}
