//! What a caller sent, and how it becomes a request that leaves nothing open.

use std::ops::RangeInclusive;

use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Deadline, EncodedImage, FieldError, Fields, Format, GenerateRequest, InvalidFields, LoraWish,
    Source, Superres, WebhookField, WebhookWish,
    deadline::DeadlineField,
    lora_tags,
    lora_wish::LoraField,
    superres::{ANSWER_FIELDS, read_answer_fields},
};
use crate::modes::{CheckpointRef, Defaults, Mode, SchedulerId, Size, Spacing};

#[cfg(test)]
mod tests;

/// What a caller sent: each value within its own bounds, those that are absent still open.
#[derive(Debug, Clone, Default, PartialEq, ToSchema)]
#[schema(as = GenerateRequest, title = "GenerateRequest")]
pub struct Overrides {
    /// A name from `GET /api/modes`; without it, the mode that was last switched to.
    pub mode: Option<String>,
    /// What to draw. `<lora:NAME:STRENGTH>` in it draws with that LoRA, as an entry of `loras`
    /// does, and is not read as text.
    #[schema(example = "a red fox in the snow", max_length = 16384)]
    pub prompt: String,
    /// What to keep away from; needs a guidance scale above 1. A `<lora:…>` in it is refused.
    #[schema(max_length = 16384)]
    pub negative_prompt: Option<String>,
    /// Width and height in pixels, multiples of 8. Without it the init image's own, each side
    /// rounded down to a multiple of 8, or else the mode's.
    #[schema(value_type = Option<String>, pattern = "^[0-9]+[xX][0-9]+$", example = "512x512")]
    pub size: Option<Size>,
    /// How many images, of this seed and those that follow it; more than one are answered as JSON.
    #[schema(minimum = 1, maximum = 8)]
    pub n: Option<u32>,
    /// Denoising steps.
    #[schema(minimum = 1, maximum = 999)]
    pub num_inference_steps: Option<u32>,
    /// Classifier-free guidance; at 1 and below there is none.
    #[schema(minimum = 0, maximum = 100)]
    pub guidance_scale: Option<f32>,
    /// How much of the contrast that guidance adds is taken back (arXiv:2305.08891).
    #[schema(minimum = 0, maximum = 1)]
    pub guidance_rescale: Option<f32>,
    /// The same seed draws the same image; without one, one is drawn and returned in `X-Seed`.
    #[schema(minimum = 0)]
    pub seed: Option<u64>,
    /// The sampling algorithm: `ddim`, `pndm`, `euler`, `euler_a`, `heun`, `lms`, `dpmpp_2m`,
    /// `dpmpp_2m_karras`, `dpmpp_2m_sde`, `dpmpp_2m_sde_karras`, `dpmpp_sde`, `dpmpp_sde_karras`,
    /// `unipc`, `lcm`.
    #[schema(value_type = Option<String>, example = "euler_a")]
    pub scheduler: Option<SchedulerId>,
    /// How its timesteps are spread: `leading`, `linspace` or `trailing`.
    #[schema(value_type = Option<String>, example = "trailing")]
    pub timestep_spacing: Option<Spacing>,
    /// How much fresh noise `ddim` adds at each step.
    #[schema(minimum = 0, maximum = 1)]
    pub eta: Option<f32>,
    /// Layers of the text encoder to leave out at its end.
    #[schema(minimum = 0, maximum = 12)]
    pub clip_skip: Option<u32>,
    /// LoRAs for this image alone, merged after the mode's own.
    #[schema(value_type = Option<Vec<LoraField>>)]
    pub loras: Vec<LoraWish>,
    /// An image to start from: a PNG, JPEG or WebP file in base64, with or without a `data:` prefix.
    #[schema(value_type = Option<String>)]
    pub init_image: Option<EncodedImage>,
    /// The same for a mask over the init image: white is drawn anew, black stays.
    #[schema(value_type = Option<String>)]
    pub mask_image: Option<EncodedImage>,
    /// How much of the init image becomes noise: 0 nothing, 1 all. By default 0.8, with a mask 1.
    #[schema(minimum = 0, maximum = 1)]
    pub denoise_strength: Option<f32>,
    /// Words of yours to find the job by: up to 16.
    #[schema(example = json!(["covers", "draft"]))]
    pub tags: Vec<String>,
    /// When it is drawn, and not what: the greater one comes first. By default 0.
    #[schema(minimum = -10, maximum = 10)]
    pub priority: Option<i8>,
    /// Told over HTTP when the job has ended: a POST of what `GET /api/jobs/{id}` answers.
    #[schema(value_type = Option<WebhookField>)]
    pub webhook: Option<WebhookWish>,
    /// Whether the image is made larger once it is drawn, by what modes.yaml names as `superres`.
    pub superres: Option<bool>,
    /// A power of two: 1, 2 and 3 make each side 2, 4 and 8 times as long. By default 1.
    #[schema(minimum = 1, maximum = 3)]
    pub superres_magnitude: Option<u32>,
    /// What it is sent as, whatever `Accept` says: `png`, `jpeg` or `webp`; `superres_quality` is a
    /// JPEG's, 1 to 100, by default 92.
    #[schema(value_type = Option<String>, example = "jpeg")]
    pub superres_format: Option<Format>,
    /// By when it is wanted: seconds from now, or a time as `2030-01-31T18:00:00Z`. If it has not
    /// ended by then, it fails.
    #[schema(value_type = Option<DeadlineField>)]
    pub deadline: Option<Deadline>,
    /// How many seconds drawing may take, from the prompt to the last image; the mode's own
    /// `timeout`, where it is shorter, holds as well.
    #[schema(minimum = 1, maximum = 86400)]
    pub timeout: Option<u32>,
}

