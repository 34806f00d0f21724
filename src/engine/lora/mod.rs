//! LoRAs: small files that change a checkpoint's weights when it is loaded.
//!
//! Owns their names (`keys`), algorithms (`algorithm`, `delta`), the verdict whether one fits a
//! checkpoint ([`Sorted`], `base`), the files that stay open ([`LoraCache`]) and their merging
//! ([`Patches`]). A LoRA meets the checkpoint in the list of its modules under canonical names, and its weights one at a time, as
//! plain numbers. Knows nothing of layers, nor how a checkpoint's file is laid out.

mod adapter;
mod algorithm;
mod base;
mod cache;
mod delta;
mod file;
mod keys;
mod matching;
mod patches;
mod scales;
mod sorted;
#[cfg(test)]
mod tests;

pub use base::Claim;
pub use cache::LoraCache;
pub use file::Recipient;
pub use matching::Match;
pub use patches::{PatchKey, Patches};
pub use sorted::Sorted;

/// What is wrong with a LoRA, by its names and shapes alone. Tensors are named as in the file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    #[error("the tensor '{tensor}' {dims:?} {what}")]
    Malformed { tensor: String, dims: Vec<usize>, what: String },
    #[error(
        "the tensor '{tensor}' is stored as {dtype}; fp32, fp16, bf16 and fp8 (e4m3, e5m2) are read"
    )]
    WrongType { tensor: String, dtype: String },
    #[error(
        "the tensor '{tensor}' belongs to {algorithm}; LoRA, LoCon, LoHa, LoKr, DoRA and whole differences are merged"
    )]
    Unsupported { tensor: String, algorithm: &'static str },
    #[error("'{module}' is there twice, under two names")]
    Twice { module: String },
    #[error("is not a LoRA: none of its {tensors} tensors is named as a LoRA's are")]
    Empty { tensors: usize },
    /// The whole sentence.
    #[error("{0}")]
    Foreign(String),
}
