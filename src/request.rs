//! What a caller asks for: the mode's defaults under the caller's own values, validated.

use std::{fmt, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::modes::{Defaults, LongPrompts, Mode, PromptSyntax, SchedulerId, Size, Spacing};

mod fields;

pub use fields::{FieldError, Fields, InvalidFields};

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
    pub source: Option<Source>,
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

/// The bytes of a PNG, JPEG or WebP file, known to be one; base64 where it is serialized.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What a caller sent: each value within its own bounds, those that are absent still open.
#[derive(Debug, Clone, Default, PartialEq, ToSchema)]
#[schema(as = GenerateRequest, title = "GenerateRequest")]
pub struct Overrides {
    /// A name from `GET /api/modes`; without it, the mode that was last switched to.
    pub mode: Option<String>,
    /// What to draw.
    #[schema(example = "a red fox in the snow", max_length = 16384)]
    pub prompt: String,
    /// What to keep away from; needs a guidance scale above 1.
    #[schema(max_length = 16384)]
    pub negative_prompt: Option<String>,
    /// Width and height in pixels, multiples of 8.
    #[schema(value_type = Option<String>, pattern = "^[0-9]+[xX][0-9]+$", example = "512x512")]
    pub size: Option<Size>,
    /// Denoising steps.
    #[schema(minimum = 1, maximum = 999)]
    pub num_inference_steps: Option<u32>,
    /// Classifier-free guidance; at 1 and below there is none.
    #[schema(minimum = 0, maximum = 100)]
    pub guidance_scale: Option<f32>,
    /// The same seed draws the same image; without one, one is drawn and returned in `X-Seed`.
    #[schema(minimum = 0)]
    pub seed: Option<u64>,
    /// The sampling algorithm: `ddim`, `pndm`, `euler`, `euler_a`, `heun`, `lms`, `dpmpp_2m`,
    /// `dpmpp_2m_sde` or `dpmpp_sde` (these three also with `_karras`), `unipc`, `lcm`.
    #[schema(value_type = Option<String>, example = "euler_a")]
    pub scheduler: Option<SchedulerId>,
    /// Layers of the text encoder to leave out at its end.
    #[schema(minimum = 0, maximum = 12)]
    pub clip_skip: Option<u32>,
}

/// The longest prompt, in bytes. (The text encoder reads its first 75 tokens.)
pub const MAX_PROMPT_BYTES: usize = 16 << 10;

const FIELDS: [&str; 9] = [
    "mode",
    "prompt",
    "negative_prompt",
    "size",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "scheduler",
    "clip_skip",
];

impl Overrides {
    /// Reads a request's JSON, or finds everything that is wrong with it. A `null` counts as absent.
    pub fn parse(body: &Value) -> Result<Self, InvalidFields> {
        let mut fields = Fields::read(body, &FIELDS)?;
        let overrides = Self {
            mode: fields.text("mode"),
            prompt: fields.prompt("prompt").unwrap_or_default(),
            negative_prompt: fields.prompt("negative_prompt"),
            size: fields.parsed("size"),
            num_inference_steps: fields
                .whole_number("num_inference_steps", 1..=Defaults::MAX_STEPS),
            guidance_scale: fields.guidance_scale("guidance_scale"),
            seed: fields.whole_number("seed", 0..=u64::MAX),
            scheduler: fields.parsed("scheduler"),
            clip_skip: fields.whole_number("clip_skip", 0..=Defaults::MAX_CLIP_SKIP),
        };
        fields.require("prompt");
        fields.finish(overrides)
    }

    /// Fills what the caller left open with the mode's defaults; the seed with `draw_seed`'s.
    pub fn resolve(self, mode: &Mode, draw_seed: impl FnOnce() -> u64) -> GenerateRequest {
        let defaults = &mode.defaults;
        GenerateRequest {
            mode: mode.name.clone(),
            prompt: self.prompt,
            negative_prompt: self.negative_prompt.or_else(|| defaults.negative_prompt.clone()),
            size: self.size.unwrap_or(defaults.size),
            steps: self.num_inference_steps.unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            guidance_rescale: defaults.guidance_rescale,
            n: 1,
            seed: self.seed.unwrap_or_else(draw_seed),
            scheduler: self.scheduler.or(defaults.scheduler),
            timestep_spacing: defaults.timestep_spacing,
            eta: 0.0,
            clip_skip: self.clip_skip.unwrap_or(defaults.clip_skip),
            long_prompts: defaults.long_prompts,
            prompt_syntax: defaults.prompt_syntax,
            source: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use serde_json::json;

    use super::*;
    use crate::modes::{CheckpointRef, PipelineSpec};

    fn mode() -> Mode {
        let checkpoint = CheckpointRef { name: "x".into(), path: PathBuf::from("/m/x") };
        Mode {
            name: "portrait".into(),
            pipeline: PipelineSpec::of(checkpoint),
            defaults: Defaults {
                size: Size { width: 512, height: 768 },
                steps: 20,
                guidance_scale: 7.5,
                scheduler: Some(SchedulerId::Ddim),
                negative_prompt: Some("blurry".into()),
                clip_skip: 1,
                ..Defaults::default()
            },
            metadata: serde_json::Map::new(),
        }
    }

    #[test]
    fn the_mode_fills_what_is_absent() {
        let sparse = Overrides::parse(&json!({"prompt": "a fox", "seed": null})).unwrap();
        assert_eq!(
            sparse.resolve(&mode(), || 7),
            GenerateRequest {
                negative_prompt: Some("blurry".into()),
                size: Size { width: 512, height: 768 },
                steps: 20,
                guidance_scale: 7.5,
                seed: 7,
                scheduler: Some(SchedulerId::Ddim),
                clip_skip: 1,
                ..GenerateRequest::of("portrait", "a fox")
            }
        );
    }

    #[test]
    fn the_caller_prevails() {
        let full = json!({
            "mode": "portrait", "prompt": "", "negative_prompt": "", "size": "64x128",
            "num_inference_steps": 1, "guidance_scale": 0, "seed": u64::MAX,
            "scheduler": "lcm", "clip_skip": 0,
        });
        assert_eq!(
            Overrides::parse(&full).unwrap().resolve(&mode(), || unreachable!()),
            GenerateRequest {
                negative_prompt: Some(String::new()),
                size: Size { width: 64, height: 128 },
                steps: 1,
                guidance_scale: 0.0,
                seed: u64::MAX,
                scheduler: Some(SchedulerId::Lcm),
                ..GenerateRequest::of("portrait", "")
            }
        );
    }

    #[test]
    fn every_wrong_field_is_reported_at_once() {
        let body = json!({
            "mode": 1, "negative_prompt": "x".repeat(MAX_PROMPT_BYTES + 1), "size": "500x500",
            "num_inference_steps": 0, "guidance_scale": "7", "seed": -1, "scheduler": "eulr",
            "clip_skip": 1.5, "steps": 4, "num_inference_step": 4, "a/b": 1,
        });
        let InvalidFields(errors) = Overrides::parse(&body).unwrap_err();
        let found: BTreeMap<_, _> =
            errors.iter().map(|e| (e.pointer.as_str(), e.detail.as_str())).collect();
        let expected = BTreeMap::from([
            ("/mode", "expected a string, found a number"),
            ("/prompt", "is required"),
            ("/negative_prompt", "is 16385 bytes long; 16384 is the most"),
            ("/size", "500x500: width and height must be positive multiples of 8"),
            ("/num_inference_steps", "0 is not a whole number from 1 to 999"),
            ("/guidance_scale", "expected a number, found a string"),
            ("/seed", "-1 is not a whole number from 0 to 18446744073709551615"),
            (
                "/scheduler",
                "there is no scheduler 'eulr'; did you mean 'euler'? \
                 (there are: ddim, pndm, euler, euler_a, heun, lms, dpmpp_2m, dpmpp_2m_karras, \
                 dpmpp_2m_sde, dpmpp_2m_sde_karras, dpmpp_sde, dpmpp_sde_karras, unipc, lcm)",
            ),
            ("/clip_skip", "1.5 is not a whole number from 0 to 12"),
            ("/steps", found["/steps"]),
            ("/num_inference_step", "unknown field; did you mean 'num_inference_steps'?"),
            ("/a~1b", found["/a~1b"]),
        ]);
        assert_eq!(found, expected);
        assert!(found["/a~1b"].starts_with("unknown field (known fields: mode, prompt,"));
    }

    #[test]
    fn a_value_at_its_bound() {
        let fits = |field: &str, value: serde_json::Value| {
            let mut body = json!({"prompt": "x"});
            body[field] = value;
            Overrides::parse(&body).is_ok()
        };
        for (field, value, ok) in [
            ("num_inference_steps", json!(999), true),
            ("num_inference_steps", json!(1000), false),
            ("num_inference_steps", json!(u64::MAX), false),
            ("guidance_scale", json!(100), true),
            ("guidance_scale", json!(100.1), false),
            ("guidance_scale", json!(-0.1), false),
            ("guidance_scale", json!(1e300), false),
            ("clip_skip", json!(12), true),
            ("clip_skip", json!(13), false),
            ("seed", json!(0), true),
            ("seed", json!(1.5), false),
            ("prompt", json!("x".repeat(MAX_PROMPT_BYTES)), true),
            ("prompt", json!("a\0b"), false),
            ("prompt", json!(["x"]), false),
        ] {
            assert_eq!(fits(field, value.clone()), ok, "{field}: {value:.40}");
        }
        assert!(Overrides::parse(&json!([])).is_err());
    }
}
