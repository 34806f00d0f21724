//! What the daemon is doing and what it costs: published snapshots, as they are.

use std::cmp::Reverse;

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    figures::{Figures, gb, round},
};
use crate::vram::{GpuInfo, ResidentModel, Snapshot, ledger::LoraCacheUse};

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelsStatus {
    /// The mode that is loaded; `null` if none is.
    current_mode: Option<String>,
    /// What a request gets that names no mode.
    selected_mode: String,
    /// Jobs that wait.
    queue_size: usize,
    /// Whether nothing is begun until the queue is resumed.
    paused: bool,
    /// Whether jobs cannot be written to disk: nothing is begun or accepted until they can.
    storage_fails: bool,
    /// The job that is being done; `null` if none is.
    running_job: Option<String>,
    /// Why no mode is current, where a switch failed and the mode before it could not be loaded
    /// again either; else `null`.
    degraded: Option<String>,
    vram: VramStatus,
    /// How often a pipeline was loaded.
    loads: u64,
    /// How often the worker process had to be started again.
    worker_restarts: u64,
}

/// Memory of the device that draws: of the GPU, or of the host where there is none.
/// One gb is 2^30 bytes.
#[derive(Debug, Serialize, ToSchema)]
pub struct VramStatus {
    /// The library that computes: `candle` or `libtorch`. Before the worker is up for the first time,
    /// what is wished; here and below.
    #[schema(example = "candle")]
    engine: String,
    /// `cpu`, `cuda:0` or `metal`.
    #[schema(example = "cpu")]
    device: String,
    /// `fp32`, `bf16` or `fp16`.
    #[schema(example = "fp32")]
    precision: String,
    /// What the device is called.
    #[schema(example = "CPU (host memory)")]
    device_name: String,
    total_gb: f64,
    used_gb: f64,
    available_gb: f64,
    #[schema(example = 12.5)]
    usage_percent: f64,
    /// `memory.limit_gb` in modes.yaml; `null` where it is not set.
    limit_gb: Option<f64>,
    /// What the worker process holds in the host's memory.
    worker_resident_gb: f64,
    /// What it holds of the device as the driver (of a host: the kernel) says; `null` where that does
    /// not say it.
    process_gb: Option<f64>,
    /// What it has allocated on the device, as it counts itself: weights and all else.
    allocated_gb: f64,
    /// What its allocator has taken from the device: what is allocated, and what it keeps for later.
    reserved_gb: f64,
    /// The most that was allocated at a time since the last job was begun.
    peak_gb: f64,
    /// All weights, shared ones counted once.
    weights_gb: f64,
    lora_cache: LoraCacheStatus,
    models_loaded: usize,
    /// The active one first, then those that were used last.
    models: Vec<LoadedModel>,
    /// Every GPU of this machine.
    gpus: Vec<Gpu>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct LoadedModel {
    /// The mode that used it last.
    name: String,
    /// Relative to `model_root`.
    model_path: String,
    /// Its weights, shared ones included.
    vram_gb: f64,
    /// Whether the current mode draws with it.
    active: bool,
    /// Whether it stays loaded until it is unloaded by name.
    pinned: bool,
    #[serde(flatten)]
    figures: Figures,
}

/// LoRA files that stay open once they were read.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoraCacheStatus {
    files: u32,
    gb: f64,
    /// How often a LoRA was there already, and how often it was not.
    hits: u64,
    misses: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Gpu {
    /// The driver's number for it.
    index: u32,
    /// What the worker calls it; `null` where it does not see it.
    #[schema(example = "cuda:0")]
    device: Option<String>,
    name: String,
    total_gb: f64,
    used_gb: f64,
    /// Of that, what the worker holds; `null` where the driver does not say.
    worker_gb: Option<f64>,
}

/// What is loaded, what waits, what memory it takes.
#[utoipa::path(get, path = "/api/models/status", tag = "status",
    responses((status = 200, body = ModelsStatus)))]
