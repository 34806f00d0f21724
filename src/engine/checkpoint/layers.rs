//! Layers that outlive their pipeline: those that the next one would make of the same tensors.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::Arc,
};

use super::FileIdentity;
use crate::engine::lora::PatchKey;

/// A tensor that a layer was made of.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Source {
    pub file: FileIdentity,
    pub tensor: String,
    pub patches: PatchKey,
}

/// All that a layer depends on. The canonical name stands for the code that made it.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct LayerKey {
    kind: TypeId,
    module: String,
    sources: Vec<Option<Source>>,
}

impl LayerKey {
    pub fn of<T: Any>(module: &str, sources: Vec<Option<Source>>) -> Self {
        Self { kind: TypeId::of::<T>(), module: module.to_owned(), sources }
    }
}

/// The layers of a pipeline, by what they were made of.
#[derive(Default)]
pub struct Layers(HashMap<LayerKey, Layer>);

struct Layer {
    layer: Arc<dyn Any + Send + Sync>,
    /// What was read for it, in the file's bytes.
    bytes: u64,
}

impl Layers {
    /// Those that `other` has too; the rest is given up.
    pub fn in_common_with(mut self, other: &Self) -> Self {
        self.0.retain(|key, _| other.0.contains_key(key));
        self
    }

    pub(super) fn get<T: Any + Send + Sync>(&self, key: &LayerKey) -> Option<(Arc<T>, u64)> {
        let Layer { layer, bytes } = self.0.get(key)?;
        Some((layer.clone().downcast().ok()?, *bytes))
    }

    pub(super) fn insert(&mut self, key: LayerKey, layer: Arc<dyn Any + Send + Sync>, bytes: u64) {
        self.0.insert(key, Layer { layer, bytes });
    }
}
