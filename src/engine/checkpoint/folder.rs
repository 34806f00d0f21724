//! Checkpoints as diffusers saves them: a folder with `model_index.json`, and in it a folder for
//! each component with its configuration and one safetensors file or several.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
    sync::Arc,
};

use serde_json::Value;

use super::{
    Checkpoint, Error, Network, Networks,
    facts::{Facts, Family, Heads, says_lcm},
    file::{Access, TensorFile},
    ldm,
    names::Names,
};
use crate::modes::{Prediction, Spacing};

/// How weights are called, the most exact first: by diffusers, then by transformers.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const VARIANTS: [&str; 2] = ["", ".fp16"];
/// An index of SDXL's shards has 0.2 MB.
const MAX_JSON_BYTES: u64 = 16 << 20;

pub(super) fn open(name: &str, path: &Path, access: Access) -> Result<Checkpoint, Error> {
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
            components.insert(component, open_component(&inner, &path.join(component), access)?);
        }
    }
    let networks = Networks { name: name.to_owned(), components };
    Ok(Checkpoint { networks, facts })
}

/// One component's folder.
pub(super) fn open_component(name: &str, path: &Path, access: Access) -> Result<Network, Error> {
    let folder = Folder { name, path };
    let open =
        |file: String| TensorFile::open(&format!("{name}/{file}"), &path.join(&file), access);
    let files: Vec<_> = folder.weight_files()?.into_iter().map(open).collect::<Result<_, _>>()?;
    // What tells how they are called may be in any of them.
    let has = |prefix: &str| files.iter().any(|file| file.has_prefix(prefix));
    let names = if has("text_model.") {
        ldm::clip("text_model", "")
    } else if has("embeddings.") {
        ldm::clip("", "")
    } else if has("decoder.mid_block.attentions.0.query.") {
        ldm::old_vae()
    } else {
        Names::canonical()
    };
    Ok(Network { files: files.into_iter().map(|file| (Arc::new(file), names.clone())).collect() })
}

/// What latents are multiplied by for the autoencoder of this folder, where it says so.
pub(super) fn latent_scale(name: &str, path: &Path) -> Result<Option<f64>, Error> {
    let folder = Folder { name, path };
    if !path.join("config.json").is_file() {
        return Ok(None);
    }
    scaling_factor(&folder, "config.json", &folder.json("config.json")?)
}

struct Folder<'a> {
    /// As the user calls it.
    name: &'a str,
    path: &'a Path,
}

impl Folder<'_> {
    fn json(&self, file: &str) -> Result<Value, Error> {
        let name = format!("{}/{file}", self.name);
        let text = read_text(&self.path.join(file))
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
                return self.shards(&index);
            }
        }
        Err(Error::Unreadable {
            file: format!("{}/{}.safetensors", self.name, STEMS[0]),
            cause: ErrorKind::NotFound.into(),
        })
    }

    /// The files that an index names: of this folder, and of nothing else.
    fn shards(&self, index: &str) -> Result<Vec<String>, Error> {
        let refuse = |what: String| {
            Err(Error::NotSupported { file: format!("{}/{index}", self.name), what })
        };
        let content = self.json(index)?;
        let map = content.get("weight_map").and_then(Value::as_object);
        let files: BTreeSet<_> =
            map.into_iter().flatten().filter_map(|(_, file)| file.as_str()).collect();
        if let Some(file) = files.iter().find(|file| is_elsewhere(file)) {
            return refuse(format!("names '{file}', which is no file of its folder"));
        }
        if files.is_empty() {
            return refuse("names no files in its 'weight_map'".to_owned());
        }
        Ok(files.into_iter().map(str::to_owned).collect())
    }

    fn not_supported(&self, what: impl Into<String>) -> Error {
        Error::NotSupported { file: self.name.to_owned(), what: what.into() }
    }
}

/// The text of a file of a reasonable length.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_JSON_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_JSON_BYTES {
        true => Err(io::Error::other("it is larger than any configuration")),
        false => Ok(text),
    }
}

/// Whether a file's name leads out of its folder.
fn is_elsewhere(file: &str) -> bool {
    file.contains(['/', '\\']) || file == ".."
}

type Configs = BTreeMap<&'static str, Value>;

