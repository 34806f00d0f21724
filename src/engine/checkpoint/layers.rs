//! Layers that pipelines share: known by what they are made of, and how much each takes.
//!
//! A walk that only checks plans its layers: same keys, same sizes, nothing held. So that what a
//! pipeline would take, alone or beside others, is known before anything of it is read.

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use safetensors::Dtype;

use super::{Error, FileIdentity, precision};
use crate::engine::lora::PatchKey;

#[cfg(test)]
mod tests;

/// What a layer keeps in memory for as long as it lives.
pub trait Held: Any + Send + Sync {
    /// Its numbers with their padding, as they are allocated. One that was only planned says what
    /// it would hold.
    fn bytes(&self) -> u64;

    /// The same layer in the host's memory, or back on the device that it was made for; nothing where
    /// the two are the same.
    fn moved(&self, _to: Home) -> Option<Result<Arc<dyn Held>, Error>> {
        None
    }
}

/// Where a layer's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    Host,
    Device,
}

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

    /// The network that it belongs to: the first part of its canonical name.
    fn component(&self) -> &str {
        self.module.split('.').next().unwrap_or_default()
    }
}

/// The layers of a pipeline, by what they were made of; of one that was only checked, what they
/// would be.
#[derive(Default, Clone)]
pub struct Layers(HashMap<Arc<LayerKey>, Layer>);

#[derive(Clone)]
pub(super) struct Layer {
    /// Nothing where it was only planned.
    pub layer: Option<Arc<dyn Held>>,
    /// In memory.
    pub bytes: u64,
    /// What its making takes besides.
    pub working_bytes: u64,
    /// What is read for it: how it is stored, and in how many of the file's bytes.
    pub read: Vec<(Dtype, usize)>,
}

impl Layer {
    pub fn file_bytes(&self) -> u64 {
        self.read.iter().map(|(_, bytes)| *bytes as u64).sum()
    }
}

/// What one of a pipeline's networks takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// `unet`, `vae`, `text_encoder` or `text_encoder_2`.
    pub name: String,
    /// How most of its bytes are stored in the file: `fp16`.
    pub stored: String,
    pub file_bytes: u64,
    /// In memory.
    pub bytes: u64,
}

/// What the same pipelines have of a network in common, and no other one has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub component: String,
    /// Which pipelines, by their place in the question, in rising order.
    pub users: Vec<usize>,
    /// In memory, once for all of them.
    pub bytes: u64,
}

impl Layers {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What they take in memory.
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|layer| layer.bytes).sum()
    }

    /// The same by networks, in the order of their names.
    pub fn components(&self) -> Vec<Component> {
        let mut components = BTreeMap::<&str, Vec<&Layer>>::new();
        for (key, layer) in &self.0 {
            components.entry(key.component()).or_default().push(layer);
        }
        let component = |(name, layers): (&str, Vec<&Layer>)| Component {
            name: name.to_owned(),
            stored: precision(layers.iter().flat_map(|layer| layer.read.iter().copied()))
                .unwrap_or_default(),
            file_bytes: layers.iter().map(|layer| layer.file_bytes()).sum(),
            bytes: layers.iter().map(|layer| layer.bytes).sum(),
        };
        components.into_iter().map(component).collect()
    }

    /// Those that `other` has too.
    pub fn in_common_with(&self, other: &Self) -> Self {
        let common = self.0.iter().filter(|(key, _)| other.0.contains_key(*key));
        Self(common.map(|(key, layer)| (key.clone(), layer.clone())).collect())
    }

    /// Those that can be moved there, there.
    ///
    /// # Errors
    /// There is no room.
    pub fn moved(&self, to: Home) -> Result<Self, Error> {
        let mut there = HashMap::new();
        for (key, layer) in &self.0 {
            if let Some(moved) = layer.layer.as_ref().and_then(|layer| layer.moved(to)) {
                there.insert(key.clone(), Layer { layer: Some(moved?), ..layer.clone() });
            }
        }
        Ok(Self(there))
    }

    /// Those that `other` does not have.
    pub fn without(&self, other: &Self) -> Self {
        let rest = self.0.iter().filter(|(key, _)| !other.0.contains_key(*key));
        Self(rest.map(|(key, layer)| (key.clone(), layer.clone())).collect())
    }

    /// Takes over all of the other's.
    pub fn add(&mut self, other: Self) {
        for (key, layer) in other.0 {
            // One that is there counts for more than one that is planned.
            if layer.layer.is_some() || !self.0.contains_key(&key) {
                self.0.insert(key, layer);
            }
        }
    }

    /// The most that the making of one of them takes besides it.
    pub(in crate::engine) fn working_bytes(&self) -> u64 {
        self.0.values().map(|layer| layer.working_bytes).max().unwrap_or(0)
    }

    pub(super) fn get(&self, key: &LayerKey) -> Option<&Layer> {
        self.0.get(key)
    }

    pub(super) fn insert(&mut self, key: LayerKey, layer: Layer) {
        self.0.insert(Arc::new(key), layer);
    }
}

/// Which of these pipelines hold which layers, each counted once: by network, then by users. Those
/// that are only planned count like those that are loaded.
pub fn shares(pipelines: &[&Layers]) -> Vec<Share> {
    let mut layers = HashMap::<&LayerKey, (Vec<usize>, u64)>::new();
    for (index, pipeline) in pipelines.iter().enumerate() {
        for (key, layer) in &pipeline.0 {
            layers.entry(&**key).or_insert_with(|| (Vec::new(), layer.bytes)).0.push(index);
        }
    }
    let mut shares = BTreeMap::<(&str, Vec<usize>), u64>::new();
    for (key, (users, bytes)) in layers {
        *shares.entry((key.component(), users)).or_default() += bytes;
    }
    let share = |((component, users), bytes): ((&str, Vec<usize>), u64)| Share {
        component: component.to_owned(),
        users,
        bytes,
    };
    shares.into_iter().map(share).collect()
}
