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
    /// Where LoRAs are looked for that a request names.
    pub lora_root: PathBuf,
    /// The largest image that a request may ask for.
    pub max_pixels: u64,
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
    /// Drawn with instead of the checkpoint's own autoencoder.
    pub vae: Option<CheckpointRef>,
    /// Merged in this order.
    pub loras: Vec<LoraRef>,
    pub on_lora_error: OnLoraError,
    /// What the UNet predicts; `None`: what the checkpoint says or its family does.
    pub prediction: Option<Prediction>,
}

impl PipelineSpec {
    /// A checkpoint as it is.
    pub fn of(checkpoint: CheckpointRef) -> Self {
        Self {
            checkpoint,
            vae: None,
            loras: Vec::new(),
            on_lora_error: OnLoraError::Fail,
            prediction: None,
        }
    }
}

/// A type whose values have names that users write.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident: $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $type { $($(#[$variant_doc])* $variant,)+ }

        impl $type {
            pub const NAMES: &[&str] = &[$($name),+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<Self, UnknownName> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(UnknownName::new($what, name, Self::NAMES)),
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = UnknownName;

            fn try_from(name: String) -> Result<Self, UnknownName> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.name().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

/// A word that is none of those there are.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("there is no {what} '{name}'{} (there are: {})", did_you_mean(.nearest.as_deref()), .known.join(", "))]
pub struct UnknownName {
    pub what: &'static str,
    pub name: String,
    pub nearest: Option<String>,
    pub known: &'static [&'static str],
}

impl UnknownName {
    fn new(what: &'static str, name: &str, known: &'static [&'static str]) -> Self {
        let nearest = nearest_name(name, known.iter().copied());
        Self { what, name: name.to_owned(), nearest, known }
    }
}

named! {
    /// What happens where a LoRA cannot be merged into the checkpoint.
    OnLoraError: "choice" {
        /// The mode cannot be loaded.
        Fail = "fail",
        /// It draws without that LoRA, and says so.
        Skip = "skip",
    }
}

named! {
    /// What a UNet was trained to predict.
    Prediction: "prediction" {
        /// The noise, ε (Ho et al., 2020).
        Epsilon = "epsilon",
        /// The velocity, v (Salimans & Ho, 2022, arXiv:2202.00512).
        V = "v",
    }
}

named! {
    /// How a scheduler's timesteps are spread over the training's (Lin et al., 2023, table 2).
    Spacing: "timestep spacing" {
        Leading = "leading",
        Linspace = "linspace",
        Trailing = "trailing",
    }
}

named! {
    /// What becomes of a prompt that is longer than the text encoder's 75 tokens.
    LongPrompts: "choice" {
        /// It is cut, as the reference does.
        Cut = "cut",
        /// It is encoded in pieces of 75 tokens, side by side.
        Chunk = "chunk",
    }
}

named! {
    /// How a prompt is read.
    PromptSyntax: "prompt syntax" {
        /// Every character counts as it is.
        Plain = "plain",
        /// `(word)`, `(word:1.3)` and `[word]` weigh a word more or less.
        Weighted = "weighted",
    }
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

impl LoraRef {
    /// Strengths go from minus this to this.
    pub const MAX_STRENGTH: f32 = 100.0;
}

/// How a request names a LoRA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraName {
    /// The file, relative to `lora_root`.
    Path(String),
    /// The file's name without its extension, in whichever folder below `lora_root`; or the
    /// `adapter_name` of one that a mode has.
    Name(String),
}

/// What became of a LoRA when its pipeline was loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraReport {
    /// As in [`LoraRef::name`].
    pub name: String,
    pub strength: f32,
    /// Modules of the checkpoint that it changes.
    pub merged: usize,
    /// Modules that it has something for and the checkpoint does not have.
    pub unmatched: usize,
    /// Why it was left out, where the mode allows that.
    pub skipped: Option<String>,
}

/// What a mode fills in where a request is silent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    pub size: Size,
    pub steps: u32,
    pub guidance_scale: f32,
    /// How much of the contrast that guidance adds is taken back, 0 to 1 (Lin et al., 2023,
    /// arXiv:2305.08891, section 3.4).
    pub guidance_rescale: f32,
    /// `None`: the checkpoint's own.
    pub scheduler: Option<SchedulerId>,
    /// `None`: the checkpoint's own.
    pub timestep_spacing: Option<Spacing>,
    pub negative_prompt: Option<String>,
    /// Layers of the text encoder to skip from its end, counted as diffusers does:
    /// 0 is the last layer, 1 the one before it (which other tools call "clip skip 2").
    pub clip_skip: u32,
    pub long_prompts: LongPrompts,
    pub prompt_syntax: PromptSyntax,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            size: Size { width: 512, height: 512 },
            steps: 4,
            guidance_scale: 1.0,
            guidance_rescale: 0.0,
            scheduler: None,
            timestep_spacing: None,
            negative_prompt: None,
            clip_skip: 0,
            long_prompts: LongPrompts::Cut,
            prompt_syntax: PromptSyntax::Plain,
        }
    }
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
    /// The largest image that can be drawn at all, in pixels: 4096×4096.
    pub const MAX_PIXELS: u64 = 4096 * 4096;
    /// The largest one that is drawn unless `modes.yaml` says otherwise: 2048×2048.
    pub const DEFAULT_MAX_PIXELS: u64 = 2048 * 2048;

    pub fn new(width: u32, height: u32) -> Result<Self, InvalidSize> {
        if [width, height].iter().any(|side| *side == 0 || !side.is_multiple_of(8)) {
            return Err(InvalidSize::NotAMultipleOf8 { width, height });
        }
        if u64::from(width) * u64::from(height) > Self::MAX_PIXELS {
            return Err(InvalidSize::TooLarge { width, height });
        }
        Ok(Self { width, height })
    }

    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidSize {
    #[error("'{0}' is not a size; write it as WIDTHxHEIGHT, for example 512x512")]
    Unreadable(String),
    #[error("{width}x{height}: width and height must be positive multiples of 8")]
    NotAMultipleOf8 { width: u32, height: u32 },
    #[error("{width}x{height} is larger than {} pixels (4096x4096)", Size::MAX_PIXELS)]
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

named! {
    /// A sampling algorithm; `engine/scheduler` has them all.
    SchedulerId: "scheduler" {
        Ddim = "ddim",
        Pndm = "pndm",
        Euler = "euler",
        EulerA = "euler_a",
        Heun = "heun",
        Lms = "lms",
        Dpmpp2m = "dpmpp_2m",
        Dpmpp2mKarras = "dpmpp_2m_karras",
        Dpmpp2mSde = "dpmpp_2m_sde",
        Dpmpp2mSdeKarras = "dpmpp_2m_sde_karras",
        DpmppSde = "dpmpp_sde",
        DpmppSdeKarras = "dpmpp_sde_karras",
        Unipc = "unipc",
        Lcm = "lcm",
    }
}

/// Nobody means a longer name; and to compare two takes the product of their lengths.
const LONGEST_MEANT_BYTES: usize = 256;

/// The candidate that a person most likely meant, if any is close enough to say so.
pub fn nearest_name<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    if name.len() > LONGEST_MEANT_BYTES {
        return None;
    }
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
        for bad in ["", "512", "x", "512x", "-8x8", "0x8", "12x16", "512*512", "4096x4104"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_name_reads_back() {
        for name in SchedulerId::NAMES {
            assert_eq!(name.parse().map(SchedulerId::name), Ok(*name));
        }
        let error = "eulr".parse::<SchedulerId>().unwrap_err();
        assert!(
            error.to_string().starts_with("there is no scheduler 'eulr'; did you mean 'euler'?"),
            "{error}"
        );
    }
}
