//! Checkpoints as diffusers saves them: a folder with `model_index.json`, and in it a folder for
//! each component with its configuration and one safetensors file or several.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::Path,
    sync::Arc,
};

use serde_json::Value;

use super::{
    Checkpoint, Component, Error,
    facts::{Facts, Family, Heads, says_lcm},
    file::TensorFile,
    ldm,
    names::Names,
};
use crate::modes::{Prediction, Spacing};

/// How weights are called, the most exact first: by diffusers, then by transformers.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const VARIANTS: [&str; 2] = ["", ".fp16"];

pub(super) fn open(name: &str, path: &Path) -> Result<Checkpoint, Error> {
    let folder = Folder { name, path };
    if !path.join("model_index.json").is_file() {
        let what = "is a folder without a model_index.json; a checkpoint is a .safetensors file, or a folder that diffusers saved";
        return Err(folder.not_supported(what));
    }
    let index = folder.json("model_index.json")?;
    let has = |component: &str| {
        index.get(component).and_then(|value| value.get(1)).is_some_and(|class| !class.is_null())
    };
    let configs = BTreeMap::from_iter(
        ["unet", "vae", "scheduler", "text_encoder", "text_encoder_2"]
            .into_iter()
            .filter(|component| has(component))
            .map(|component| Ok((component, folder.config(component)?)))
            .collect::<Result<Vec<_>, Error>>()?,
    );
    let family = recognise(&configs).ok_or_else(|| {
        folder.not_supported("holds no Stable Diffusion pipeline that is known here")
    })?;
    let facts = facts(&folder, family, &index, &configs)?;
    let mut components = BTreeMap::new();
    for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        if configs.contains_key(component) {
            let inner = format!("{name}/{component}");
            components.insert(component, open_component(&inner, &path.join(component))?);
        }
    }
    Ok(Checkpoint { name: name.to_owned(), components, facts })
}

/// One component's folder.
pub(super) fn open_component(name: &str, path: &Path) -> Result<Component, Error> {
    let folder = Folder { name, path };
    let mut files = Vec::new();
    for file in folder.weight_files()? {
        let file = TensorFile::open(&format!("{name}/{file}"), &path.join(&file))?;
        let names = if file.has_prefix("embeddings.") || file.has_prefix("text_model.") {
            ldm::clip(&file, "")
        } else if file.has_prefix("decoder.mid_block.attentions.0.query.") {
            ldm::old_vae()
        } else {
            Names::canonical()
        };
        files.push((Arc::new(file), names));
    }
    Ok(Component { files })
}

struct Folder<'a> {
    /// As the user calls it.
    name: &'a str,
    path: &'a Path,
}

impl Folder<'_> {
    fn json(&self, file: &str) -> Result<Value, Error> {
        let name = format!("{}/{file}", self.name);
        let text = std::fs::read_to_string(self.path.join(file))
            .map_err(|cause| Error::Unreadable { file: name.clone(), cause })?;
        serde_json::from_str(&text).map_err(|error| Error::NotSupported {
            file: name,
            what: format!("is not JSON: {error}"),
        })
    }

    fn config(&self, component: &str) -> Result<Value, Error> {
        let file = if component == "scheduler" { "scheduler_config.json" } else { "config.json" };
        self.json(&format!("{component}/{file}"))
    }

    /// The files that hold a component's weights: one, or those that an index names.
    fn weight_files(&self) -> Result<Vec<String>, Error> {
        for (stem, variant) in STEMS.iter().flat_map(|stem| VARIANTS.map(|variant| (stem, variant)))
        {
            let file = format!("{stem}{variant}.safetensors");
            if self.path.join(&file).is_file() {
                return Ok(vec![file]);
            }
            let index = format!("{stem}.safetensors.index{variant}.json");
            if self.path.join(&index).is_file() {
                let index = self.json(&index)?;
                let map = index.get("weight_map").and_then(Value::as_object);
                let files: BTreeSet<_> =
                    map.into_iter().flatten().filter_map(|(_, file)| file.as_str()).collect();
                // Names of files in this folder, and of nothing else.
                return Ok(files
                    .into_iter()
                    .filter(|file| !file.contains(['/', '\\']))
                    .map(str::to_owned)
                    .collect());
            }
        }
        Err(Error::Unreadable {
            file: format!("{}/{}.safetensors", self.name, STEMS[0]),
            cause: ErrorKind::NotFound.into(),
        })
    }

    fn not_supported(&self, what: impl Into<String>) -> Error {
        Error::NotSupported { file: self.name.to_owned(), what: what.into() }
    }
}

