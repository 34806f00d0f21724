//! What the user declared, once it is known to be valid: plain data, no files, no YAML.
//!
//! [`Modes`] is an immutable snapshot. A reload builds a new one; work that was accepted under
//! the old one keeps it.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Everything that `modes.yaml` says, resolved. `default_mode` is always a key of `modes`.
#[derive(Debug, Clone, PartialEq)]
pub struct Modes {
    pub default_mode: String,
    pub modes: BTreeMap<String, Arc<Mode>>,
}

impl Modes {
    /// The mode of that name, or the nearest name there is.
    pub fn get(&self, name: &str) -> Result<&Arc<Mode>, UnknownMode> {
        self.modes.get(name).ok_or_else(|| UnknownMode {
            name: name.to_owned(),
            nearest: nearest_name(name, self.modes.keys().map(String::as_str)),
        })
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("there is no mode '{name}'{}", did_you_mean(.nearest.as_deref()))]
pub struct UnknownMode {
    pub name: String,
    pub nearest: Option<String>,
}

/// One named way to draw: a checkpoint, its LoRAs and the defaults of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mode {
    pub name: String,
    pub pipeline: PipelineSpec,
    pub defaults: Defaults,
    /// Passed through to clients as it was written.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// What must be loaded before an image can be drawn; two modes with equal specs share a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelineSpec {
    pub checkpoint: CheckpointRef,
    pub loras: Vec<LoraRef>,
}

/// A checkpoint on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// As the user wrote it, relative to `model_root`; this is what clients are shown.
    pub name: String,
    pub path: PathBuf,
}

/// A LoRA on disk and how strongly it is applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraRef {
    /// As the user wrote it, relative to `lora_root`; this is what clients are shown.
    pub name: String,
    pub path: PathBuf,
    pub strength: f32,
    pub adapter_name: Option<String>,
}

/// What a mode fills in where a request is silent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    pub size: Size,
    pub steps: u32,
    pub guidance_scale: f32,
    /// `None`: the checkpoint family's own (see [`crate::engine::Family::default_scheduler`]).
    pub scheduler: Option<SchedulerId>,
    pub negative_prompt: Option<String>,
    /// Layers of the text encoder to skip from its end, counted as diffusers does:
    /// 0 is the last layer, 1 the one before it (which other tools call "clip skip 2").
    pub clip_skip: u32,
}

/// The bounds that a mode's defaults and a caller's own values keep to alike.
impl Defaults {
    pub const MAX_STEPS: u32 = 999;
    pub const MAX_GUIDANCE_SCALE: f32 = 100.0;
    pub const MAX_CLIP_SKIP: u32 = 12;
}

/// Width and height of an image in pixels, each a positive multiple of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl Size {
    /// The largest image that is drawn, in pixels: 2048×2048.
    pub const MAX_PIXELS: u64 = 2048 * 2048;

    pub fn new(width: u32, height: u32) -> Result<Self, InvalidSize> {
        if [width, height].iter().any(|side| *side == 0 || !side.is_multiple_of(8)) {
            return Err(InvalidSize::NotAMultipleOf8 { width, height });
        }
        if u64::from(width) * u64::from(height) > Self::MAX_PIXELS {
            return Err(InvalidSize::TooLarge { width, height });
        }
        Ok(Self { width, height })
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidSize {
    #[error("'{0}' is not a size; write it as WIDTHxHEIGHT, for example 512x512")]
    Unreadable(String),
    #[error("{width}x{height}: width and height must be positive multiples of 8")]
    NotAMultipleOf8 { width: u32, height: u32 },
    #[error("{width}x{height} is larger than {} pixels (2048x2048)", Size::MAX_PIXELS)]
    TooLarge { width: u32, height: u32 },
}

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let unreadable = || InvalidSize::Unreadable(text.to_owned());
        let (width, height) = text.split_once(['x', 'X']).ok_or_else(unreadable)?;
        let number = |s: &str| s.trim().parse::<u32>().map_err(|_| unreadable());
        Self::new(number(width)?, number(height)?)
    }
}

impl TryFrom<String> for Size {
    type Error = InvalidSize;

    fn try_from(text: String) -> Result<Self, InvalidSize> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// A sampling algorithm by the name that users write. `engine/scheduler` has one file for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SchedulerId {
    Ddim,
    Euler,
    EulerA,
    Dpmpp2m,
    Dpmpp2mKarras,
    Lcm,
}

impl SchedulerId {
    pub const ALL: [Self; 6] =
        [Self::Ddim, Self::Euler, Self::EulerA, Self::Dpmpp2m, Self::Dpmpp2mKarras, Self::Lcm];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerA => "euler_a",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::Dpmpp2mKarras => "dpmpp_2m_karras",
            Self::Lcm => "lcm",
        }
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "there is no scheduler '{name}'{} (there are: {})",
    did_you_mean(.nearest.as_deref()),
    SchedulerId::ALL.map(SchedulerId::name).join(", ")
)]
pub struct UnknownScheduler {
    pub name: String,
    pub nearest: Option<String>,
}

impl FromStr for SchedulerId {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, UnknownScheduler> {
        Self::ALL.into_iter().find(|id| id.name() == name).ok_or_else(|| UnknownScheduler {
            name: name.to_owned(),
            nearest: nearest_name(name, Self::ALL.map(Self::name)),
        })
    }
}

impl TryFrom<String> for SchedulerId {
    type Error = UnknownScheduler;

    fn try_from(name: String) -> Result<Self, UnknownScheduler> {
        name.parse()
    }
}

impl From<SchedulerId> for String {
    fn from(id: SchedulerId) -> Self {
        id.name().to_owned()
    }
}

impl fmt::Display for SchedulerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The candidate that a person most likely meant, if any is close enough to say so.
pub fn nearest_name<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// `"; did you mean 'x'?"`, or nothing.
pub fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean '{name}'?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!("512x768".parse(), Size::new(512, 768));
        for bad in ["", "512", "x", "512x", "-8x8", "0x8", "12x16", "512*512", "4096x4096"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_scheduler_name_reads_back() {
        for id in SchedulerId::ALL {
            assert_eq!(id.name().parse(), Ok(id));
        }
        let error = "eulr".parse::<SchedulerId>().unwrap_err();
        assert_eq!(error.nearest.as_deref(), Some("euler"));
    }
}
