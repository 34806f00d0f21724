//! Checkpoints on disk: opened, recognised and read under one canonical naming.
//!
//! The canonical names are those of diffusers' modules, under `text_encoder.`, `unet.` and
//! `vae.`; a `Layout` says what a file calls them. Nothing here knows what a tensor is for:
//! models ask by name, and a file that lacks what they ask for is refused with that name.

mod file;
mod ldm;
mod weights;

use std::{
    collections::BTreeMap,
    fs::File,
    ops::{Bound, Range},
    path::Path,
};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

pub use file::{Entry as FileEntry, FileIdentity, TensorFile};
pub use weights::{Reading, Weights};
pub(in crate::engine) use weights::{is_readable, to_f32};

use super::Family;
use crate::modes::CheckpointRef;

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
    #[error("{file}: the tensor '{tensor}' is stored as {dtype}; fp32, fp16 and bf16 are read")]
    WrongType { file: String, tensor: String, dtype: String },
}

/// A tensor's place in the file.
struct Entry {
    dtype: Dtype,
    dims: Vec<usize>,
    bytes: Range<usize>,
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

/// An open checkpoint: its header is read and checked, its tensors are still on disk.
pub struct Checkpoint {
    /// The file as the user calls it.
    file: String,
    map: Mmap,
    entries: BTreeMap<String, Entry>,
    layout: ldm::Layout,
    family: Family,
}

impl Checkpoint {
    /// Opens the file, checks that it is whole, and recognises its family.
    pub fn open(checkpoint: &CheckpointRef) -> Result<Self, Error> {
        let file = checkpoint.name.clone();
        let map = map(&checkpoint.path)
            .map_err(|cause| Error::Unreadable { file: file.clone(), cause })?;
        if let Some(what) = foreign_format(&map) {
            return Err(Error::NotSafetensors { file, what });
        }
        let entries = read_header(&file, &map)?;
        let family =
            recognise(&entries).map_err(|what| Error::NotSupported { file: file.clone(), what })?;
        let layout = ldm::Layout::of(&entries);
        Ok(Self { file, map, entries, layout, family })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    fn entry(&self, canonical: &str) -> Result<(&Entry, String), Error> {
        let tensor = self.layout.file_name(canonical);
        match self.entries.get(&tensor) {
            Some(entry) => Ok((entry, tensor)),
            None => Err(Error::MissingTensor { file: self.file.clone(), tensor }),
        }
    }

    /// Whether the file has the module of that canonical name, or at least a part of it.
    fn has_module(&self, canonical: &str) -> bool {
        self.layout.has_module(canonical)
            || has_prefix(&self.entries, &format!("{}.", self.layout.file_name(canonical)))
    }
}

fn map(path: &Path) -> std::io::Result<Mmap> {
    // Asked before it is opened: opening a pipe waits for somebody to write into it.
    let kind = std::fs::metadata(path)?;
    if kind.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(std::io::Error::other("it is not a file but a pipe, a socket or a device"));
    }
    let file = File::open(path)?;
    // SAFETY: the map is only read. A file that is cut short under it ends this process with
    // SIGBUS; that is the worker's, whose daemon notices, restarts it and says so.
    unsafe { Mmap::map(&file) }
}

fn foreign_format(bytes: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let pickle = matches!(bytes, [0x80, 2..=5, ..]);
    match () {
        () if bytes.is_empty() => Some("is empty"),
        // A safetensors header, whatever its length before it looks like.
        () if bytes.get(8) == Some(&b'{') => None,
        () if starts(b"PK\x03\x04") || pickle => {
            Some("is a pickled checkpoint (.ckpt, .pt), which may run code when it is opened")
        }
        () if starts(b"GGUF") => Some("is a GGUF file"),
        () => None,
    }
}

fn read_header(file: &str, map: &[u8]) -> Result<BTreeMap<String, Entry>, Error> {
    let tensors = SafeTensors::deserialize(map).map_err(|error| {
        first_cut_tensor(map).map_or_else(
            || Error::Damaged { file: file.to_owned(), cause: error.to_string() },
            |(tensor, needed)| {
                let (file, found) = (file.to_owned(), map.len() as u64);
                Error::Truncated { file, tensor, needed, found }
            },
        )
    })?;
    let start = map.as_ptr() as usize;
    let entries = tensors.iter().map(|(name, view)| {
        let begin = view.data().as_ptr() as usize - start;
        let bytes = begin..begin + view.data().len();
        (name.to_owned(), Entry { dtype: view.dtype(), dims: view.shape().to_vec(), bytes })
    });
    Ok(entries.collect())
}

/// Of a file with a readable header: the first tensor that does not lie wholly in it, and its end.
fn first_cut_tensor(map: &[u8]) -> Option<(String, u64)> {
    let header_len = u64::from_le_bytes(map.get(..8)?.try_into().ok()?);
    let header = map.get(8..8usize.checked_add(usize::try_from(header_len).ok()?)?)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let end = |entry: &serde_json::Value| entry.get("data_offsets")?.get(1)?.as_u64();
    header
        .iter()
        .filter_map(|(name, entry)| {
            Some((name.clone(), end(entry)?.saturating_add(8 + header_len)))
        })
        .filter(|(_, end)| *end > map.len() as u64)
        .min_by_key(|(_, end)| *end)
}

/// The family by its telltale names (never by counts, so that tiny ones are recognised too).
fn recognise(entries: &BTreeMap<String, Entry>) -> Result<Family, String> {
    let has = |prefix: &str| has_prefix(entries, prefix);
    let later =
        |family: &str| Err(format!("is {family}, which this version does not draw with yet"));
    if has("conditioner.embedders.0.transformer.") {
        later("an SDXL checkpoint")
    } else if has("conditioner.embedders.0.model.") {
        later("an SDXL refiner")
    } else if has("cond_stage_model.model.") {
        later("an SD2.x checkpoint")
    } else if has("cond_stage_model.transformer.") {
        Ok(Family::Sd1)
    } else if entries.keys().any(|name| name.contains("lora_") || name.contains(".lora.")) {
        Err("is a LoRA, not a checkpoint; name it under 'loras'".to_owned())
    } else if has("model.diffusion_model.") {
        Err("holds a UNet without its text encoder; a whole checkpoint is needed".to_owned())
    } else {
        Err("holds no Stable Diffusion model that is known here".to_owned())
    }
}

fn has_prefix(entries: &BTreeMap<String, Entry>, prefix: &str) -> bool {
    let mut from = entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
    from.next().is_some_and(|(name, _)| name.starts_with(prefix))
}
