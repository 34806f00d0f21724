//! Checkpoints on disk: opened, recognised and read under one canonical naming.
//!
//! The canonical names are those of diffusers' modules, under `text_encoder.`, `text_encoder_2.`,
//! `unet.` and `vae.`; `Names` say what a file calls them. A checkpoint is a single file, or a
//! folder as diffusers writes it with a file or more for each component; the autoencoder may come
//! from elsewhere. Nothing here knows what a tensor is for: models ask by name, and a file that
//! lacks what they ask for is refused with that name.

mod facts;
mod file;
mod folder;
mod layers;
mod ldm;
mod names;
mod numbers;
mod single;
mod upscaler;
mod weights;

use std::{collections::BTreeMap, sync::Arc};

pub(super) use facts::says_lcm;
pub use facts::{Facts, Family, Heads};
pub use file::{Access, Entry, FileIdentity, Header, TensorFile, foreign_format};
pub use layers::{Component, Held, Home, Layers, Share, shares};
pub(super) use numbers::{float_bytes, precision, to_f32};
pub use weights::{Loading, Reading, ReadingCost, Stored, Weights};

use safetensors::Dtype;

use crate::{
    engine::memory::OutOfMemory,
    modes::{CheckpointRef, PipelineSpec},
};
use ldm::UNetShape;
use names::{Names, View};
pub(super) use upscaler::{UPSCALER, open as open_upscaler};

/// Why a checkpoint cannot be used. Messages name the file as the user does.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{file}: cannot be read: {cause}")]
    Unreadable { file: String, cause: std::io::Error },
    #[error("{file}: {what}; only .safetensors checkpoints are loaded")]
    NotSafetensors { file: String, what: &'static str },
    #[error("{file}: is not a safetensors file, or a damaged one: {cause}")]
    Damaged { file: String, cause: String },
    #[error(
        "{file}: is truncated: '{tensor}' ends at byte {needed}, but the file has only {found} bytes"
    )]
    Truncated { file: String, tensor: String, needed: u64, found: u64 },
    #[error("{file}: {what}")]
    NotSupported { file: String, what: String },
    #[error("{file}: the tensor '{tensor}' is missing")]
    MissingTensor { file: String, tensor: String },
    #[error("{file}: the tensor '{tensor}' has the shape {found:?} where {expected} belongs")]
    WrongShape { file: String, tensor: String, found: Vec<usize>, expected: String },
    #[error(
        "{file}: the tensor '{tensor}' is stored as {dtype}; fp32, fp16, bf16 and fp8 (e4m3, e5m2) are read"
    )]
    WrongType { file: String, tensor: String, dtype: String },
    /// The LoRA of that place in [`PipelineSpec::loras`].
    #[error("{cause}")]
    Lora { index: usize, cause: Box<Error> },
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error("the engine failed while it loaded: {0}")]
    Engine(String),
    #[error("the load was cancelled")]
    Cancelled,
}

/// A module of the checkpoint that has a matrix or a kernel: something that a LoRA can change.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`
    pub canonical: String,
    /// What single-file checkpoints call it below their component's prefix
    /// (`input_blocks.1.1.transformer_blocks.0.attn1.to_q`), if that is something else.
    pub ldm: Option<String>,
    /// Of its weight: `[n, k]` or `[n, c, kh, kw]`.
    pub dims: Vec<usize>,
}

/// Where one of a checkpoint's networks is: one file, or several that are read as one.
struct Network {
    files: Vec<(Arc<TensorFile>, Names)>,
}

