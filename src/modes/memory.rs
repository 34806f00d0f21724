//! What may stay loaded: the section `memory` and each mode's own wishes.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Eviction, Time};

/// The section `memory`. One gb is 2^30 bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// How many pipelines may be loaded at a time; `None`: as many as there is room for.
    pub max_models: Option<u32>,
    /// How many of them that requests' own LoRAs made: those are not known beforehand, and any
    /// client can make more.
    pub max_request_pipelines: u32,
    /// What the worker may allocate in all, in bytes; `None`: all that the device has.
    pub limit_bytes: Option<u64>,
    pub eviction: Eviction,
    /// What nobody has used for so long is unloaded, the current mode's too.
    pub idle_unload: IdleUnload,
    /// Whether a pipeline must draw one step, in finite numbers, before it is used.
    pub verify: bool,
    pub lora_cache: LoraCacheLimits,
    /// How much of the host's memory may keep weights of pipelines that have left a card; 0: none.
    pub host_cache_bytes: u64,
}

impl Memory {
    /// More is a mistake, here and below.
    pub const MAX_MODELS: u32 = 1000;
    pub const MAX_GB: f64 = 1e6;

    /// What a worker may keep.
    pub fn keep(&self) -> Keep {
        Keep { loras: self.lora_cache, host_bytes: self.host_cache_bytes }
    }
}

/// What a worker may keep besides what is loaded, to be quicker the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Keep {
    pub loras: LoraCacheLimits,
    /// Of the host's memory, for weights that have left a card.
    pub host_bytes: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            max_models: None,
            max_request_pipelines: 4,
            limit_bytes: None,
            eviction: Eviction::Lru,
            idle_unload: IdleUnload::Never,
            verify: false,
            lora_cache: LoraCacheLimits::default(),
            host_cache_bytes: 0,
        }
    }
}

const BYTES_OF_A_GB: f64 = (1_u64 << 30) as f64;

/// To the nearest byte.
pub fn bytes_of_gb(gb: f64) -> u64 {
    (gb * BYTES_OF_A_GB).round() as u64
}

/// Bytes in units of 2^30.
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / BYTES_OF_A_GB
}

/// The shortest number of gb that means so many bytes: 0.1 comes back as 0.1.
pub fn gb_of_bytes(bytes: u64) -> f64 {
    let gb = gib(bytes);
    let shortened = |digits: usize| format!("{gb:.digits$}").parse().ok();
    (0..=10).filter_map(shortened).find(|it| bytes_of_gb(*it) == bytes).unwrap_or(gb)
}

/// How many opened LoRA files are kept, and how many of their bytes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraCacheLimits {
    pub max_files: u32,
    pub max_bytes: u64,
}

impl LoraCacheLimits {
    pub const MAX_FILES: u32 = 10_000;
}

impl Default for LoraCacheLimits {
    fn default() -> Self {
        Self { max_files: 32, max_bytes: 4 << 30 }
    }
}

/// After how long without use a pipeline is unloaded: `90s`, `10m`, `2h`, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleUnload {
    Never,
    After(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a time: write 90s, 10m, 2h or 7d, or off")]
pub struct InvalidIdleUnload(String);

impl IdleUnload {
    pub fn after(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(time) => Some(time),
        }
    }
}

impl FromStr for IdleUnload {
    type Err = InvalidIdleUnload;

    fn from_str(text: &str) -> Result<Self, InvalidIdleUnload> {
        if text.trim() == "off" {
            return Ok(Self::Never);
        }
        let time: Time = text.parse().map_err(|_| InvalidIdleUnload(text.to_owned()))?;
        Ok(Self::After(time.duration()))
    }
}

impl fmt::Display for IdleUnload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("off"),
            Self::After(time) => write!(f, "{}s", time.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gb() {
        for (gb, bytes) in [
            (0.0, 0),
            (0.1, 107_374_182),
            (1.5, 3 << 29),
            (4.0, 4 << 30),
            (7.25, 29 << 28),
            (1e6, 1_000_000 << 30),
        ] {
            assert_eq!(bytes_of_gb(gb), bytes, "{gb}");
            assert_eq!(gb_of_bytes(bytes), gb, "{bytes}");
        }
        for bytes in [1, 12_345_678_901, 1 << 40, (1 << 50) - 1] {
            assert_eq!(bytes_of_gb(gb_of_bytes(bytes)), bytes);
        }
    }

    #[test]
    fn times() {
        let after = |seconds| Ok(IdleUnload::After(Duration::from_secs(seconds)));
        for (text, expected) in [
            ("off", Ok(IdleUnload::Never)),
            ("90s", after(90)),
            (" 10m ", after(600)),
            ("2 h", after(7200)),
            ("7d", after(604_800)),
        ] {
            assert_eq!(text.parse::<IdleUnload>(), expected, "{text}");
        }
        for text in ["", "10", "m", "0s", "-1s", "1.5h", "10y", "99999999999s", "never"] {
            assert!(text.parse::<IdleUnload>().is_err(), "{text}");
        }
        assert_eq!("10m".parse::<IdleUnload>().unwrap().to_string(), "600s");
    }
}