/// Images that came as files beside the fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Files {
    pub init_image: Option<EncodedImage>,
    pub mask_image: Option<EncodedImage>,
    /// That is to be made larger.
    pub image: Option<EncodedImage>,
}

/// What a request is resolved against.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub mode: &'a Mode,
    /// See [`crate::modes::Modes::max_pixels`].
    pub max_pixels: u64,
    /// Width and height of the init image, where there is one.
    pub init_image: Option<(u32, u32)>,
    /// See [`crate::modes::Modes::superres`].
    pub superres: Option<&'a CheckpointRef>,
}

const FIELDS: [&str; 26] = [
    "mode",
    "prompt",
    "negative_prompt",
    "size",
    "n",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "seed",
    "scheduler",
    "timestep_spacing",
    "eta",
    "clip_skip",
    "loras",
    "init_image",
    "mask_image",
    "denoise_strength",
    "tags",
    "priority",
    "webhook",
    "superres",
    "superres_magnitude",
    "superres_format",
    "superres_quality",
    "deadline",
    "timeout",
];

impl Overrides {
    /// The most images of one request.
    pub const MAX_IMAGES: u32 = 8;
    /// What all images of a request may have together.
    pub const MAX_TOTAL_PIXELS: u64 = 4 * 2048 * 2048;

    /// As many as a job may have.
    pub const MAX_TAGS: usize = 16;

    pub const PRIORITIES: RangeInclusive<i8> = -10..=10;
    /// A day.
    pub const MAX_TIMEOUT_SECS: u32 = 86_400;

    /// Reads a request's JSON, or finds everything that is wrong with it. A `null` counts as absent.
    pub fn parse(body: &Value) -> Result<Self, InvalidFields> {
        Self::parse_with(body, Files::default())
    }

    /// As [`Overrides::parse`], with images that came beside the JSON.
    pub fn parse_with(body: &Value, files: Files) -> Result<Self, InvalidFields> {
        let mut fields = Fields::read(body, &FIELDS)?;
        let prompt = fields.prompt("prompt").unwrap_or_default();
        let loras = LoraWish::read_all(&mut fields, &prompt);
        let unit = 0.0..=1.0;
        let superres = fields.flag("superres");
        let (superres_magnitude, superres_format) = read_answer_fields(&mut fields);
        if superres != Some(true) {
            for name in ANSWER_FIELDS {
                if fields.get(name).is_some() {
                    fields.error(name, "needs 'superres': true");
                }
            }
        }
        if files.image.is_some() {
            fields.error("image", "unknown field; did you mean 'init_image'?");
        }
        let overrides = Self {
            mode: fields.text("mode"),
            prompt,
            negative_prompt: negative_prompt(&mut fields),
            size: fields.parsed("size"),
            n: fields.whole_number("n", 1..=Self::MAX_IMAGES),
            num_inference_steps: fields
                .whole_number("num_inference_steps", 1..=Defaults::MAX_STEPS),
            guidance_scale: fields.number("guidance_scale", 0.0..=Defaults::MAX_GUIDANCE_SCALE),
            guidance_rescale: fields.number("guidance_rescale", unit.clone()),
            seed: fields.whole_number("seed", 0..=u64::MAX),
            scheduler: fields.parsed("scheduler"),
            timestep_spacing: fields.parsed("timestep_spacing"),
            eta: fields.number("eta", unit.clone()),
            clip_skip: fields.whole_number("clip_skip", 0..=Defaults::MAX_CLIP_SKIP),
            loras,
            init_image: fields.image("init_image", files.init_image),
            mask_image: fields.image("mask_image", files.mask_image),
            denoise_strength: fields.number("denoise_strength", unit),
            tags: fields.texts("tags", Self::MAX_TAGS),
            priority: fields.whole_number("priority", Self::PRIORITIES),
            webhook: WebhookWish::read(&mut fields, "webhook"),
            superres,
            superres_magnitude,
            superres_format,
            deadline: Deadline::read(&mut fields, "deadline"),
            timeout: fields.whole_number("timeout", 1..=Self::MAX_TIMEOUT_SECS),
        };
        fields.require("prompt");
        if overrides.init_image.is_none() && fields.get("init_image").is_none() {
            let needing = [
                ("mask_image", overrides.mask_image.is_some()),
                ("denoise_strength", overrides.denoise_strength.is_some()),
            ];
            for (name, _) in needing.iter().filter(|(_, is_there)| *is_there) {
                fields.error(name, "needs an init_image");
            }
        }
        fields.finish(overrides)
    }