impl Network {
    /// The file that has the tensor of that canonical name, and the tensor's name in it.
    fn find(&self, canonical: &str) -> Option<Found<'_>> {
        self.files.iter().find_map(|(file, names)| {
            let (tensor, view) = names.file_name(canonical);
            let entry = file.entries.get(&tensor)?;
            Some(Found { file, tensor, view, entry })
        })
    }

    fn has_module(&self, canonical: &str) -> bool {
        self.files.iter().any(|(file, names)| {
            names.has_module(canonical)
                || file.has_prefix(&format!("{}.", names.file_name(canonical).0))
        })
    }

    /// The canonical names of its matrices and kernels, without their `.weight`.
    fn matrices(&self) -> BTreeMap<String, Vec<usize>> {
        let mut matrices = BTreeMap::new();
        for (file, names) in &self.files {
            for (canonical, name) in names.tensors(file) {
                let Some(module) = canonical.strip_suffix(".weight") else { continue };
                let view = names.file_name(&canonical).1;
                let dims = view.dims(&file.entries[name].dims);
                if matches!(dims.len(), 2 | 4) {
                    matrices.insert(module.to_owned(), dims);
                }
            }
        }
        matrices
    }
}

/// A tensor: the file that has it, its name there, which part of it is meant, and where it lies.
struct Found<'a> {
    file: &'a TensorFile,
    tensor: String,
    view: View,
    entry: &'a Entry,
}

impl View {
    /// Whether a tensor of these dimensions has such a part at all.
    fn divides(self, stored: &[usize]) -> bool {
        match self {
            Self::Whole => true,
            Self::Third(_) => stored.first().is_some_and(|n| n % 3 == 0),
            Self::Transposed => stored.len() == 2,
        }
    }

    /// The dimensions of a tensor that has a part of these.
    fn stored(self, dims: &[usize]) -> Vec<usize> {
        match (self, dims) {
            (Self::Third(_), [n, rest @ ..]) => [&[n.saturating_mul(3)], rest].concat(),
            (Self::Transposed, [n, k]) => vec![*k, *n],
            _ => dims.to_vec(),
        }
    }

    /// The dimensions of what is meant, of a tensor with these.
    fn dims(self, stored: &[usize]) -> Vec<usize> {
        match (self, stored) {
            (Self::Third(_), [n, rest @ ..]) => [&[n / 3], rest].concat(),
            (Self::Transposed, [k, n]) => vec![*n, *k],
            _ => stored.to_vec(),
        }
    }
}

/// Open networks: their files' headers are read and checked, their tensors are still on disk.
pub struct Networks {
    /// The file or folder as the user calls it.
    name: String,
    components: BTreeMap<&'static str, Network>,
}

/// An open checkpoint: the networks of a pipeline.
pub struct Checkpoint {
    networks: Networks,
    facts: Facts,
}

impl Checkpoint {
    /// Opens what a pipeline is made of, checks that it is whole, and recognises its family.
    pub fn open(spec: &PipelineSpec, access: Access) -> Result<Self, Error> {
        let CheckpointRef { name, path } = &spec.checkpoint;
        let mut checkpoint = match path.is_dir() {
            true => folder::open(name, path, access)?,
            false => single::open(name, path, access)?,
        };
        if let Some(vae) = &spec.vae {
            checkpoint.networks.components.insert("vae", open_vae(vae, access)?);
            if let Some(scale) = folder::latent_scale(&vae.name, &vae.path)? {
                checkpoint.facts.latent_scale = scale;
            }
        }
        if let Some(prediction) = spec.prediction {
            checkpoint.facts.prediction = prediction;
        }
        Ok(checkpoint)
    }

    /// What it is, besides its tensors.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// How that component's tensors are stored, and in how many bytes each.
    pub fn tensors_of(&self, component: &str) -> impl Iterator<Item = (Dtype, usize)> {
        let files = self.networks.components.get(component).into_iter().flat_map(|it| &it.files);
        let named = files.flat_map(|(file, names)| names.tensors(file).map(move |it| (file, it)));
        named.map(|(file, (_, tensor))| {
            let entry = &file.entries[tensor];
            (entry.dtype, entry.size_bytes())
        })
    }

    /// The files that [`Self::modules`] are in.
    pub fn files_of_modules(&self) -> Vec<FileIdentity> {
        let components = self.networks.components.iter().filter(|(name, _)| **name != "vae");
        let files = components.flat_map(|(_, component)| &component.files);
        let mut files: Vec<_> = files.map(|(file, _)| file.identity.clone()).collect();
        files.dedup();
        files
    }