pub async fn models_status(State(api): State<Api>) -> Json<ModelsStatus> {
    let status = api.dispatcher.status();
    Json(ModelsStatus {
        current_mode: status.current_mode.clone(),
        selected_mode: status.selected_mode.clone(),
        queue_size: status.queue_size,
        paused: status.paused,
        storage_fails: status.storage_fails,
        running_job: status.running.map(|id| id.to_string()),
        degraded: status.degraded.clone(),
        vram: VramStatus::from(&status.vram),
        loads: status.vram.loads.values().sum(),
        worker_restarts: status.worker_restarts,
    })
}

/// The memory of the device and what is in it.
#[utoipa::path(get, path = "/api/vram", tag = "status",
    responses((status = 200, body = VramStatus)))]
pub async fn vram(State(api): State<Api>) -> Json<VramStatus> {
    Json(VramStatus::from(&api.dispatcher.status().vram))
}

/// A word to whoever opens this address in a browser.
#[utoipa::path(get, path = "/", tag = "status",
    responses((status = 200, description = "Where to go from here", content_type = "text/plain")))]
pub async fn welcome() -> impl IntoResponse {
    let text = concat!(
        "diffused ",
        env!("CARGO_PKG_VERSION"),
        " draws images.\n\n",
        "  POST /generate            {\"prompt\": \"a red fox in the snow\"} -> a PNG\n",
        "  POST /superres            an image -> a larger one\n",
        "  GET  /api/modes           what can be asked for\n",
        "  GET  /api/models/status   what is loaded and what waits\n",
        "  GET  /api/events          what happens to the jobs, as it happens\n",
        "  GET  /openapi.json        the whole API\n\n",
        "The README has the rest.\n",
    );
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text)
}

impl From<&Snapshot> for VramStatus {
    fn from(snapshot: &Snapshot) -> Self {
        let Snapshot { computing, total_bytes, used_bytes, models, lora_cache, gpus, .. } =
            snapshot;
        let available_bytes = total_bytes.saturating_sub(*used_bytes);
        let usage = if *total_bytes == 0 { 0.0 } else { *used_bytes as f64 / *total_bytes as f64 };
        let LoraCacheUse { files, bytes, hits, misses } = *lora_cache;
        let model = |model: &ResidentModel| LoadedModel {
            name: model.loaded.mode.clone(),
            model_path: model.loaded.pipeline.checkpoint.name.clone(),
            vram_gb: gb(model.own_bytes + model.shared_bytes),
            active: model.active,
            pinned: model.pinned,
            figures: Figures::of(model, snapshot),
        };
        let mut in_order: Vec<_> = models.iter().collect();
        in_order.sort_by_key(|model| (!model.active, Reverse(model.last_used_unix_ms)));
        Self {
            engine: computing.engine.clone(),
            device: computing.device.clone(),
            precision: computing.precision.clone(),
            device_name: snapshot.device_name.clone(),
            total_gb: gb(*total_bytes),
            used_gb: gb(*used_bytes),
            available_gb: gb(available_bytes),
            usage_percent: round(100.0 * usage, 10.0),
            limit_gb: snapshot.limit_bytes.map(gb),
            worker_resident_gb: gb(snapshot.worker_resident_bytes),
            process_gb: snapshot.process_bytes.map(gb),
            allocated_gb: gb(snapshot.allocated_bytes),
            reserved_gb: gb(snapshot.reserved_bytes),
            peak_gb: gb(snapshot.peak_bytes),
            weights_gb: gb(snapshot.weights_bytes),
            lora_cache: LoraCacheStatus { files, gb: gb(bytes), hits, misses },
            models_loaded: models.len(),
            models: in_order.into_iter().map(model).collect(),
            gpus: gpus.iter().map(Gpu::from).collect(),
        }
    }
}

