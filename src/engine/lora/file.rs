//! An open LoRA file, and the checkpoint that it is held against.

use std::cell::LazyCell;

use safetensors::Dtype;

use super::{Fault, Match, Sorted, keys::Key};
use crate::{
    engine::checkpoint::{self, Access, Error, FileIdentity, Module, TensorFile},
    modes::LoraRef,
};

/// An open file whose tensors are those of a LoRA, of types that are read.
pub struct LoraFile {
    pub file: TensorFile,
    sorted: Sorted,
}

/// The checkpoint that LoRAs are merged into, as they see it.
pub struct Recipient<'a> {
    pub(super) family: &'a str,
    pub(super) files: Vec<FileIdentity>,
    modules: LazyCell<Vec<Module>, Box<dyn FnOnce() -> Vec<Module> + 'a>>,
}

impl<'a> Recipient<'a> {
    /// A checkpoint of a family of that name. Its modules are listed if somebody asks: who has seen
    /// these files before knows where the LoRAs belong. (With no files, nobody has.)
    pub fn new(
        family: &'a str,
        files: Vec<FileIdentity>,
        modules: impl FnOnce() -> Vec<Module> + 'a,
    ) -> Self {
        Self { family, files, modules: LazyCell::new(Box::new(modules)) }
    }

    pub(super) fn modules(&self) -> &[Module] {
        &self.modules
    }
}

impl LoraFile {
    pub fn open(lora: &LoraRef) -> Result<Self, Error> {
        let file = TensorFile::open(&lora.name, &lora.path, Access::Tensors)?;
        let tensors = file.entries.iter().map(|(name, entry)| (name.as_str(), &*entry.dims));
        let sorted = Sorted::of(tensors, &file.metadata).map_err(|fault| refusal(lora, &fault))?;
        Ok(Self { file, sorted })
    }

    pub fn match_to(&self, lora: &LoraRef, to: &Recipient<'_>) -> Result<Match, Error> {
        let Self { file, sorted } = self;
        let refuse = |fault: Fault| refusal(lora, &fault);
        let matched = sorted.match_to(to.modules(), to.family, &file.metadata).map_err(refuse)?;
        let mut used = file.entries.iter().filter(|(name, _)| Key::of(name).is_ok());
        if let Some((tensor, entry)) = used.find(|(_, entry)| !is_readable(entry.dtype)) {
            let (tensor, dtype) = (tensor.clone(), format!("{:?}", entry.dtype));
            return Err(refuse(Fault::WrongType { tensor, dtype }));
        }
        if let Some(first) = matched.unmatched.first() {
            let (file, merged, family) = (&lora.name, matched.adapters.len(), to.family);
            let unmatched = matched.unmatched.len();
            tracing::warn!(
                "{file}: {merged} of its modules are merged; {unmatched} have no place in this {family} checkpoint, the first of them '{first}'"
            );
        }
        Ok(matched)
    }

    /// The numbers of a tensor, which is known to be there and of a type that is read.
    pub fn read(&self, name: &str) -> Vec<f32> {
        let entry = &self.file.entries[name];
        let bytes = self.file.bytes(entry);
        match entry.dtype {
            Dtype::F64 => numbers(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::I64 => numbers(bytes, |bytes| i64::from_le_bytes(bytes) as f32),
            Dtype::I32 => numbers(bytes, |bytes| i32::from_le_bytes(bytes) as f32),
            dtype => checkpoint::to_f32(dtype, bytes),
        }
    }
}

fn refusal(lora: &LoraRef, fault: &Fault) -> Error {
    Error::NotSupported { file: lora.name.clone(), what: fault.to_string() }
}

/// Besides the types of weights, those that an alpha is stored as now and then.
fn is_readable(dtype: Dtype) -> bool {
    checkpoint::float_bytes(dtype).is_some()
        || matches!(dtype, Dtype::F64 | Dtype::I64 | Dtype::I32)
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}