type Configs = BTreeMap<&'static str, Value>;

fn recognise(configs: &Configs) -> Option<Family> {
    configs.get("unet")?;
    match (configs.get("text_encoder"), configs.get("text_encoder_2")) {
        (Some(_), Some(_)) => Some(Family::Sdxl),
        (None, Some(_)) => Some(Family::SdxlRefiner),
        (Some(text), None) => match text.get("hidden_act")?.as_str()? {
            "quick_gelu" => Some(Family::Sd1),
            _ => Some(Family::Sd2),
        },
        (None, None) => None,
    }
}

fn facts(
    folder: &Folder<'_>,
    family: Family,
    index: &Value,
    configs: &Configs,
) -> Result<Facts, Error> {
    let of_family = Facts::of(family);
    let none = Value::Null;
    let config = |component: &str| configs.get(component).unwrap_or(&none);
    let (unet, scheduler) = (config("unet"), config("scheduler"));
    expect_betas(folder, scheduler)?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let flag = |value: &Value, key: &str| value.get(key).and_then(Value::as_bool);
    let prediction = match text(scheduler, "prediction_type").as_deref() {
        None | Some("epsilon") => Prediction::Epsilon,
        Some("v_prediction") => Prediction::V,
        Some(other) => {
            let what = format!("predicts '{other}'; epsilon and v_prediction are drawn with");
            return Err(folder.not_supported(what));
        }
    };
    let is_lcm = text(scheduler, "_class_name").as_deref() == Some("LCMScheduler")
        || unet.get("time_cond_proj_dim").is_some_and(Value::is_number)
        || says_lcm(folder.name, &Default::default());
    let spacing: Option<Spacing> = text(scheduler, "timestep_spacing").and_then(|s| s.parse().ok());
    let latent_scale = config("vae").get("scaling_factor").and_then(Value::as_f64);
    if latent_scale.is_some_and(|scale| !(scale > 0.0 && scale.is_finite())) {
        return Err(folder.not_supported(
            "has a 'scaling_factor' that is no positive number in vae/config.json",
        ));
    }
    Ok(Facts {
        heads: heads(unet).unwrap_or(of_family.heads),
        prediction,
        zero_terminal_snr: flag(scheduler, "rescale_betas_zero_snr").unwrap_or(false),
        spacing: spacing.filter(|_| !is_lcm),
        is_lcm,
        latent_scale: latent_scale.unwrap_or(of_family.latent_scale),
        zero_negative: flag(index, "force_zeros_for_empty_prompt")
            .unwrap_or(of_family.zero_negative),
        ..of_family
    })
}

/// All schedulers stand on the noise that Stable Diffusion was trained with.
fn expect_betas(folder: &Folder<'_>, scheduler: &Value) -> Result<(), Error> {
    let differs = |key: &str, expected: f64| {
        let value = scheduler.get(key).and_then(Value::as_f64);
        value.is_some_and(|value| (value - expected).abs() > 1e-9)
    };
    let schedule = scheduler.get("beta_schedule").and_then(Value::as_str);
    if differs("beta_start", 0.00085)
        || differs("beta_end", 0.012)
        || schedule.is_some_and(|schedule| schedule != "scaled_linear")
    {
        let what = "was trained with another noise schedule than Stable Diffusion's (scaled_linear, 0.00085 to 0.012)";
        return Err(folder.not_supported(what));
    }
    Ok(())
}

/// The UNet's heads. What its configuration calls `attention_head_dim` is their number: a list of
/// them, one for each level, stands for heads of one width.
fn heads(unet: &Value) -> Option<Heads> {
    let heads = unet.get("num_attention_heads").filter(|heads| !heads.is_null());
    let heads = heads.or_else(|| unet.get("attention_head_dim"))?;
    if let Some(count) = heads.as_u64() {
        return Some(Heads::Count(usize::try_from(count).ok()?));
    }
    let widths = unet.get("block_out_channels")?.as_array()?;
    let width = |(width, count): (&Value, &Value)| width.as_u64()?.checked_div(count.as_u64()?);
    let mut each = widths.iter().zip(heads.as_array()?).map(width);
    let first = each.next()??;
    each.all(|other| other == Some(first)).then_some(Heads::Width(usize::try_from(first).ok()?))
}
