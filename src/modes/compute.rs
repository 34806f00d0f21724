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

impl Compute {
    /// What of this a program that has so much built in cannot do, whatever the machine has: the key
    /// that asks for it, and what to do. One at a time, since the others depend on it.
    pub fn not_built_in(self, built: Built) -> Option<(&'static str, String)> {
        let Self { engine, device, precision } = self;
        if engine == EngineChoice::Libtorch && !built.libtorch {
            let why = "libtorch is not built into this program; build it with --features libtorch";
            return Some(("engine", why.to_owned()));
        }
        if let Some(how) = built.lacks_device(engine, device) {
            return Some(("device", format!("{device} is not built into this program; {how}")));
        }
        if built.has_half(engine, device) || !precision.is_half() {
            return None;
        }
        let how = match built.libtorch {
            true => "write engine: libtorch",
            false => "build it with --features libtorch",
        };
        let why = format!("{precision} is not what candle computes in on a CPU, but fp32; {how}");
        Some(("precision", why))
    }

    /// Whether it is known without a look at the machine what there will be: candle on the CPU.
    pub fn is_candle_on_cpu(self, built: Built) -> bool {
        match (self.engine, self.device) {
            (EngineChoice::Libtorch, _) | (_, Device::Cuda(_) | Device::Metal) => false,
            (_, Device::Cpu) => true,
            (EngineChoice::Candle, Device::Auto) => !built.cuda && !built.metal,
            (EngineChoice::Auto, Device::Auto) => built == Built::default(),
        }
    }

    /// The same with what is named elsewhere instead.
    #[must_use]
    pub fn with(self, other: ComputeWish) -> Self {
        Self {
            engine: other.engine.unwrap_or(self.engine),
            device: other.device.unwrap_or(self.device),
            precision: other.precision.unwrap_or(self.precision),
        }
    }
}

/// What is said of it besides the file, by arguments or the environment, which comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ComputeWish {
    pub engine: Option<EngineChoice>,
    pub device: Option<Device>,
    pub precision: Option<Precision>,
}

/// What a program has built in besides candle on the CPU: the features of its build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Built {
    pub libtorch: bool,
    pub cuda: bool,
    pub metal: bool,
}

impl Built {
    /// This program's.
    pub const IN: Self = Self {
        libtorch: cfg!(feature = "libtorch"),
        cuda: cfg!(feature = "cuda"),
        metal: cfg!(feature = "metal"),
    };

    /// What to do where that engine has no such device in this build.
    fn lacks_device(self, engine: EngineChoice, device: Device) -> Option<&'static str> {
        let (has, how) = match (device, engine) {
            (Device::Auto | Device::Cpu, _) => return None,
            (Device::Cuda(_), EngineChoice::Auto) => (
                self.libtorch || self.cuda,
                "build it with --features libtorch, or with --features cuda",
            ),
            (Device::Cuda(_), EngineChoice::Libtorch) => (self.libtorch, ""),
            (Device::Cuda(_), EngineChoice::Candle) => {
                (self.cuda, "with engine: candle, build it with --features cuda")
            }
            (Device::Metal, EngineChoice::Libtorch) => {
                (false, "write engine: candle, and build it with --features metal")
            }
            (Device::Metal, EngineChoice::Auto | EngineChoice::Candle) => {
                (self.metal, "build it with --features metal")
            }
        };
        (!has).then_some(how)
    }

    /// Whether 16 bits may do there: by libtorch, or on a card.
    fn has_half(self, engine: EngineChoice, device: Device) -> bool {
        let is_candles =
            engine == EngineChoice::Auto && matches!(device, Device::Cpu | Device::Metal);
        let by_libtorch = self.libtorch && engine != EngineChoice::Candle && !is_candles;
        let by_candle = engine != EngineChoice::Libtorch
            && match device {
                Device::Auto => self.cuda || self.metal,
                Device::Cpu => false,
                Device::Cuda(_) => self.cuda,
                Device::Metal => self.metal,
            };
        by_libtorch || by_candle
    }
}

