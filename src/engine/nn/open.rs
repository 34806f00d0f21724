//! From what is wished for to what there is.

use crate::{
    engine::backend::Backend,
    modes::{Compute, Device, EngineChoice, Precision},
};

/// What there is for what was wished.
#[derive(Debug)]
pub struct Opened {
    pub backend: Backend,
    /// What is not as good as it could be, and why.
    pub warnings: Vec<String>,
}

/// Why what was wished cannot be had, in a sentence for users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

/// Opens the device: only the process that computes may ask.
///
/// # Errors
/// What was asked for by name is not there.
pub fn open(wish: Compute) -> Result<Opened, Unavailable> {
    match (wish.engine, wish.device) {
        (EngineChoice::Libtorch, _) | (_, Device::Cuda(_) | Device::Metal) => {
            return Err(Unavailable("not yet".to_owned()));
        }
        (EngineChoice::Auto | EngineChoice::Candle, Device::Auto | Device::Cpu) => {}
    }
    match wish.precision {
        Precision::Auto | Precision::Fp32 => {}
        Precision::Bf16 | Precision::Fp16 => {
            let why = format!(
                "precision: {} is asked for, and candle computes in fp32 on a CPU; engine: libtorch has it",
                wish.precision
            );
            return Err(Unavailable(why));
        }
    }
    Ok(Opened { backend: Backend::Cpu, warnings: Vec::new() })
}
