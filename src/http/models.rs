//! `GET /api/models`: every mode, whether its pipeline is loaded, and what that costs.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::{
    Api,
    figures::{Figures, gb},
    loras::LoraInfo,
    problem::{Kind, Problem},
};
use crate::{
    config::{ModeFiles, files_of},
    dispatcher::Status,
    modes::{Mode, Modes, PipelineSpec},
    vram::{ResidentModel, Snapshot},
};

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `null` if none is.
    current_mode: Option<String>,
    /// Every mode, by name. Modes whose pipelines are equal share one.
    modes: Vec<ModeModel>,
    /// Pipelines that are loaded and that no mode declares: what the LoRAs of requests made of
    /// one, or what a mode was before the file was changed.
    others: Vec<OtherModel>,
}

/// A mode and its pipeline.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModeModel {
    name: String,
    /// Relative to `model_root`.
    #[schema(example = "sd15/dreamlike.safetensors")]
    model: String,
    /// Relative to `model_root`; `null`: the model's own.
    vae: Option<String>,
    loras: Vec<LoraInfo>,
    state: Residency,
    /// Whether it stays loaded until it is unloaded by name.
    pinned: bool,
    /// Whether it is loaded at the start.
    preload: bool,
    /// Where it is loaded.
    figures: Option<Figures>,
}

/// A pipeline that no mode declares.
#[derive(Debug, Serialize, ToSchema)]
pub struct OtherModel {
    /// The mode that it was made of.
    mode: String,
    /// Relative to `model_root`.
    model: String,
    /// Relative to `model_root`; `null`: the model's own.
    vae: Option<String>,
    loras: Vec<LoraInfo>,
    state: Residency,
    figures: Figures,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// The current mode draws with it.
    Active,
    Loaded,
    NotLoaded,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AvailableModels {
    /// Modes whose files are all there.
    available: Vec<AvailableModel>,
    /// Modes that lack files, and cannot be loaded before those are there.
    incomplete: Vec<IncompleteModel>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AvailableModel {
    name: String,
    /// All its files: model, VAE and LoRAs.
    file_gb: f64,
    state: Residency,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct IncompleteModel {
    name: String,
    /// As modes.yaml names them.
    #[schema(example = json!(["sd15/dreamlike.safetensors"]))]
    missing: Vec<String>,
}

/// Every mode, whether it is loaded, and what that costs.
#[utoipa::path(get, path = "/api/models", tag = "models",
    responses((status = 200, body = ModelList)))]
pub async fn list(State(api): State<Api>) -> Json<ModelList> {
    Json(ModelList::of(&api.config.current(), &api.dispatcher.status()))
}

/// The current mode with the pipeline that it draws with now, the last request's LoRAs in it.
#[utoipa::path(get, path = "/api/models/current", tag = "models",
    responses(
        (status = 200, body = ModeModel),
        (status = 404, description = "No mode is current"),
    ))]
pub async fn current(State(api): State<Api>) -> Result<Json<ModeModel>, Problem> {
    let (modes, status) = (api.config.current(), api.dispatcher.status());
    current_model(&modes, &status).map(Json).ok_or_else(|| {
        let detail = match &status.degraded {
            Some(reason) => reason.clone(),
            None => "no mode is current; POST /api/modes/switch makes one".to_owned(),
        };
        Problem::new(Kind::NoCurrentMode, detail)
    })
}

/// Which modes could be loaded: those whose files are there.
#[utoipa::path(get, path = "/api/models/available", tag = "models",
    responses((status = 200, body = AvailableModels)))]