impl Precision {
    fn is_half(self) -> bool {
        matches!(self, Self::Bf16 | Self::Fp16)
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

    /// As `libtorch/cuda:1/fp16`.
    fn compute(words: &str) -> Compute {
        let mut words = words.split('/');
        let mut next = || words.next().unwrap();
        Compute {
            engine: next().parse().unwrap(),
            device: next().parse().unwrap(),
            precision: next().parse().unwrap(),
        }
    }

    const NONE: Built = Built { libtorch: false, cuda: false, metal: false };
    const LIBTORCH: Built = Built { libtorch: true, ..NONE };
    const CUDA: Built = Built { cuda: true, ..NONE };
    const METAL: Built = Built { metal: true, ..NONE };

    #[test]
    fn what_is_not_built_in_is_named_with_what_to_build() {
        type Row<'a> = (&'a str, Built, Option<(&'a str, &'a str)>);
        let rows: &[Row<'_>] = &[
            ("auto/auto/auto", NONE, None),
            ("candle/cpu/fp32", NONE, None),
            ("libtorch/auto/auto", NONE, Some(("engine", "--features libtorch"))),
            ("libtorch/cuda/fp16", NONE, Some(("engine", "--features libtorch"))),
            ("libtorch/cuda:1/fp16", LIBTORCH, None),
            ("libtorch/cuda/auto", CUDA, Some(("engine", "--features libtorch"))),
            ("auto/cuda:1/auto", NONE, Some(("device", "libtorch, or with --features cuda"))),
            ("auto/cuda/auto", METAL, Some(("device", "libtorch, or with --features cuda"))),
            ("auto/cuda/auto", LIBTORCH, None),
            ("auto/cuda/fp16", CUDA, None),
            (
                "candle/cuda/auto",
                LIBTORCH,
                Some(("device", "engine: candle, build it with --features cuda")),
            ),
            ("candle/cuda/bf16", CUDA, None),
            ("auto/metal/auto", LIBTORCH, Some(("device", "--features metal"))),
            ("auto/metal/fp16", METAL, None),
            ("libtorch/metal/auto", LIBTORCH, Some(("device", "engine: candle"))),
            ("auto/auto/bf16", NONE, Some(("precision", "--features libtorch"))),
            ("auto/auto/fp16", LIBTORCH, None),
            ("auto/auto/fp16", CUDA, None),
            ("libtorch/cpu/bf16", LIBTORCH, None),
            ("auto/cpu/bf16", LIBTORCH, Some(("precision", "write engine: libtorch"))),
            ("candle/auto/bf16", LIBTORCH, Some(("precision", "write engine: libtorch"))),
            ("candle/cpu/fp16", CUDA, Some(("precision", "--features libtorch"))),
        ];
        for (words, built, expected) in rows {
            let found = compute(words).not_built_in(*built);
            match (&found, expected) {
                (None, None) => {}
                (Some((key, why)), Some((at, what))) if key == at && why.contains(what) => {}
                _ => panic!("{words} {built:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn the_machine_is_looked_at_only_where_something_else_than_the_cpu_may_come_of_it() {
        for (words, built, expected) in [
            ("auto/auto/auto", NONE, true),
            ("auto/auto/auto", LIBTORCH, false),
            ("auto/auto/auto", CUDA, false),
            ("auto/auto/auto", METAL, false),
            ("auto/cpu/auto", LIBTORCH, true),
            ("candle/auto/auto", LIBTORCH, true),
            ("candle/auto/auto", CUDA, false),
            ("libtorch/cpu/auto", LIBTORCH, false),
            ("candle/cuda/auto", CUDA, false),
        ] {
            assert_eq!(compute(words).is_candle_on_cpu(built), expected, "{words} {built:?}");
        }
    }

    #[test]
    fn what_is_named_elsewhere_comes_first() {
        let file = compute("libtorch/cuda:1/fp16");
        assert_eq!(file.with(ComputeWish::default()), file);
        let other = ComputeWish { device: Some(Device::Cpu), ..ComputeWish::default() };
        assert_eq!(file.with(other), compute("libtorch/cpu/fp16"));
    }
}
