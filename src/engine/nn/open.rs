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

/// Opens the device: only the process that computes may ask. What was built in and is asked for by
/// name must be there; `auto` takes what there is.
///
/// # Errors
/// What was asked for is not there.
pub fn open(wish: Compute) -> Result<Opened, Unavailable> {
    #[cfg(feature = "libtorch")]
    if let Some(opened) = open_torch(wish)? {
        return Ok(opened);
    }
    open_candle(wish)
}

/// `None`: candle is to do it.
#[cfg(feature = "libtorch")]
fn open_torch(wish: Compute) -> Result<Option<Opened>, Unavailable> {
    let is_asked = match (wish.engine, wish.device) {
        (EngineChoice::Candle, _) | (EngineChoice::Auto, Device::Cpu | Device::Metal) => {
            return Ok(None);
        }
        (EngineChoice::Libtorch, _) | (EngineChoice::Auto, Device::Cuda(_)) => true,
        (EngineChoice::Auto, Device::Auto) => false,
    };
    let (torch, warnings) = super::torch::open(wish.device, wish.precision).map_err(Unavailable)?;
    // On a CPU, candle's kernels are quicker in fp32, and what is not asked for by name is exact.
    let is_wanted = is_asked || torch.card.is_some() || wish.precision == Precision::Bf16;
    Ok(is_wanted.then_some(Opened { backend: Backend::Torch(torch), warnings }))
}

fn open_candle(wish: Compute) -> Result<Opened, Unavailable> {
    if wish.engine == EngineChoice::Libtorch {
        let why = "engine: libtorch is asked for, and this program was built without it (the feature 'libtorch')";
        return Err(Unavailable(why.to_owned()));
    }
    if let Device::Cuda(_) | Device::Metal = wish.device {
        let why = format!(
            "device: {} is asked for, and this program was built for the CPU alone",
            wish.device
        );
        return Err(Unavailable(why));
    }
    match wish.precision {
        Precision::Auto | Precision::Fp32 => {}
        Precision::Bf16 | Precision::Fp16 => {
            let why = format!(
                "precision: {} is asked for, and candle computes in fp32 on a CPU; engine: libtorch has bf16 there",
                wish.precision
            );
            return Err(Unavailable(why));
        }
    }
    Ok(Opened { backend: Backend::Cpu, warnings: Vec::new() })
}