    /// Fills what the caller left open with the mode's defaults, the seed with `draw_seed`'s, and
    /// takes the LoRAs' tags out of the prompt. Refuses what is too large.
    pub fn resolve(
        self,
        context: Context,
        draw_seed: impl FnOnce() -> u64,
    ) -> Result<GenerateRequest, InvalidFields> {
        let size = self.resolved_size(context)?;
        let superres = self.resolved_superres(context, size)?;
        let Context { mode, .. } = context;
        let defaults = &mode.defaults;
        let source = self.init_image.map(|image| {
            let by_default = if self.mask_image.is_some() { 1.0 } else { 0.8 };
            let denoise_strength = self.denoise_strength.unwrap_or(by_default);
            Source { image, mask: self.mask_image, denoise_strength }
        });
        Ok(GenerateRequest {
            mode: mode.name.clone(),
            prompt: lora_tags::without(&self.prompt),
            negative_prompt: self.negative_prompt.or_else(|| defaults.negative_prompt.clone()),
            size,
            steps: self.num_inference_steps.unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            guidance_rescale: self.guidance_rescale.unwrap_or(defaults.guidance_rescale),
            n: self.n.unwrap_or(1),
            seed: self.seed.unwrap_or_else(draw_seed),
            scheduler: self.scheduler.or(defaults.scheduler),
            timestep_spacing: self.timestep_spacing.or(defaults.timestep_spacing),
            eta: self.eta.unwrap_or(0.0),
            clip_skip: self.clip_skip.unwrap_or(defaults.clip_skip),
            long_prompts: defaults.long_prompts,
            prompt_syntax: defaults.prompt_syntax,
            source,
            superres,
        })
    }

    fn resolved_superres(
        &self,
        context: Context,
        size: Size,
    ) -> Result<Option<Superres>, InvalidFields> {
        if self.superres != Some(true) {
            return Ok(None);
        }
        let magnitude = self.superres_magnitude.unwrap_or(1);
        let refuse = |detail| InvalidFields(vec![FieldError::of("superres_magnitude", detail)]);
        Superres::check(size.into(), self.n.unwrap_or(1), magnitude).map_err(refuse)?;
        let model = context.superres.cloned();
        Ok(Some(Superres { magnitude, model, format: self.superres_format }))
    }

    /// The asked size, else the init image's, else the mode's; within what is allowed.
    fn resolved_size(&self, context: Context) -> Result<Size, InvalidFields> {
        let refuse = |pointer: &str, detail: String| {
            Err(InvalidFields(vec![FieldError { pointer: pointer.to_owned(), detail }]))
        };
        let (pointer, size) = match (self.size, context.init_image) {
            (Some(size), _) => ("/size", size),
            (None, Some((width, height))) => match Size::new(width & !7, height & !7) {
                Ok(size) => ("/init_image", size),
                Err(_) if width < 8 || height < 8 => {
                    let detail = format!("is {width}x{height}; 8x8 is the least");
                    return refuse("/init_image", detail);
                }
                Err(error) => return refuse("/init_image", format!("{error}; name a 'size'")),
            },
            (None, None) => ("/size", context.mode.defaults.size),
        };
        let max_pixels = context.max_pixels;
        if size.pixels() > max_pixels {
            let hint = if pointer == "/size" { "" } else { "; name a smaller 'size'" };
            let detail =
                format!("{size} is more than the {max_pixels} pixels that are allowed{hint}");
            return refuse(pointer, detail);
        }
        let n = self.n.unwrap_or(1);
        let most = Self::MAX_TOTAL_PIXELS / size.pixels();
        if u64::from(n) > most {
            let detail = format!("{n} images of {size} are too many at once; {most} are the most");
            return refuse("/n", detail);
        }
        Ok(size)
    }
}

/// A tag in it is refused: nobody could mean a LoRA to be merged for the things to keep away from.
fn negative_prompt(fields: &mut Fields) -> Option<String> {
    let text = fields.prompt("negative_prompt")?;
    if lora_tags::all(&text).next().is_some() {
        fields.error("negative_prompt", "a <lora:…> belongs into the prompt or into 'loras'");
    }
    Some(text)
}
