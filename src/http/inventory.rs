//! `GET /api/inventory`: what models and LoRAs are on disk.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, extract::State};
use serde::Serialize;
use tokio::{sync::watch, task::spawn_blocking};
use utoipa::ToSchema;

use super::{Api, problem::Problem};
use crate::{
    config::{ModelFile, inventory},
    modes::{Inspected, Inspector, ModelKind, Modes},
};

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Inventory {
    checkpoints: Vec<ModelInfo>,
    loras: Vec<ModelInfo>,
    /// Autoencoders alone, and what cannot be used.
    others: Vec<ModelInfo>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
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
    /// The modes that use it, but for those that name it by a variable.
    modes: Vec<String>,
    /// Why it cannot be used.
    problem: Option<String>,
}

/// How long one walk looks into files that it does not know; the next one goes on.
const LOOK_INTO_FILES_FOR: Duration = Duration::from_secs(3);

/// What was seen in files that have not changed since, and the walk that is under way.
#[derive(Clone)]
pub struct Inspections {
    inspector: Inspector,
    known: Arc<Mutex<HashMap<(PathBuf, u64), Inspected>>>,
    walk: Arc<Mutex<Option<Walk>>>,
}

/// What a walk has found, once it has.
type Walk = watch::Receiver<Option<Inventory>>;

impl Inspections {
    pub fn new(inspector: Inspector) -> Self {
        Self { inspector, known: Arc::default(), walk: Arc::default() }
    }

    /// One walk for all who ask while it is under way, so that a slow disk takes one thread. Nobody
    /// waits for a lock.
    fn walk(&self, modes: Arc<Modes>) -> Walk {
        let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(under_way) = &*walk
            && under_way.borrow().is_none()
            && under_way.has_changed().is_ok()
        {
            return under_way.clone();
        }
        let (found, new) = watch::channel(None);
        *walk = Some(new.clone());
        let inspections = self.clone();
        spawn_blocking(move || {
            let files = inventory(&modes);
            let inspected = inspections.of(&files);
            found.send_replace(Some(Inventory::of(files.into_iter().zip(inspected))));
        });
        new
    }

    fn of(&self, files: &[ModelFile]) -> Vec<Inspected> {
        let began = Instant::now();
        let known = std::mem::take(&mut *self.known());
        let look = |file: &ModelFile| {
            let key = (file.path.clone(), file.stamp);
            let inspected = known.get(&key).cloned().or_else(|| {
                let in_time = began.elapsed() < LOOK_INTO_FILES_FOR;
                in_time.then(|| (self.inspector)(&file.name, &file.path))
            });
            (key, inspected)
        };
        let inspected: Vec<_> = files.iter().map(look).collect();
        // A file that is not there any more is forgotten.
        *self.known() = inspected
            .iter()
            .filter_map(|(key, inspected)| Some((key.clone(), inspected.clone()?)))
            .collect();
        let not_yet = || Inspected {
            kind: ModelKind::Unknown,
            family: None,
            precision: None,
            problem: Some("has not been looked into yet; ask again".to_owned()),
        };
        inspected.into_iter().map(|(_, inspected)| inspected.unwrap_or_else(not_yet)).collect()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<(PathBuf, u64), Inspected>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inventory {
    fn of(files: impl Iterator<Item = (ModelFile, Inspected)>) -> Self {
        let mut inventory = Self::default();
        for (file, inspected) in files {
            let Inspected { kind, family, precision, problem } = inspected;
            let ModelFile { name, path: _, bytes, stamp: _, modes } = file;
            let list = match (kind, &problem) {
                (ModelKind::Checkpoint, None) => &mut inventory.checkpoints,
                (ModelKind::Lora, None) => &mut inventory.loras,
                (_, _) => &mut inventory.others,
            };
            list.push(ModelInfo { name, kind, family, precision, bytes, modes, problem });
        }
        inventory
    }
}

/// The checkpoints and LoRAs below the roots, and the modes that use them.
#[utoipa::path(get, path = "/api/inventory", tag = "modes",
    responses((status = 200, body = Inventory)))]
pub async fn show(State(api): State<Api>) -> Result<Json<Inventory>, Problem> {
    let mut walk = api.inspections.walk(api.config.current());
    let found = walk.wait_for(Option::is_some).await.map_err(Problem::internal)?;
    Ok(Json(found.clone().unwrap_or_default()))
}

#[cfg(test)]
mod tests;
