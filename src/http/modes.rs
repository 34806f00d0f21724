//! `GET /api/modes`: what is declared.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Api, loras::LoraInfo};
use crate::modes::{
    LongPrompts, Mode, Modes, OnLoraError, PipelineSpec, Prediction, PromptSyntax, Spacing,
};

#[derive(Debug, Serialize, ToSchema)]
pub struct ModeList {
    /// What a request gets that names no mode, until somebody switches.
    default_mode: String,
    /// The largest image that a request may ask for.
    max_pixels: u64,
    modes: BTreeMap<String, ModeInfo>,
}

/// A mode as `modes.yaml` declares it, its defaults filled in.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModeInfo {
    /// Relative to `model_root`.
    #[schema(example = "sd15/dreamlike.safetensors")]
    model: String,
    /// Relative to `model_root`; `null`: the model's own.
    vae: Option<String>,
    loras: Vec<LoraInfo>,
    /// `fail` or `skip`.
    #[schema(value_type = String)]
    on_lora_error: OnLoraError,
    /// `epsilon` or `v`; `null`: what the model says.
    #[schema(value_type = Option<String>)]
    prediction: Option<Prediction>,
    #[schema(example = "512x512")]
    default_size: String,
    default_steps: u32,
    default_guidance: f32,
    guidance_rescale: f32,
    /// `null`: the model's own.
    default_scheduler: Option<&'static str>,
    /// `null`: the model's own.
    #[schema(value_type = Option<String>)]
    timestep_spacing: Option<Spacing>,
    default_negative_prompt: Option<String>,
    clip_skip: u32,
    /// `cut` or `chunk`.
    #[schema(value_type = String)]
    long_prompts: LongPrompts,
    /// `plain` or `weighted`.
    #[schema(value_type = String)]
    prompt_syntax: PromptSyntax,
    /// Whether its model stays loaded until it is unloaded by name.
    pinned: bool,
    /// Whether its model is loaded at the start.
    preload: bool,
    /// How long drawing with it may take; `null`: as long as the file's `timeout` lets it.
    #[schema(example = "600s")]
    timeout: Option<String>,
    /// As it was written.
    metadata: serde_json::Map<String, Value>,
}

/// Every mode that a request can name.
#[utoipa::path(get, path = "/api/modes", tag = "modes",
    responses((status = 200, body = ModeList)))]
pub async fn list(State(api): State<Api>) -> Json<ModeList> {
    Json(ModeList::from(&*api.config.current()))
}

impl From<&Modes> for ModeList {
    fn from(modes: &Modes) -> Self {
        let info = |(name, mode): (&String, &Arc<Mode>)| (name.clone(), ModeInfo::from(&**mode));
        Self {
            default_mode: modes.default_mode.clone(),
            max_pixels: modes.max_pixels,
            modes: modes.modes.iter().map(info).collect(),
        }
    }
}

impl From<&Mode> for ModeInfo {
    fn from(mode: &Mode) -> Self {
        let Mode { name: _, pipeline, defaults, pinned, preload, metadata, timeout } = mode;
        let PipelineSpec { checkpoint, vae, loras, on_lora_error, prediction, stamp: _ } = pipeline;
        Self {
            model: checkpoint.name.clone(),
            vae: vae.as_ref().map(|vae| vae.name.clone()),
            loras: loras.iter().map(LoraInfo::from).collect(),
            on_lora_error: *on_lora_error,
            prediction: *prediction,
            default_size: defaults.size.to_string(),
            default_steps: defaults.steps,
            default_guidance: defaults.guidance_scale,
            guidance_rescale: defaults.guidance_rescale,
            default_scheduler: defaults.scheduler.map(|id| id.name()),
            timestep_spacing: defaults.timestep_spacing,
            default_negative_prompt: defaults.negative_prompt.clone(),
            clip_skip: defaults.clip_skip,
            long_prompts: defaults.long_prompts,
            prompt_syntax: defaults.prompt_syntax,
            pinned: *pinned,
            preload: *preload,
            timeout: timeout.secs().map(|_| timeout.to_string()),
            metadata: metadata.clone(),
        }
    }
}
