//! `GET /api/inventory`: what models and LoRAs are on disk.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Json, extract::State};
use serde::Serialize;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::{Api, problem::Problem};
use crate::{
    config::{ModelFile, inventory},
    modes::{Inspected, Inspector, ModelKind},
};

#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Inventory {
    checkpoints: Vec<ModelInfo>,
    loras: Vec<ModelInfo>,
    /// Autoencoders alone, and what cannot be used.
    others: Vec<ModelInfo>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelInfo {
    /// Relative to `model_root`, or to `lora_root` if it lies there.
    #[schema(example = "sd15/dreamlike.safetensors")]
    name: String,
    /// `checkpoint`, `lora`, `vae` or `unknown`.
    #[schema(value_type = String)]
    kind: ModelKind,
    /// Of a LoRA: what it was made for. `null` where that cannot be told.
    #[schema(example = "SD1.x")]
    family: Option<String>,
    /// How most of its numbers are stored.
    #[schema(example = "fp16")]
    precision: Option<String>,
    bytes: u64,
    /// The modes that use it.
    modes: Vec<String>,
    /// Why it cannot be used.
    problem: Option<String>,
}

/// What was seen in files that have not changed since.
#[derive(Clone)]
pub struct Inspections {
    inspector: Inspector,
    known: Arc<Mutex<HashMap<(PathBuf, u64), Inspected>>>,
}

impl Inspections {
    pub fn new(inspector: Inspector) -> Self {
        Self { inspector, known: Arc::default() }
    }

    fn of(&self, files: &[ModelFile]) -> Vec<Inspected> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inspect = |file: &ModelFile| {
            let key = (file.path.clone(), file.stamp);
            let inspected = known.remove(&key);
            let inspected = inspected.unwrap_or_else(|| (self.inspector)(&file.name, &file.path));
            (key, inspected)
        };
        let inspected: Vec<_> = files.iter().map(&mut inspect).collect();
        // What is not there any more is forgotten.
        *known = inspected.iter().cloned().collect();
        inspected.into_iter().map(|(_, inspected)| inspected).collect()
    }
}

/// The checkpoints and LoRAs below the roots, and the modes that use them.
#[utoipa::path(get, path = "/api/inventory", tag = "modes",
    responses((status = 200, body = Inventory)))]
pub async fn show(State(api): State<Api>) -> Result<Json<Inventory>, Problem> {
    let (modes, inspections) = (api.config.current(), api.inspections.clone());
    let looking = spawn_blocking(move || {
        let files = inventory(&modes);
        let inspected = inspections.of(&files);
        files.into_iter().zip(inspected).collect::<Vec<_>>()
    });
    let mut answer = Inventory::default();
    for (file, inspected) in looking.await.map_err(Problem::internal)? {
        let Inspected { kind, family, precision, problem } = inspected;
        let ModelFile { name, path: _, bytes, stamp: _, modes } = file;
        let list = match (kind, &problem) {
            (ModelKind::Checkpoint, None) => &mut answer.checkpoints,
            (ModelKind::Lora, None) => &mut answer.loras,
            (_, _) => &mut answer.others,
        };
        list.push(ModelInfo { name, kind, family, precision, bytes, modes, problem });
    }
    Ok(Json(answer))
}
