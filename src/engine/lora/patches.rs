//! The LoRAs of a pipeline, merged into one weight after another while it is loaded.

use std::sync::Arc;

use super::{
    LoraCache, Match,
    adapter::Adapter,
    file::{LoraFile, Recipient},
};
use crate::{
    engine::checkpoint::{self, Error, FileIdentity},
    modes::{LoraRef, LoraReport, OnLoraError},
};

/// LoRAs that were found to fit a checkpoint, in the order in which they are merged.
#[derive(Default)]
pub struct Patches {
    loras: Vec<Lora>,
}

struct Lora {
    /// As the user calls it.
    name: String,
    file: Arc<LoraFile>,
    strength: f32,
    matched: Arc<Match>,
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
    /// Opens the LoRAs and finds their places in a checkpoint. Looks at names and shapes alone.
    ///
    /// # Errors
    /// A LoRA that cannot be read or does not fit, unless such are to be skipped.
    pub fn of(
        loras: &[LoraRef],
        to: &Recipient<'_>,
        on_error: OnLoraError,
        cache: &mut LoraCache,
    ) -> Result<(Self, Vec<LoraReport>), Error> {
        let (mut patches, mut reports) = (Self::default(), Vec::new());
        for (index, lora) in loras.iter().enumerate() {
            let (name, strength) = (lora.name.clone(), lora.strength);
            let report = LoraReport { name, strength, merged: 0, unmatched: 0, skipped: None };
            match (cache.open(lora, to), on_error) {
                (Ok((file, matched)), _) => {
                    let (merged, unmatched) = (matched.adapters.len(), matched.unmatched.len());
                    reports.push(LoraReport { merged, unmatched, ..report });
                    let (name, strength) = (lora.name.clone(), lora.strength);
                    patches.loras.push(Lora { name, file, strength, matched });
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
        merged.any(|lora| checkpoint::says_lcm(&lora.name, &lora.file.file.metadata))
    }

    /// Merges them into the tensor of that canonical name and these dimensions, which are those of
    /// its module.
    pub fn apply(&self, tensor: &str, dims: &[usize], numbers: &mut [f32]) {
        for (lora, adapter, half) in self.touching(tensor) {
            let read = |name: &str| lora.file.read(name);
            match half {
                Half::Weight => adapter.add_to_weight(numbers, dims, lora.strength, &read),
                Half::Bias => adapter.add_to_bias(numbers, lora.strength, &read),
            }
        }
    }

    /// What [`Self::apply`] allocates meanwhile, at most. (Biases are small.)
    pub fn working_bytes(&self, tensor: &str, dims: &[usize]) -> u64 {
        let floats = self.touching(tensor).map(|(lora, adapter, half)| match half {
            Half::Weight => adapter.working_floats(dims, lora.strength),
            Half::Bias => 0,
        });
        (floats.max().unwrap_or(0) * size_of::<f32>()) as u64
    }

    /// What [`Self::apply`] does to the tensor of that canonical name; empty if nothing.
    pub fn key(&self, tensor: &str) -> PatchKey {
        let touching = self.touching(tensor);
        touching
            .map(|(lora, ..)| (lora.file.file.identity.clone(), lora.strength.to_bits()))
            .collect()
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
            let adapter = lora.matched.adapters.get(module)?;
            let changes = match half {
                Half::Weight => adapter.changes_weight(),
                Half::Bias => adapter.changes_bias(),
            };
            changes.then_some((lora, adapter, half))
        })
    }
}
