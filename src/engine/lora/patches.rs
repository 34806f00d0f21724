//! The LoRAs of a pipeline, merged into one weight after another while it is loaded.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::{Fault, Sorted, adapter::Adapter, keys::Key};
use crate::{
    engine::checkpoint::{self, Error, FileIdentity, Module, TensorFile},
    modes::{LoraRef, LoraReport, OnLoraError},
};

/// LoRAs that were found to fit a checkpoint, in the order in which they are merged.
#[derive(Default)]
pub struct Patches {
    loras: Vec<Lora>,
}

struct Lora {
    file: TensorFile,
    strength: f32,
    /// By the canonical name of the module.
    adapters: BTreeMap<String, Adapter>,
}

/// What was done to a tensor: the files that changed it, and how strongly. Weights of the same
/// checkpoint with equal keys are equal, bit by bit.
pub type PatchKey = Vec<(FileIdentity, u32)>;

/// Which of a module's tensors.
#[derive(Clone, Copy)]
enum Half {
    Weight,
    Bias,
}

impl Patches {
    /// Opens the LoRAs and finds their places in a checkpoint of a family of that name. Looks at
    /// names and shapes alone.
    ///
    /// # Errors
    /// A LoRA that cannot be read or does not fit, unless such are to be skipped.
    pub fn of(
        loras: &[LoraRef],
        modules: &[Module],
        family: &str,
        on_error: OnLoraError,
    ) -> Result<(Self, Vec<LoraReport>), Error> {
        let (mut patches, mut reports) = (Self::default(), Vec::new());
        for (index, lora) in loras.iter().enumerate() {
            let (name, strength) = (lora.name.clone(), lora.strength);
            let report = LoraReport { name, strength, merged: 0, unmatched: 0, skipped: None };
            match (Lora::open(lora, modules, family), on_error) {
                (Ok((lora, unmatched)), _) => {
                    let merged = lora.adapters.len();
                    reports.push(LoraReport { merged, unmatched: unmatched.len(), ..report });
                    patches.loras.push(lora);
                }
                (Err(error), OnLoraError::Skip) => {
                    tracing::warn!("a LoRA is left out: {error}");
                    reports.push(LoraReport { skipped: Some(error.to_string()), ..report });
                }
                (Err(error), OnLoraError::Fail) => {
                    return Err(Error::Lora { index, cause: Box::new(error) });
                }
            }
        }
        Ok((patches, reports))
    }

    /// Whether one of them makes the model draw in few steps, with the `lcm` scheduler.
    pub fn has_lcm(&self) -> bool {
        let mut merged = self.loras.iter().filter(|lora| lora.strength != 0.0);
        merged.any(|lora| checkpoint::says_lcm(&lora.file.name, &lora.file.metadata))
    }

    /// Merges them into the tensor of that canonical name and these dimensions, which are those of
    /// its module.
    pub fn apply(&self, tensor: &str, dims: &[usize], numbers: &mut [f32]) {
        for (lora, adapter, half) in self.touching(tensor) {
            let read = |name: &str| lora.read(name);
            match half {
                Half::Weight => adapter.add_to_weight(numbers, dims, lora.strength, &read),
                Half::Bias => adapter.add_to_bias(numbers, lora.strength, &read),
            }
        }
    }

    /// What [`Self::apply`] does to the tensor of that canonical name; empty if nothing.
    pub fn key(&self, tensor: &str) -> PatchKey {
        let touching = self.touching(tensor);
        touching.map(|(lora, ..)| (lora.file.identity.clone(), lora.strength.to_bits())).collect()
    }

    /// Those that change a tensor. Nothing times a strength of 0 is nothing, and must not even
    /// round.
    fn touching(&self, tensor: &str) -> impl Iterator<Item = (&Lora, &Adapter, Half)> {
        let place = tensor.rsplit_once('.').and_then(|(module, part)| match part {
            "weight" => Some((module, Half::Weight)),
            "bias" => Some((module, Half::Bias)),
            _ => None,
        });
        let loras = self.loras.iter().filter(|lora| lora.strength != 0.0);
        loras.filter_map(move |lora| {
            let (module, half) = place?;
            let adapter = lora.adapters.get(module)?;
            let changes = match half {
                Half::Weight => adapter.changes_weight(),
                Half::Bias => adapter.changes_bias(),
            };
            changes.then_some((lora, adapter, half))
        })
    }
}

impl Lora {
    /// With the modules that found no place.
    fn open(
        lora: &LoraRef,
        modules: &[Module],
        family: &str,
    ) -> Result<(Self, Vec<String>), Error> {
        let file = TensorFile::open(&lora.name, &lora.path)?;
        let fault =
            |fault: Fault| Error::NotSupported { file: lora.name.clone(), what: fault.to_string() };
        let tensors = file.entries.iter().map(|(name, entry)| (name.as_str(), &*entry.dims));
        let sorted = Sorted::of(tensors, &file.metadata).map_err(fault)?;
        let matched = sorted.match_to(modules, family, &file.metadata).map_err(fault)?;
        let mut used = file.entries.iter().filter(|(name, _)| Key::of(name).is_ok());
        if let Some((tensor, entry)) = used.find(|(_, entry)| !is_readable(entry.dtype)) {
            let (tensor, dtype) = (tensor.clone(), format!("{:?}", entry.dtype));
            return Err(fault(Fault::WrongType { tensor, dtype }));
        }
        if let Some(first) = matched.unmatched.first() {
            let (file, merged) = (&lora.name, matched.adapters.len());
            let unmatched = matched.unmatched.len();
            tracing::warn!(
                "{file}: {merged} of its modules are merged; {unmatched} have no place in this {family} checkpoint, the first of them '{first}'"
            );
        }
        let (strength, adapters) = (lora.strength, matched.adapters);
        Ok((Self { file, strength, adapters }, matched.unmatched))
    }

    /// The numbers of a tensor, which is known to be there and of a type that is read.
    fn read(&self, name: &str) -> Vec<f32> {
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

/// Besides the types of weights, those that an alpha is stored as now and then.
fn is_readable(dtype: Dtype) -> bool {
    checkpoint::float_bytes(dtype).is_some()
        || matches!(dtype, Dtype::F64 | Dtype::I64 | Dtype::I32)
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}
