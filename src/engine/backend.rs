//! Which library computes, on which device, in which precision: plain data. [`super::nn::open`] finds
//! out what there is.

use crate::modes::Precision;

/// Where layers are loaded to, and thereby where all is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Candle's tensors and kernels of our own, in fp32.
    #[default]
    Cpu,
    /// Candle's own operations, for what it has kernels for.
    Candle(Candle),
    /// libtorch.
    #[cfg(feature = "libtorch")]
    Torch(Torch),
}

/// How candle computes by its own operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candle {
    pub device: CandleDevice,
    pub floats: Floats,
}

/// What candle has kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CandleDevice {
    /// Slower than the kernels of our own: to see that all is right without a card.
    Cpu,
    /// An NVIDIA card, in a build with the feature `cuda`.
    Cuda(u32),
    /// Apple's, in a build with the feature `metal`.
    Metal,
}

/// How libtorch computes.
#[cfg(feature = "libtorch")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torch {
    /// A card's number; `None` is the CPU.
    pub card: Option<u32>,
    pub floats: Floats,
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    Fp32,
    Bf16,
    Fp16,
}

/// How the numbers of a pipeline's networks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floats {
    pub unet: Float,
    pub vae: Float,
}

impl Floats {
    pub const EXACT: Self = Self::all(Float::Fp32);

    pub const fn all(float: Float) -> Self {
        Self { unet: float, vae: float }
    }

    /// Of a card, where `auto` is fp16. The autoencoder's numbers leave its range, and not bf16's.
    pub fn on_card(wish: Precision) -> Self {
        match wish {
            Precision::Auto | Precision::Fp16 => Self { unet: Float::Fp16, vae: Float::Bf16 },
            Precision::Bf16 => Self::all(Float::Bf16),
            Precision::Fp32 => Self::EXACT,
        }
    }

    /// Of that network; text encoders go with the UNet.
    pub fn of(self, component: &str) -> Float {
        if component == "vae" { self.vae } else { self.unet }
    }
}

impl Float {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 | Self::Fp16 => 2,
        }
    }
}

impl Backend {
    /// All that are built in, on the CPU in fp32: what they draw differs by the order of sums alone.
    pub fn all_exact() -> Vec<Self> {
        vec![
            Self::Cpu,
            Self::Candle(Candle { device: CandleDevice::Cpu, floats: Floats::EXACT }),
            #[cfg(feature = "libtorch")]
            Self::Torch(Torch { card: None, floats: Floats::EXACT }),
        ]
    }

    /// The library: `candle` or `libtorch`.
    pub fn engine(self) -> &'static str {
        match self {
            Self::Cpu | Self::Candle(_) => "candle",
            #[cfg(feature = "libtorch")]
            Self::Torch(_) => "libtorch",
        }
    }

    /// `cpu`, `cuda:0`.
    pub fn device(self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            Self::Candle(own) => match own.device {
                CandleDevice::Cpu => "cpu".to_owned(),
                CandleDevice::Cuda(card) => format!("cuda:{card}"),
                CandleDevice::Metal => "metal".to_owned(),
            },
            #[cfg(feature = "libtorch")]
            Self::Torch(torch) => {
                torch.card.map_or_else(|| "cpu".to_owned(), |card| format!("cuda:{card}"))
            }
        }
    }

    /// The card's number, if it is one that has memory of its own.
    pub fn card(self) -> Option<u32> {
        match self {
            Self::Cpu => None,
            Self::Candle(own) => match own.device {
                // Apple's have the host's memory.
                CandleDevice::Cpu | CandleDevice::Metal => None,
                CandleDevice::Cuda(card) => Some(card),
            },
            #[cfg(feature = "libtorch")]
            Self::Torch(torch) => torch.card,
        }
    }

    /// How the networks' numbers are stored.
    pub fn floats(self) -> Floats {
        match self {
            Self::Cpu => Floats::EXACT,
            Self::Candle(own) => own.floats,
            #[cfg(feature = "libtorch")]
            Self::Torch(torch) => torch.floats,
        }
    }
}
