//! What computes, and on what: the keys `engine`, `device` and `precision` of `modes.yaml`.

use std::{fmt, str::FromStr};

use super::names::named;

named! {
    /// The library that the networks run by.
    EngineChoice: "engine" {
        /// libtorch where it is built in and there is a card, else candle.
        Auto = "auto",
        /// Built in always: on a CPU with kernels of our own.
        Candle = "candle",
        /// PyTorch's C++ library; a build with the feature `libtorch` has it.
        Libtorch = "libtorch",
    }
}

named! {
    /// How the networks' numbers are stored and multiplied. Sums, and latents between steps, are fp32.
    Precision: "precision" {
        /// fp16 on a card, with the autoencoder in bf16; fp32 on a CPU.
        Auto = "auto",
        Fp32 = "fp32",
        Bf16 = "bf16",
        Fp16 = "fp16",
    }
}

/// What is wished for; what there is, is found out by who owns the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    pub engine: EngineChoice,
    pub device: Device,
    pub precision: Precision,
}

impl Default for Compute {
    fn default() -> Self {
        Self { engine: EngineChoice::Auto, device: Device::Auto, precision: Precision::Auto }
    }
}

/// Where the networks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The first card that the engine can use, else the CPU.
    Auto,
    Cpu,
    /// An NVIDIA card, counted from 0 as CUDA does.
    Cuda(u32),
    /// Apple's.
    Metal,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no device '{0}': write auto, cpu, cuda (the first card), cuda:1 or metal")]
pub struct InvalidDevice(String);

impl FromStr for Device {
    type Err = InvalidDevice;

    fn from_str(text: &str) -> Result<Self, InvalidDevice> {
        let card = |number: &str| number.parse().ok().filter(|card| *card < Self::MAX_CARDS);
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => text
                .strip_prefix("cuda:")
                .and_then(card)
                .map(Self::Cuda)
                .ok_or_else(|| InvalidDevice(text.to_owned())),
        }
    }
}

impl Device {
    /// CUDA's own limit (`C10_COMPILE_TIME_MAX_GPUS`).
    const MAX_CARDS: u32 = 120;
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(card) => write!(f, "cuda:{card}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_back() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7", "metal"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:120", "CPU"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
