//! Which of libtorch's devices there are.

use super::{account, cuda};
use crate::{
    engine::backend::{self, Float, Floats},
    modes::{Device, Precision},
};

/// What libtorch computes on, for what was wished, and what is not as good as it could be; or why it
/// cannot be, in a sentence for users.
pub fn open(device: Device, precision: Precision) -> Result<(backend::Torch, Vec<String>), String> {
    account::begin();
    let (card, warnings) = match device {
        Device::Cpu => (None, Vec::new()),
        Device::Auto => match cuda::cards() {
            (0, why) => {
                (None, why.map(|why| format!("drawing on the CPU: {why}")).into_iter().collect())
            }
            (_, why) => (Some(0), why.into_iter().collect()),
        },
        Device::Cuda(card) => match cuda::cards() {
            (0, why) => {
                let why = why.unwrap_or_else(|| "libtorch finds no card".to_owned());
                return Err(format!(
                    "device: {device} is asked for: {why}; device: auto would take the CPU"
                ));
            }
            (count, _) if card >= count => {
                return Err(format!(
                    "device: {device} is asked for, and the last card is cuda:{}",
                    count - 1
                ));
            }
            (_, why) => (Some(card), why.into_iter().collect()),
        },
        Device::Metal => {
            return Err(
                "device: metal is asked for, and libtorch is used on CPUs and NVIDIA cards alone"
                    .to_owned(),
            );
        }
    };
    if let Some(card) = card {
        cuda::prepare(card).map_err(|error| format!("cuda:{card} cannot be used: {error}"))?;
    }
    let floats = match (card, precision) {
        (Some(_), _) => Floats::on_card(precision),
        (None, Precision::Auto | Precision::Fp32) => Floats::EXACT,
        (None, Precision::Bf16) => Floats::all(Float::Bf16),
        (None, Precision::Fp16) => {
            return Err(
                "precision: fp16 is asked for, and on a CPU there are fp32 and bf16".to_owned()
            );
        }
    };
    Ok((backend::Torch { card, floats }, warnings))
}