impl From<&GpuInfo> for Gpu {
    fn from(gpu: &GpuInfo) -> Self {
        let GpuInfo { index, cuda, name, total_bytes, used_bytes, worker_bytes } = gpu;
        Self {
            index: *index,
            device: cuda.map(|number| format!("cuda:{number}")),
            name: name.clone(),
            total_gb: gb(*total_bytes),
            used_gb: gb(*used_bytes),
            worker_gb: worker_bytes.map(gb),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::*;
    use crate::{
        modes::{CheckpointRef, LoraReport, PipelineSpec},
        vram::{
            Loaded,
            ledger::{Component, Computing, PipelineId},
        },
    };

    fn model() -> ResidentModel {
        let lora = LoraReport {
            name: "ink.safetensors".into(),
            strength: 0.5,
            merged: 0,
            unmatched: 3,
            skipped: Some("no key matches".into()),
        };
        let unet = Component {
            name: "unet".into(),
            stored: "fp16".into(),
            dtype: "fp16".into(),
            file_bytes: 1 << 30,
            bytes: 2 << 30,
        };
        let checkpoint =
            CheckpointRef { name: "sd15/x.safetensors".into(), path: PathBuf::from("/secret/x") };
        ResidentModel {
            loaded: Loaded {
                id: PipelineId(1),
                mode: "sd15".into(),
                pipeline: PipelineSpec::of(checkpoint),
                family: "SD1.x".into(),
                components: vec![unet],
                estimated_bytes: 2 << 30,
                measured_bytes: 2_130_000_000,
                load_ms: 1200,
                merge_ms: 30,
                loras: vec![lora],
            },
            active: true,
            pinned: false,
            own_bytes: 3 << 29,
            shared_bytes: 1 << 29,
            activation_peak_bytes: None,
            last_used_unix_ms: 7,
        }
    }

    #[test]
    fn memory_in_gb() {
        let card = GpuInfo {
            index: 3,
            cuda: Some(1),
            name: "a card".into(),
            total_bytes: 16 << 30,
            used_bytes: 5 << 30,
            worker_bytes: None,
        };
        let snapshot = Snapshot {
            computing: Computing {
                engine: "libtorch".into(),
                device: "cuda:1".into(),
                precision: "fp16".into(),
                name: None,
            },
            device_name: "a card".into(),
            total_bytes: 16 << 30,
            used_bytes: 5 << 30,
            limit_bytes: Some(8 << 30),
            worker_resident_bytes: 3 << 29,
            process_bytes: Some(4 << 30),
            allocated_bytes: 5 << 29,
            reserved_bytes: 3 << 30,
            peak_bytes: 11 << 28,
            weights_bytes: 2 << 30,
            lora_cache: LoraCacheUse { files: 1, bytes: 1 << 29, hits: 2, misses: 1 },
            models: vec![model()],
            loads: BTreeMap::from([("sd15".into(), 2)]),
            gpus: vec![card],
            ..Snapshot::default()
        };
        let json = serde_json::to_value(VramStatus::from(&snapshot)).unwrap();
        let models = serde_json::json!([{
            "name": "sd15", "model_path": "sd15/x.safetensors", "vram_gb": 2.0, "active": true,
            "pinned": false, "family": "SD1.x", "own_gb": 1.5, "shared_gb": 0.5,
            "estimated_gb": 2.0, "measured_gb": 1.984, "file_gb": 1.0,
            "components": [
                {"name": "unet", "dtype": "fp16", "stored": "fp16", "gb": 2.0, "file_gb": 1.0},
            ],
            "activation_peak_gb": null, "load_ms": 1200, "merge_ms": 30, "loads": 2, "hits": 0,
            "last_used_unix_ms": 7,
            "loras": [{
                "path": "ink.safetensors", "strength": 0.5, "merged": 0, "unmatched": 3,
                "skipped": "no key matches",
            }],
        }]);
        let gpus = serde_json::json!([{
            "index": 3, "device": "cuda:1", "name": "a card", "total_gb": 16.0, "used_gb": 5.0,
            "worker_gb": null,
        }]);
        let expected = serde_json::json!({
            "engine": "libtorch", "device": "cuda:1", "precision": "fp16", "device_name": "a card",
            "total_gb": 16.0, "used_gb": 5.0, "available_gb": 11.0,
            "usage_percent": 31.3, "limit_gb": 8.0, "worker_resident_gb": 1.5, "process_gb": 4.0,
            "allocated_gb": 2.5, "reserved_gb": 3.0, "peak_gb": 2.75, "weights_gb": 2.0,
            "lora_cache": {"files": 1, "gb": 0.5, "hits": 2, "misses": 1},
            "models_loaded": 1,
            "models": models,
            "gpus": gpus,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_device_of_unknown_size_is_not_divided_by() {
        let snapshot = Snapshot { used_bytes: 7, ..Snapshot::default() };
        assert_eq!(VramStatus::from(&snapshot).usage_percent, 0.0);
    }
}
