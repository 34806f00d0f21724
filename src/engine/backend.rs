//! Which library computes, on which device, in which precision: plain data. [`super::nn::open`] finds
//! out what there is.

/// Where layers are loaded to, and thereby where all is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Candle's tensors and kernels of our own, in fp32.
    #[default]
    Cpu,
    /// libtorch.
    #[cfg(feature = "libtorch")]
    Torch(Torch),
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
            #[cfg(feature = "libtorch")]
            Self::Torch(Torch { card: None, precision: Float::Fp32, vae_precision: Float::Fp32 }),
        ]
    }

    /// The library: `candle` or `libtorch`.
    pub fn engine(self) -> &'static str {
        match self {
            Self::Cpu => "candle",
            #[cfg(feature = "libtorch")]
            Self::Torch(_) => "libtorch",
        }
    }

    /// `cpu`, `cuda:0`.
    pub fn device(self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
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
            #[cfg(feature = "libtorch")]
            Self::Torch(torch) => torch.card,
        }
    }

    /// Of the denoiser.
    pub fn precision(self) -> Float {
        match self {
            Self::Cpu => Float::Fp32,
            #[cfg(feature = "libtorch")]
            Self::Torch(torch) => torch.precision,
        }
    }
}
