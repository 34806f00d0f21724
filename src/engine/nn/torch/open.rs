//! Which of libtorch's devices there are.

use crate::engine::backend::{self, Float};
use crate::modes::{Device, Precision};

/// What libtorch computes on, for what was wished; or why not, in a sentence for users.
pub fn open(device: Device, precision: Precision) -> Result<(backend::Torch, Vec<String>), String> {
    let cards = || if tch::Cuda::is_available() { tch::Cuda::device_count() as u32 } else { 0 };
    let card = match device {
        Device::Auto => (cards() > 0).then_some(0),
        Device::Cpu => None,
        Device::Cuda(card) => match cards() {
            0 => return Err(format!("device: {device} is asked for, and libtorch finds no NVIDIA card or no driver for one; device: auto takes the CPU then")),
            count if card >= count => return Err(format!("device: {device} is asked for, and there are {count} NVIDIA cards, counted from cuda:0")),
            _ => Some(card),
        },
        Device::Metal => return Err("device: metal is asked for, and libtorch is used on CPUs and NVIDIA cards alone; engine: candle has it".to_owned()),
    };
    let (precision, vae_precision) = match (precision, card) {
        // fp16 is too narrow for SDXL's autoencoder; bf16 is not.
        (Precision::Auto | Precision::Fp16, Some(_)) => (Float::Fp16, Float::Bf16),
        (Precision::Auto | Precision::Fp32, _) => (Float::Fp32, Float::Fp32),
        (Precision::Bf16, _) => (Float::Bf16, Float::Bf16),
        (Precision::Fp16, None) => {
            return Err(
                "precision: fp16 is asked for, and on a CPU there are fp32 and bf16".to_owned()
            );
        }
    };
    Ok((backend::Torch { card, precision, vae_precision }, Vec::new()))
}
