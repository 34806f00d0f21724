//! Which library computes, on which device, in which precision: plain data. [`super::nn::open`] finds
//! out what there is.

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
    pub precision: Float,
    /// Of the autoencoder, whose numbers leave the range of fp16.
    pub vae_precision: Float,
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
    pub precision: Float,
    /// Of the autoencoder, whose numbers leave the range of fp16.
    pub vae_precision: Float,
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    Fp32,
    Bf16,
    Fp16,
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
            Self::Candle(Candle {
                device: CandleDevice::Cpu,
                precision: Float::Fp32,
                vae_precision: Float::Fp32,
            }),
            #[cfg(feature = "libtorch")]
            Self::Torch(Torch { card: None, precision: Float::Fp32, vae_precision: Float::Fp32 }),
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

    /// Of the autoencoder.
    pub fn vae_precision(self) -> Float {
        match self {
            Self::Cpu => Float::Fp32,
            Self::Candle(own) => own.vae_precision,
            #[cfg(feature = "libtorch")]
            Self::Torch(torch) => torch.vae_precision,
        }
    }

    /// Of the denoiser.
    pub fn precision(self) -> Float {
        match self {
            Self::Cpu => Float::Fp32,
            Self::Candle(own) => own.precision,
            #[cfg(feature = "libtorch")]
            Self::Torch(torch) => torch.precision,
        }
    }
}