fn recognise(configs: &Configs) -> Option<Family> {
    configs.get("unet")?;
    match (configs.get("text_encoder"), configs.get("text_encoder_2")) {
        (Some(_), Some(_)) => Some(Family::Sdxl),
        (None, Some(_)) => Some(Family::SdxlRefiner),
        // Where it says nothing it is CLIP's own.
        (Some(text), None) => match text.get("hidden_act").and_then(Value::as_str) {
            None | Some("quick_gelu") => Some(Family::Sd1),
            Some(_) => Some(Family::Sd2),
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
    let latent_scale = scaling_factor(folder, "vae/config.json", config("vae"))?;
    Ok(Facts {
        heads: heads(folder, unet)?.unwrap_or(of_family.heads),
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

fn scaling_factor(folder: &Folder<'_>, file: &str, vae: &Value) -> Result<Option<f64>, Error> {
    let Some(value) = vae.get("scaling_factor").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    match value.as_f64().filter(|scale| *scale > 0.0 && scale.is_finite()) {
        Some(scale) => Ok(Some(scale)),
        None => Err(Error::NotSupported {
            file: format!("{}/{file}", folder.name),
            what: format!("has a 'scaling_factor' that is no positive number: {value}"),
        }),
    }
}

/// All schedulers stand on the noise that Stable Diffusion was trained with.
fn expect_betas(folder: &Folder<'_>, scheduler: &Value) -> Result<(), Error> {
    let text = |key: &str| scheduler.get(key).and_then(Value::as_str);
    let differs = |key: &str, expected: f64| {
        let value = scheduler.get(key).and_then(Value::as_f64);
        value.is_some_and(|value| (value - expected).abs() > 1e-9)
    };
    // Those of EDM and of flow matching know no betas at all.
    let has_sigmas = ["EDM", "FlowMatch"];
    if differs("beta_start", 0.00085)
        || differs("beta_end", 0.012)
        || differs("num_train_timesteps", 1000.0)
        || text("beta_schedule").is_some_and(|schedule| schedule != "scaled_linear")
        || scheduler.get("trained_betas").is_some_and(|betas| !betas.is_null())
        || text("_class_name").is_some_and(|class| has_sigmas.iter().any(|s| class.starts_with(s)))
    {
        let what = "was trained with another noise schedule than Stable Diffusion's (scaled_linear, 0.00085 to 0.012, 1000 timesteps)";
        return Err(folder.not_supported(what));
    }
    Ok(())
}

/// The UNet's heads, where its configuration says something of them. What it calls
/// `attention_head_dim` is their number: one for all levels, or one for each.
fn heads(folder: &Folder<'_>, unet: &Value) -> Result<Option<Heads>, Error> {
    let number = |key: &str| unet.get(key).filter(|heads| !heads.is_null());
    let Some(heads) = number("num_attention_heads").or_else(|| number("attention_head_dim")) else {
        return Ok(None);
    };
    let found = match heads {
        Value::Array(counts) => heads_of_levels(unet, counts),
        _ => heads.as_u64().map(|count| Heads::Count(usize::try_from(count).unwrap_or(0))),
    };
    found.map(Some).ok_or_else(|| Error::NotSupported {
        file: format!("{}/unet/config.json", folder.name),
        what: format!(
            "has attention heads that are neither of one number nor of one width: {heads}"
        ),
    })
}

/// From a number for each level; of those without attention it means nothing.
fn heads_of_levels(unet: &Value, counts: &[Value]) -> Option<Heads> {
    let widths = unet.get("block_out_channels")?.as_array()?;
    let blocks = unet.get("down_block_types").and_then(Value::as_array);
    let attends = |level: usize| {
        let block = blocks.and_then(|blocks| blocks.get(level)?.as_str());
        block.is_none_or(|block| block.contains("Attn"))
    };
    let levels = widths.iter().zip(counts).enumerate().filter(|(level, _)| attends(*level));
    let levels = levels
        .map(|(_, (width, count))| {
            let (width, count) = (width.as_u64()?, count.as_u64().filter(|count| *count > 0)?);
            Some((usize::try_from(width / count).ok()?, usize::try_from(count).ok()?))
        })
        .collect::<Option<Vec<_>>>()?;
    let (width, count) = *levels.first()?;
    if levels.iter().all(|(other, _)| *other == width) {
        Some(Heads::Width(width))
    } else if levels.iter().all(|(_, other)| *other == count) {
        Some(Heads::Count(count))
    } else {
        None
    }
}