pub async fn available(State(api): State<Api>) -> Result<Json<AvailableModels>, Problem> {
    let modes = api.config.current();
    let looking = spawn_blocking(move || {
        let with_files = |mode: &Arc<Mode>| (mode.clone(), files_of(mode));
        modes.modes.values().map(with_files).collect::<Vec<_>>()
    });
    let looked_at = looking.await.map_err(Problem::internal)?;
    let status = api.dispatcher.status();
    let (mut available, mut incomplete) = (Vec::new(), Vec::new());
    for (mode, ModeFiles { bytes, missing }) in looked_at {
        let name = mode.name.clone();
        if missing.is_empty() {
            let state = Residency::of_mode(&mode, &status);
            available.push(AvailableModel { name, file_gb: gb(bytes), state });
        } else {
            incomplete.push(IncompleteModel { name, missing });
        }
    }
    Ok(Json(AvailableModels { available, incomplete }))
}

impl ModelList {
    fn of(modes: &Modes, status: &Status) -> Self {
        let is_declared =
            |pipeline: &PipelineSpec| modes.modes.values().any(|mode| mode.pipeline == *pipeline);
        let others = status.vram.models.iter();
        let others = others.filter(|model| !is_declared(&model.loaded.pipeline));
        Self {
            current_mode: status.current_mode.clone(),
            modes: modes.modes.values().map(|mode| ModeModel::of(mode, status)).collect(),
            others: others.map(|model| OtherModel::of(model, &status.vram)).collect(),
        }
    }
}

impl ModeModel {
    /// With the pipeline that the mode declares.
    pub fn of(mode: &Mode, status: &Status) -> Self {
        let model = find(&mode.pipeline, &status.vram);
        Self {
            name: mode.name.clone(),
            model: mode.pipeline.checkpoint.name.clone(),
            vae: vae_name(&mode.pipeline),
            loras: mode.pipeline.loras.iter().map(LoraInfo::from).collect(),
            state: Residency::of_mode(mode, status),
            pinned: mode.pinned,
            preload: mode.preload,
            figures: model.map(|model| Figures::of(model, &status.vram)),
        }
    }
}

impl OtherModel {
    fn of(model: &ResidentModel, vram: &Snapshot) -> Self {
        let pipeline = &model.loaded.pipeline;
        Self {
            mode: model.loaded.mode.clone(),
            model: pipeline.checkpoint.name.clone(),
            vae: vae_name(pipeline),
            loras: pipeline.loras.iter().map(LoraInfo::from).collect(),
            state: if model.active { Residency::Active } else { Residency::Loaded },
            figures: Figures::of(model, vram),
        }
    }
}

impl Residency {
    /// Of two modes that share the active pipeline, the current one alone is active.
    pub fn of_mode(mode: &Mode, status: &Status) -> Self {
        match find(&mode.pipeline, &status.vram) {
            None => Self::NotLoaded,
            Some(model) if model.active && status.current_mode.as_ref() == Some(&mode.name) => {
                Self::Active
            }
            Some(_) => Self::Loaded,
        }
    }
}

/// The pipeline, where it is loaded.
fn find<'a>(pipeline: &PipelineSpec, vram: &'a Snapshot) -> Option<&'a ResidentModel> {
    vram.models.iter().find(|model| model.loaded.pipeline == *pipeline)
}

/// The mode may be gone from the file, and its pipeline be another one by a request's LoRAs.
fn current_model(modes: &Modes, status: &Status) -> Option<ModeModel> {
    let name = status.current_mode.as_ref()?;
    let model = status.vram.models.iter().find(|model| model.active)?;
    let pipeline = &model.loaded.pipeline;
    let mode = modes.modes.get(name);
    Some(ModeModel {
        name: name.clone(),
        model: pipeline.checkpoint.name.clone(),
        vae: vae_name(pipeline),
        loras: pipeline.loras.iter().map(LoraInfo::from).collect(),
        state: Residency::Active,
        pinned: mode.is_some_and(|mode| mode.pinned),
        preload: mode.is_some_and(|mode| mode.preload),
        figures: Some(Figures::of(model, &status.vram)),
    })
}

fn vae_name(pipeline: &PipelineSpec) -> Option<String> {
    pipeline.vae.as_ref().map(|vae| vae.name.clone())
}