    /// What a LoRA can change, in all components but the autoencoder.
    pub fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::new();
        for (&name, component) in
            self.networks.components.iter().filter(|(name, _)| **name != "vae")
        {
            let matrices = component.matrices();
            let shape = || UNetShape::of_modules(matrices.keys().map(String::as_str));
            let ldm = (name == "unet").then(|| shape().names());
            modules.extend(matrices.into_iter().map(|(module, dims)| {
                Module {
                    ldm: ldm
                        .as_ref()
                        .map(|names| names.file_name(&module).0)
                        .filter(|ldm| *ldm != module),
                    canonical: format!("{name}.{module}"),
                    dims,
                }
            }));
        }
        modules
    }
}

impl Networks {
    /// The component of a canonical name, and the name in it.
    fn component<'a>(&self, canonical: &'a str) -> Option<(&Network, &'a str)> {
        let (component, rest) = canonical.split_once('.')?;
        Some((self.components.get(component)?, rest))
    }

    /// The tensor of that canonical name.
    fn find(&self, canonical: &str) -> Result<Found<'_>, Error> {
        let component = self.component(canonical);
        let found = component.and_then(|(component, name)| component.find(name));
        found.ok_or_else(|| self.missing(canonical))
    }

    /// The tensor by the name that it would have in the file; in the folder, where several files
    /// could have it.
    fn missing(&self, canonical: &str) -> Error {
        let Some((component, name)) = self.component(canonical) else {
            return Error::MissingTensor { file: self.name.clone(), tensor: canonical.to_owned() };
        };
        let (place, tensor) = match &component.files[..] {
            [(file, names)] => (&*file.name, names.file_name(name).0),
            [(file, names), ..] => {
                let folder = file.name.rsplit_once('/').map_or(&*file.name, |(folder, _)| folder);
                (folder, names.file_name(name).0)
            }
            [] => (&*self.name, canonical.to_owned()),
        };
        Error::MissingTensor { file: place.to_owned(), tensor }
    }

    /// Whether it has the module of that canonical name, or at least a part of it.
    fn has_module(&self, canonical: &str) -> bool {
        self.component(canonical).is_some_and(|(component, name)| component.has_module(name))
    }
}

/// An autoencoder of its own: a single file under either naming, or diffusers' folder of one. Of a
/// whole model, in either layout, it is the model's.
fn open_vae(vae: &CheckpointRef, access: Access) -> Result<Network, Error> {
    let CheckpointRef { name, path } = vae;
    if path.is_dir() {
        let inner = path.join("vae");
        return if inner.is_dir() {
            folder::open_component(&format!("{name}/vae"), &inner, access)
        } else {
            folder::open_component(name, path, access)
        };
    }
    let file = TensorFile::open(name, path, access)?;
    let names = vae_names(&file).ok_or_else(|| Error::NotSupported {
        file: name.clone(),
        what: "holds no autoencoder (VAE) that is known here".to_owned(),
    })?;
    Ok(Network { files: vec![(Arc::new(file), names)] })
}

/// The family of a single-file checkpoint, if it is one.
pub(super) fn family(file: &Header) -> Result<Family, String> {
    single::recognise(file)
}

/// Whether a file holds an autoencoder, by itself or within a model.
pub(super) fn is_vae(file: &Header) -> bool {
    vae_names(file).is_some()
}

/// Whether a file holds an upscaler.
pub(super) fn is_upscaler(file: &Header) -> bool {
    upscaler::names(file).is_some()
}

fn vae_names(file: &Header) -> Option<Names> {
    let prefix = |prefix: &str| file.has_prefix(&format!("{prefix}decoder."));
    if prefix("first_stage_model.") {
        Some(ldm::vae(file, "first_stage_model"))
    } else if file.has_prefix("decoder.mid_block.attentions.0.query.") {
        Some(ldm::old_vae())
    } else if file.has_prefix("decoder.up_blocks.") {
        Some(Names::canonical())
    } else if prefix("") {
        Some(ldm::vae(file, ""))
    } else {
        None
    }
}
