//! What a caller asks for: the mode's defaults under the caller's own values, validated.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::modes::{Defaults, Mode, SchedulerId, Size};

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
    /// As `torch.Generator("cpu").manual_seed(seed)`, which takes the low 32 bits.
    pub seed: u64,
    /// `None`: the checkpoint family's own.
    #[schema(value_type = Option<String>)]
    pub scheduler: Option<SchedulerId>,
    /// See [`crate::modes::Defaults::clip_skip`].
    pub clip_skip: u32,
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
    /// The sampling algorithm: `ddim`, `euler`, `euler_a`, `dpmpp_2m`, `dpmpp_2m_karras`, `lcm`.
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
            seed: self.seed.unwrap_or_else(draw_seed),
            scheduler: self.scheduler.or(defaults.scheduler),
            clip_skip: self.clip_skip.unwrap_or(defaults.clip_skip),
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
            pipeline: PipelineSpec { checkpoint, loras: vec![] },
            defaults: Defaults {
                size: Size { width: 512, height: 768 },
                steps: 20,
                guidance_scale: 7.5,
                scheduler: Some(SchedulerId::Ddim),
                negative_prompt: Some("blurry".into()),
                clip_skip: 1,
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
                mode: "portrait".into(),
                prompt: "a fox".into(),
                negative_prompt: Some("blurry".into()),
                size: Size { width: 512, height: 768 },
                steps: 20,
                guidance_scale: 7.5,
                seed: 7,
                scheduler: Some(SchedulerId::Ddim),
                clip_skip: 1,
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
                mode: "portrait".into(),
                prompt: String::new(),
                negative_prompt: Some(String::new()),
                size: Size { width: 64, height: 128 },
                steps: 1,
                guidance_scale: 0.0,
                seed: u64::MAX,
                scheduler: Some(SchedulerId::Lcm),
                clip_skip: 0,
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
                 (there are: ddim, euler, euler_a, dpmpp_2m, dpmpp_2m_karras, lcm)",
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
