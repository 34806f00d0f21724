//! What a caller asks for: the mode's defaults under the caller's own values, validated.
//!
//! The way: a body's JSON, or a [`Form`]'s parts, → [`Overrides`] (each value within its own
//! bounds) → [`GenerateRequest`] (nothing open any more). Knows nothing of files on disk, and does
//! not look into images: who may do that says how large they are.

use std::{fmt, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::modes::{LongPrompts, PromptSyntax, SchedulerId, Size, Spacing};

mod deadline;
mod fields;
mod form;
mod json;
mod lora_tags;
mod lora_wish;
mod overrides;
mod superres;
mod webhook;

pub use deadline::Deadline;
pub use fields::{FieldError, Fields, InvalidFields};
pub use form::Form;
pub use json::parse as parse_json;
pub use lora_wish::LoraWish;
pub use overrides::{Context, Files, Overrides};
pub use superres::{Format, Superres, UpscaleRequest, UpscaleWish};
pub use webhook::{Webhook, WebhookField, WebhookWish};

/// A field that a loaded model may be unable to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestField {
    Steps,
    Scheduler,
    ClipSkip,
    DenoiseStrength,
    InitImage,
    MaskImage,
    /// The one that is to be made larger.
    Image,
}

impl RequestField {
    /// As callers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steps => "num_inference_steps",
            Self::Scheduler => "scheduler",
            Self::ClipSkip => "clip_skip",
            Self::DenoiseStrength => "denoise_strength",
            Self::InitImage => "init_image",
            Self::MaskImage => "mask_image",
            Self::Image => "image",
        }
    }
}

/// The longest prompt, in bytes.
pub const MAX_PROMPT_BYTES: usize = 16 << 10;

/// An image to draw, fully resolved: whoever has the files draws the same image from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ResolvedRequest)]
pub struct GenerateRequest {
    pub mode: String,
    pub prompt: String,
    /// `None` is the family's own idea of "nothing": `""` for SD1.x.
    pub negative_prompt: Option<String>,
    #[schema(value_type = String, example = "512x512")]
    pub size: Size,
    /// Denoising steps, 1 ..= 999.
    pub steps: u32,
    /// Classifier-free guidance; at 1 and below there is none, and a step costs half as much.
    pub guidance_scale: f32,
    /// See [`crate::modes::Defaults::guidance_rescale`].
    pub guidance_rescale: f32,
    /// How many images, with this seed and the ones that follow it.
    pub n: u32,
    /// As `torch.Generator("cpu").manual_seed(seed)`, which takes the low 32 bits.
    pub seed: u64,
    /// `None`: the checkpoint's own.
    #[schema(value_type = Option<String>)]
    pub scheduler: Option<SchedulerId>,
    /// `None`: the checkpoint's own.
    #[schema(value_type = Option<String>)]
    pub timestep_spacing: Option<Spacing>,
    /// How much fresh noise `ddim` adds at each step: 0 is none, 1 as much as DDPM.
    pub eta: f32,
    /// See [`crate::modes::Defaults::clip_skip`].
    pub clip_skip: u32,
    #[schema(value_type = String)]
    pub long_prompts: LongPrompts,
    #[schema(value_type = String)]
    pub prompt_syntax: PromptSyntax,
    /// The image to start from (img2img, inpainting).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// How the image is made larger once it is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub superres: Option<Superres>,
}

impl GenerateRequest {
    /// One image of 512×512 in four steps, without guidance, from seed 0.
    pub fn of(mode: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self {
            mode: mode.into(),
            prompt: prompt.into(),
            negative_prompt: None,
            size: Size { width: 512, height: 512 },
            steps: 4,
            guidance_scale: 1.0,
            guidance_rescale: 0.0,
            n: 1,
            seed: 0,
            scheduler: None,
            timestep_spacing: None,
            eta: 0.0,
            clip_skip: 0,
            long_prompts: LongPrompts::Cut,
            prompt_syntax: PromptSyntax::Plain,
            source: None,
            superres: None,
        }
    }

    /// The images' seeds: the given one and those that follow it.
    pub fn seeds(&self) -> impl Iterator<Item = u64> {
        (0..self.n).map(|index| self.seed.wrapping_add(index.into()))
    }

    /// The same without the images that it draws over: all there is to say once it is drawn.
    pub fn forget_images(&mut self) {
        if let Some(source) = &mut self.source {
            source.forget_images();
        }
    }
}

/// What an image is drawn over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Source {
    #[schema(value_type = String)]
    pub image: EncodedImage,
    /// What is white in it is drawn anew, what is black stays.
    #[schema(value_type = Option<String>)]
    pub mask: Option<EncodedImage>,
    /// How much of it becomes noise: 0 nothing, 1 all of it.
    pub denoise_strength: f32,
}

impl Source {
    /// What its images take as files.
    pub fn bytes(&self) -> usize {
        self.image.0.len() + self.mask.as_ref().map_or(0, |mask| mask.0.len())
    }

    /// The same without the images' bytes: what is left to say once it has been drawn.
    pub fn forget_images(&mut self) {
        self.image = EncodedImage::default();
        self.mask = self.mask.as_ref().map(|_| EncodedImage::default());
    }
}

/// The bytes of a PNG, JPEG or WebP file, known to be one; base64 where it is serialized.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EncodedImage(pub Arc<[u8]>);

impl From<EncodedImage> for String {
    fn from(image: EncodedImage) -> Self {
        BASE64.encode(&image.0)
    }
}

impl TryFrom<String> for EncodedImage {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self(BASE64.decode(text)?.into()))
    }
}

impl fmt::Debug for EncodedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedImage({} bytes)", self.0.len())
    }
}
