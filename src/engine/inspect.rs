//! What a file or folder of models is, by its headers alone: for lists that people choose from. Never
//! maps a file, since the daemon does this.

use std::path::Path;

use super::{
    checkpoint::{self, Access, Checkpoint, TensorFile, precision},
    lora::{Claim, Sorted},
};
use crate::modes::{CheckpointRef, Inspected, ModelKind, PipelineSpec};

/// Looks at what the user calls `name`; what cannot be used says why.
pub fn inspect(name: &str, path: &Path) -> Inspected {
    let spec = PipelineSpec::of(CheckpointRef { name: name.to_owned(), path: path.to_owned() });
    let problem = match Checkpoint::open(&spec, Access::Header) {
        Ok(checkpoint) => {
            return Inspected {
                kind: ModelKind::Checkpoint,
                family: Some(checkpoint.facts().family.name().to_owned()),
                precision: precision(checkpoint.tensors_of("unet")),
                problem: None,
            };
        }
        Err(problem) => problem,
    };
    let file = if path.is_dir() { None } else { TensorFile::open(name, path, Access::Header).ok() };
    let Some(file) = file else { return unusable(&problem) };
    let precision = precision(file.entries.values().map(|entry| (entry.dtype, entry.size_bytes())));
    let tensors = file.entries.iter().map(|(name, entry)| (name.as_str(), &entry.dims[..]));
    match Sorted::of(tensors, &file.metadata) {
        Ok(sorted) if !sorted.adapters.is_empty() => Inspected {
            kind: ModelKind::Lora,
            family: Claim::of(&file.metadata, &sorted).map(|claim| claim.base.name().to_owned()),
            precision,
            problem: None,
        },
        // Named as LoRAs are, and broken.
        Err(fault) => Inspected { precision, kind: ModelKind::Lora, ..unusable(&fault) },
        Ok(_) if checkpoint::is_vae(&file) => {
            Inspected { kind: ModelKind::Vae, family: None, precision, problem: None }
        }
        Ok(_) if checkpoint::is_upscaler(&file) => {
            Inspected { kind: ModelKind::Upscaler, family: None, precision, problem: None }
        }
        Ok(_) => Inspected { precision, ..unusable(&problem) },
    }
}

fn unusable(problem: &impl ToString) -> Inspected {
    let problem = Some(problem.to_string());
    Inspected { kind: ModelKind::Unknown, family: None, precision: None, problem }
}
