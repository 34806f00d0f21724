//! Single-file checkpoints: one safetensors file under LDM's names.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use safetensors::Dtype;

use super::{
    Checkpoint, Error, Network, Networks,
    facts::{Facts, Family, says_lcm},
    file::{Access, Header, TensorFile},
    ldm::{self, UNetShape},
    names::Names,
};
use crate::modes::Prediction;

const UNET: &str = "model.diffusion_model";
const VAE: &str = "first_stage_model";

/// Training steps of SD2-base, by which the reference tells it from the v-predicting SD2.
const SD2_BASE_STEPS: i64 = 875_000;

pub(super) fn open(name: &str, path: &Path, access: Access) -> Result<Checkpoint, Error> {
    let file = TensorFile::open(name, path, access)?;
    let not_supported = |what| Error::NotSupported { file: name.to_owned(), what };
    let family = recognise(&file).map_err(not_supported)?;
    let facts = facts(&file, family);
    let file = Arc::new(file);
    let component = |names: Names| Network { files: vec![(file.clone(), names)] };
    let mut components = BTreeMap::from([
        ("unet", component(UNetShape::of_ldm(&file, UNET).names().below(UNET))),
        ("vae", component(ldm::vae(&file, VAE))),
    ]);
    for (canonical, names) in text_encoders(&file, family) {
        components.insert(canonical, component(names));
    }
    let networks = Networks { name: name.to_owned(), components };
    Ok(Checkpoint { networks, facts })
}

fn text_encoders(file: &Header, family: Family) -> Vec<(&'static str, Names)> {
    let embedder = |i: usize, inner: &str| format!("conditioner.embedders.{i}.{inner}");
    let clip = |prefix: &str| {
        let has_model = file.has_prefix(&format!("{prefix}.text_model."));
        ldm::clip(if has_model { "text_model" } else { "" }, prefix)
    };
    match family {
        Family::Sd1 => vec![("text_encoder", clip("cond_stage_model.transformer"))],
        Family::Sd2 => vec![("text_encoder", ldm::sd2_clip(file, "cond_stage_model.model"))],
        Family::Sdxl => vec![
            ("text_encoder", clip(&embedder(0, "transformer"))),
            ("text_encoder_2", ldm::open_clip(file, &embedder(1, "model"), 0)),
        ],
        Family::SdxlRefiner => {
            vec![("text_encoder_2", ldm::open_clip(file, &embedder(0, "model"), 0))]
        }
    }
}

/// The family by its telltale names (never by counts, so that tiny ones are recognised too).
pub(super) fn recognise(file: &Header) -> Result<Family, String> {
    let has = |prefix: &str| file.has_prefix(prefix);
    let foreign = |what: &str| Err(format!("is {what}; SD1.x, SD2.x and SDXL are drawn with"));
    if has("edm_mean") || has("edm_vpred.") {
        foreign("an SDXL model of another noise schedule (EDM)")
    } else if has("conditioner.embedders.0.transformer.") {
        Ok(Family::Sdxl)
    } else if has("conditioner.embedders.0.model.") {
        Ok(Family::SdxlRefiner)
    } else if has("cond_stage_model.model.") {
        Ok(Family::Sd2)
    } else if has("cond_stage_model.transformer.") {
        Ok(Family::Sd1)
    } else if file.entries.keys().any(|name| name.contains("lora_") || name.contains(".lora.")) {
        Err("is a LoRA, not a checkpoint; name it under 'loras'".to_owned())
    } else if has("model.diffusion_model.joint_blocks.") {
        foreign("an SD3 model")
    } else if has("double_blocks.") || has("model.diffusion_model.double_blocks.") {
        foreign("a Flux model")
    } else if has("model.diffusion_model.") {
        Err("holds a UNet without its text encoder; a whole checkpoint is needed".to_owned())
    } else {
        Err("holds no Stable Diffusion model that is known here".to_owned())
    }
}

fn facts(file: &TensorFile, family: Family) -> Facts {
    let of_family = Facts::of(family);
    let has_marker = |name: &str| file.entries.contains_key(name);
    let in_channels = file.entries.get(&format!("{UNET}.input_blocks.0.0.weight"));
    let is_inpainting = in_channels.is_some_and(|entry| entry.dims.get(1) == Some(&9));
    let is_v = match file.metadata.get("modelspec.prediction_type").map(String::as_str) {
        Some("v") => true,
        Some("epsilon") => false,
        _ if has_marker("v_pred") => true,
        // As the reference tells them apart (`_legacy_load_scheduler`).
        _ => family == Family::Sd2 && !is_inpainting && global_step(file) != Some(SD2_BASE_STEPS),
    };
    Facts {
        prediction: if is_v { Prediction::V } else { Prediction::Epsilon },
        zero_terminal_snr: has_marker("ztsnr"),
        is_lcm: says_lcm(&file.name, &file.metadata)
            || file.has_prefix(&format!("{UNET}.time_embed.cond_proj.")),
        ..of_family
    }
}

/// How long the model was trained, where the file says so.
fn global_step(file: &TensorFile) -> Option<i64> {
    let entry = file.entries.get("global_step")?;
    let bytes = file.number(entry)?;
    match entry.dtype {
        Dtype::I64 => Some(i64::from_le_bytes(*bytes.first_chunk()?)),
        Dtype::I32 => Some(i32::from_le_bytes(*bytes.first_chunk()?).into()),
        Dtype::F32 => Some(f32::from_le_bytes(*bytes.first_chunk()?) as i64),
        _ => None,
    }
}
