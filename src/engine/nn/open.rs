//! From what is wished for to what there is.

use super::candle;
use crate::{
    engine::backend::{Backend, Candle, CandleDevice, Floats},
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
    let before = match open_torch(wish)? {
        Torch::Opened(opened) => return Ok(opened),
        Torch::Left(warnings) => warnings,
    };
    #[cfg(not(feature = "libtorch"))]
    let before = Vec::new();
    let Opened { backend, warnings } = open_candle(wish)?;
    Ok(Opened { backend, warnings: [before, warnings].concat() })
}

#[cfg(feature = "libtorch")]
enum Torch {
    Opened(Opened),
    /// Candle is to do it, for these reasons.
    Left(Vec<String>),
}

#[cfg(feature = "libtorch")]
fn open_torch(wish: Compute) -> Result<Torch, Unavailable> {
    let is_asked = match (wish.engine, wish.device) {
        (EngineChoice::Candle, _) | (EngineChoice::Auto, Device::Cpu | Device::Metal) => {
            return Ok(Torch::Left(Vec::new()));
        }
        (EngineChoice::Libtorch, _) | (EngineChoice::Auto, Device::Cuda(_)) => true,
        (EngineChoice::Auto, Device::Auto) => false,
    };
    let (torch, warnings) = super::torch::open(wish.device, wish.precision).map_err(Unavailable)?;
    // On a CPU, candle's kernels are quicker in fp32, and what is not asked for by name is exact.
    let is_wanted = is_asked || torch.card.is_some() || wish.precision == Precision::Bf16;
    Ok(match is_wanted {
        true => Torch::Opened(Opened { backend: Backend::Torch(torch), warnings }),
        false => Torch::Left(warnings),
    })
}

fn open_candle(wish: Compute) -> Result<Opened, Unavailable> {
    if wish.engine == EngineChoice::Libtorch {
        let why = "engine: libtorch is asked for, and this program was built without it (the feature 'libtorch')";
        return Err(Unavailable(why.to_owned()));
    }
    let asked = match wish.device {
        Device::Cpu => None,
        Device::Cuda(card) => Some(CandleDevice::Cuda(card)),
        Device::Metal => Some(CandleDevice::Metal),
        Device::Auto if cfg!(feature = "cuda") => Some(CandleDevice::Cuda(0)),
        Device::Auto if cfg!(feature = "metal") => Some(CandleDevice::Metal),
        Device::Auto => None,
    };
    let mut warnings = Vec::new();
    if let Some(device) = asked {
        match (candle::open(device), wish.device) {
            (Ok(_), _) => {
                let floats = Floats::on_card(wish.precision);
                return Ok(Opened {
                    backend: Backend::Candle(Candle { device, floats }),
                    warnings,
                });
            }
            (Err(why), Device::Auto) => warnings.push(format!("drawing on the CPU: {why}")),
            (Err(why), device) => {
                return Err(Unavailable(format!("device: {device} is asked for: {why}")));
            }
        }
    }
    match wish.precision {
        Precision::Auto | Precision::Fp32 => Ok(Opened { backend: Backend::Cpu, warnings }),
        Precision::Bf16 | Precision::Fp16 => {
            let why = format!(
                "precision: {} is asked for, and candle computes in fp32 on a CPU; engine: libtorch has bf16 there",
                wish.precision
            );
            Err(Unavailable(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "libtorch")]
    use crate::engine::backend::Float;

    fn wish(engine: EngineChoice, device: Device, precision: Precision) -> Compute {
        Compute { engine, device, precision }
    }

    #[test]
    fn what_is_not_there_is_said_in_a_sentence() {
        for (wish, words) in [
            (
                wish(EngineChoice::Candle, Device::Cuda(99), Precision::Auto),
                "device: cuda:99 is asked for",
            ),
            (
                wish(EngineChoice::Candle, Device::Cpu, Precision::Bf16),
                "precision: bf16 is asked for",
            ),
            #[cfg(not(feature = "libtorch"))]
            (
                wish(EngineChoice::Libtorch, Device::Auto, Precision::Auto),
                "engine: libtorch is asked for",
            ),
            #[cfg(feature = "libtorch")]
            (
                wish(EngineChoice::Libtorch, Device::Cuda(99), Precision::Auto),
                "device: cuda:99 is asked for",
            ),
            #[cfg(feature = "libtorch")]
            (
                wish(EngineChoice::Libtorch, Device::Cpu, Precision::Fp16),
                "precision: fp16 is asked for",
            ),
        ] {
            let said = open(wish).unwrap_err().to_string();
            assert!(said.starts_with(words) && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn what_is_wished_is_opened() {
        let exact = open(wish(EngineChoice::Auto, Device::Cpu, Precision::Auto)).unwrap();
        assert_eq!((exact.backend, exact.warnings.len()), (Backend::Cpu, 0));
        #[cfg(feature = "libtorch")]
        for (precision, expected) in
            [(Precision::Auto, Floats::EXACT), (Precision::Bf16, Floats::all(Float::Bf16))]
        {
            let opened = open(wish(EngineChoice::Libtorch, Device::Cpu, precision)).unwrap();
            let Backend::Torch(torch) = opened.backend else { panic!("{opened:?}") };
            assert_eq!((torch.card, torch.floats), (None, expected));
        }
    }
}
