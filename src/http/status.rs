//! What the daemon is doing and what it costs: published snapshots, as they are.

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use crate::{modes::LoraReport, vram::Snapshot};

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelsStatus {
    /// The mode that is loaded; `null` if none is.
    current_mode: Option<String>,
    /// What a request gets that names no mode.
    selected_mode: String,
    /// Jobs that wait.
    queue_size: usize,
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
    #[schema(example = "cpu")]
    device: String,
    total_gb: f64,
    used_gb: f64,
    available_gb: f64,
    #[schema(example = 12.5)]
    usage_percent: f64,
    /// What the worker process holds in the host's memory.
    worker_resident_gb: f64,
    models_loaded: usize,
    models: Vec<LoadedModel>,
    /// Every GPU of this machine.
    gpus: Vec<Gpu>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct LoadedModel {
    /// The mode that it was loaded for.
    name: String,
    /// Relative to `model_root`.
    model_path: String,
    vram_gb: f64,
    loras: Vec<MergedLora>,
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

#[derive(Debug, Serialize, ToSchema)]
pub struct Gpu {
    index: u32,
    name: String,
    total_gb: f64,
    used_gb: f64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`: the daemon answers.
    status: &'static str,
    version: &'static str,
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

/// Whether the daemon answers; says nothing about models.
#[utoipa::path(get, path = "/health", tag = "status", responses((status = 200, body = Health)))]
pub async fn health() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
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
        "  GET  /api/modes           what can be asked for\n",
        "  GET  /api/models/status   what is loaded and what waits\n",
        "  GET  /openapi.json        the whole API\n\n",
        "The README has the rest.\n",
    );
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text)
}

impl From<&Snapshot> for VramStatus {
    fn from(snapshot: &Snapshot) -> Self {
        let Snapshot {
            device, total_bytes, used_bytes, worker_resident_bytes, models, gpus, ..
        } = snapshot;
        let available_bytes = total_bytes.saturating_sub(*used_bytes);
        let usage = if *total_bytes == 0 { 0.0 } else { *used_bytes as f64 / *total_bytes as f64 };
        let models: Vec<_> = models
            .iter()
            .map(|model| LoadedModel {
                name: model.loaded.mode.clone(),
                model_path: model.loaded.pipeline.checkpoint.name.clone(),
                vram_gb: gb(model.own_bytes + model.shared_bytes),
                loras: model.loaded.loras.iter().map(MergedLora::from).collect(),
            })
            .collect();
        let gpu = |gpu: &crate::vram::GpuInfo| Gpu {
            index: gpu.index,
            name: gpu.name.clone(),
            total_gb: gb(gpu.total_bytes),
            used_gb: gb(gpu.used_bytes),
        };
        Self {
            device: device.clone(),
            total_gb: gb(*total_bytes),
            used_gb: gb(*used_bytes),
            available_gb: gb(available_bytes),
            usage_percent: round(100.0 * usage, 10.0),
            worker_resident_gb: gb(*worker_resident_bytes),
            models_loaded: models.len(),
            models,
            gpus: gpus.iter().map(gpu).collect(),
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
fn gb(bytes: u64) -> f64 {
    round(bytes as f64 / f64::from(1 << 30), 1000.0)
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
