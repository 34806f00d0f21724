//! What a loaded pipeline costs, as clients see it. One gb is 2^30 bytes.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    modes::{LoraReport, gib},
    vram::{Loaded, ResidentModel, Snapshot, ledger},
};

/// What a pipeline that is loaded holds, and what that took.
#[derive(Debug, Serialize, ToSchema)]
pub struct Figures {
    #[schema(example = "SD1.x")]
    family: String,
    /// Weights that it alone holds.
    own_gb: f64,
    /// Weights that it holds together with others: they stay when it leaves.
    shared_gb: f64,
    /// All its weights, as was thought before they were read.
    estimated_gb: f64,
    /// What the worker's allocations grew by, and what was there already of it.
    measured_gb: f64,
    /// Its weights as they are stored.
    file_gb: f64,
    components: Vec<ComponentInfo>,
    /// What its last job took besides all weights, at most; `null` before there was one.
    activation_peak_gb: Option<f64>,
    load_ms: u64,
    /// Of that, what merging LoRAs took.
    merge_ms: u64,
    /// How often the mode's pipeline was loaded since the daemon's start.
    loads: u64,
    /// How often a job found it loaded.
    hits: u64,
    last_used_unix_ms: u64,
    /// What became of its LoRAs.
    loras: Vec<MergedLora>,
}

/// One of a pipeline's networks.
#[derive(Debug, Serialize, ToSchema)]
pub struct ComponentInfo {
    #[schema(example = "unet")]
    name: String,
    /// What it computes in.
    #[schema(example = "fp32")]
    dtype: String,
    /// How most of it is stored.
    #[schema(example = "fp16")]
    stored: String,
    /// As it is held in memory.
    gb: f64,
    file_gb: f64,
}

/// A LoRA and what became of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct MergedLora {
    /// Relative to `lora_root`.
    path: String,
    strength: f32,
    /// Modules of the model that it changes.
    merged: usize,
    /// Modules that it has something for and the model does not have.
    unmatched: usize,
    /// Why it was left out; `null` if it was not.
    skipped: Option<String>,
}

impl Figures {
    /// Those of one model; `snapshot` is the one that it is in.
    pub fn of(model: &ResidentModel, snapshot: &Snapshot) -> Self {
        let ResidentModel {
            loaded,
            active: _,
            pinned: _,
            own_bytes,
            shared_bytes,
            activation_peak_bytes,
            last_used_unix_ms,
        } = model;
        let Loaded { mode, family, components, estimated_bytes, measured_bytes, loras, .. } =
            loaded;
        let count = |of: &std::collections::BTreeMap<String, u64>| *of.get(mode).unwrap_or(&0);
        Self {
            family: family.clone(),
            own_gb: gb(*own_bytes),
            shared_gb: gb(*shared_bytes),
            estimated_gb: gb(*estimated_bytes),
            measured_gb: gb(*measured_bytes),
            file_gb: gb(components.iter().map(|component| component.file_bytes).sum()),
            components: components.iter().map(ComponentInfo::from).collect(),
            activation_peak_gb: activation_peak_bytes.map(gb),
            load_ms: loaded.load_ms,
            merge_ms: loaded.merge_ms,
            loads: count(&snapshot.loads),
            hits: count(&snapshot.hits),
            last_used_unix_ms: *last_used_unix_ms,
            loras: loras.iter().map(MergedLora::from).collect(),
        }
    }
}

impl From<&ledger::Component> for ComponentInfo {
    fn from(component: &ledger::Component) -> Self {
        let ledger::Component { name, stored, dtype, file_bytes, bytes } = component;
        Self {
            name: name.clone(),
            dtype: dtype.clone(),
            stored: stored.clone(),
            gb: gb(*bytes),
            file_gb: gb(*file_bytes),
        }
    }
}

impl From<&LoraReport> for MergedLora {
    fn from(lora: &LoraReport) -> Self {
        let LoraReport { name, strength, merged, unmatched, skipped } = lora;
        Self {
            path: name.clone(),
            strength: *strength,
            merged: *merged,
            unmatched: *unmatched,
            skipped: skipped.clone(),
        }
    }
}

/// Bytes in units of 2^30, three decimals.
pub fn gb(bytes: u64) -> f64 {
    round(gib(bytes), 1000.0)
}

pub fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
