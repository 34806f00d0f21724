//! Folders as diffusers saves them, in all the ways that it does, and what is refused of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use diffused::{
    engine::{
        Prepared,
        checkpoint::{Facts, Heads},
    },
    modes::{CheckpointRef, PipelineSpec},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{
    recipe::{Recipe, write},
    support::{draw, open, refused, spec},
};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

/// A scratch folder and the model "x" in it.
fn folder(model: &str) -> (TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("x");
    let scheduler = if model == "sd2" {
        Map::from_iter([("prediction_type".to_owned(), json!("v_prediction"))])
    } else {
        Map::new()
    };
    Recipe::of(model).write_folder(&path, &scheduler);
    (scratch, path)
}

#[test]
fn a_folder_draws_what_its_single_file_draws() {
    for model in ["small", "sd2", "sdxl"] {
        let (scratch, path) = folder(model);
        let single = scratch.path().join("single.safetensors");
        Recipe::of(model).write_single_file(&single);
        let (found, expected) = (open(&path).unwrap(), open(&single).unwrap());
        let (found, expected) = (found.facts(), expected.facts());
        let what = |facts: &Facts| {
            (facts.family, facts.prediction, facts.zero_negative, facts.latent_scale)
        };
        assert_eq!(what(found), what(expected), "{model}");
        assert_eq!(found.default_spacing(), expected.default_spacing(), "{model}");
        assert!(draw(&path) == draw(&single), "{model}");
    }
}

/// Some leave out the last layer of SD2's text encoder and what comes behind it, as folders do.
#[test]
fn sd2_draws_the_same_without_what_is_not_used() {
    let scratch = tempfile::tempdir().unwrap();
    let mut tensors = Recipe::of("sd2").single_file();
    let path = scratch.path().join("single.safetensors");
    write(&path, &tensors);
    let whole = draw(&path);
    let unused = [".resblocks.3.", "model.text_projection", "model.logit_scale"];
    let count = tensors.len();
    tensors.retain(|(name, _)| !unused.iter().any(|unused| name.contains(unused)));
    assert_eq!(tensors.len(), count - 14);
    write(&path, &tensors);
    assert!(draw(&path) == whole);
}

/// Splits a file in the middle, with an index that says so.
fn split(folder: &Path, file: &str, variant: &str, rename: impl Fn(&str) -> String, recipe: &str) {
    let (component, file) = file.split_once('/').unwrap();
    let folder = folder.join(component);
    fs::remove_file(folder.join(file)).unwrap();
    let stem = file.strip_suffix(".safetensors").unwrap();
    let shard = |i: usize| format!("{stem}-0000{}-of-00002{variant}.safetensors", i + 1);
    let (mut shards, mut map) = ([Vec::new(), Vec::new()], Map::new());
    let tensors = Recipe::of(recipe).component(component);
    let middle = tensors.len() / 2;
    for (i, (name, made)) in tensors.into_iter().enumerate() {
        let half = usize::from(i >= middle);
        map.insert(rename(&name), shard(half).into());
        shards[half].push((rename(&name), made));
    }
    for (i, tensors) in shards.iter().enumerate() {
        write(&folder.join(shard(i)), tensors);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(folder.join(format!("{stem}.safetensors.index{variant}.json")), index).unwrap();
}

#[test]
fn shards_and_variants_and_old_names_draw_what_plain_files_draw() {
    let (_scratch, path) = folder("small");
    let plain = draw(&path);
    let as_it_is = |name: &str| name.to_owned();
    let without_model = |name: &str| name.strip_prefix("text_model.").unwrap().to_owned();

    split(&path, UNET, "", as_it_is, "small");
    // The second half has none of the names that tell what it is.
    split(&path, TEXT, "", without_model, "small");
    rename(&path, VAE, "vae/diffusion_pytorch_model.fp16.safetensors");
    assert!(draw(&path) == plain, "shards");

    let (_scratch, path) = folder("small");
    split(&path, UNET, ".fp16", as_it_is, "small");
    rename(&path, TEXT, "text_encoder/model.fp16.safetensors");
    Recipe::of("small")
        .write_component("text_encoder", &path.join("text_encoder/other.safetensors"));
    let old =
        Recipe::of("small").component("vae").into_iter().map(|(name, made)| (old(&name), made));
    write(&path.join(VAE), &old.collect::<Vec<_>>());
    assert!(draw(&path) == plain, "variants and old names");
}

fn rename(folder: &Path, from: &str, to: &str) {
    fs::rename(folder.join(from), folder.join(to)).unwrap();
}

/// What the autoencoder's attention was called until 2023.
fn old(name: &str) -> String {
    let parts =
        [("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")];
    parts.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
}

#[test]
fn an_index_names_files_of_its_folder() {
    let (scratch, path) = folder("small");
    let index = "diffusion_pytorch_model.safetensors.index.json";
    split(&path, UNET, "", str::to_owned, "small");
    let missing = "diffusion_pytorch_model-00002-of-00002.safetensors";
    rename(&path, &format!("unet/{missing}"), "../elsewhere.safetensors");
    let error = refused(&path);
    assert!(
        error.starts_with(&format!("x/unet/{missing}: cannot be read: No such file")),
        "{error}"
    );

    assert!(scratch.path().join("elsewhere.safetensors").is_file());
    for (content, says) in [
        (
            json!({"weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}}),
            "names '../../elsewhere.safetensors', which is no file of its folder",
        ),
        (
            json!({"weight_map": {"conv_in.weight": "/etc/passwd"}}),
            "names '/etc/passwd', which is no file of its folder",
        ),
        (
            json!({"weight_map": {"conv_in.weight": ".."}}),
            "names '..', which is no file of its folder",
        ),
        (json!({"weight_map": {}}), "names no files in its 'weight_map'"),
        (json!([]), "names no files in its 'weight_map'"),
    ] {
        fs::write(path.join("unet").join(index), content.to_string()).unwrap();
        assert_eq!(refused(&path), format!("x/unet/{index}: {says}"));
    }
}

#[test]
fn a_tensor_that_no_shard_has_is_missed_by_its_name() {
    let (_scratch, path) = folder("small");
    let mut tensors = Recipe::of("small").component("unet");
    tensors.retain(|(name, _)| name != "conv_out.bias");
    write(&path.join(UNET), &tensors);
    assert_eq!(refused(&path), format!("x/{UNET}: the tensor 'conv_out.bias' is missing"));
    split(&path, UNET, "", |name| name.replace("conv_out.bias", "unknown"), "small");
    assert_eq!(refused(&path), "x/unet: the tensor 'conv_out.bias' is missing");
}

#[test]
fn configurations_that_cannot_be_drawn_with_are_refused() {
    let (_scratch, path) = folder("small");
    open(&path).unwrap();
    let noise = "x: was trained with another noise schedule than Stable Diffusion's";
    let scale = "x/vae/config.json: has a 'scaling_factor' that is no positive number";
    let scheduler = "scheduler/scheduler_config.json";
    for (file, key, value, says) in [
        (scheduler, "beta_start", json!(0.0001), noise),
        (scheduler, "beta_end", json!(0.02), noise),
        (scheduler, "beta_schedule", json!("linear"), noise),
        (scheduler, "num_train_timesteps", json!(4000), noise),
        (scheduler, "trained_betas", json!([0.1, 0.2]), noise),
        (scheduler, "_class_name", json!("EDMEulerScheduler"), noise),
        (scheduler, "_class_name", json!("FlowMatchEulerDiscreteScheduler"), noise),
        (
            scheduler,
            "prediction_type",
            json!("sample"),
            "x: predicts 'sample'; epsilon and v_prediction are drawn with",
        ),
        ("vae/config.json", "scaling_factor", json!(0), scale),
        ("vae/config.json", "scaling_factor", json!(-0.18), scale),
        ("vae/config.json", "scaling_factor", json!("0.18"), scale),
        (
            "unet/config.json",
            "attention_head_dim",
            json!([5, 10, 10]),
            "x/unet/config.json: has attention heads that are neither of one number nor of one width: [5,10,10]",
        ),
        (
            "unet/config.json",
            "attention_head_dim",
            json!("8"),
            "x/unet/config.json: has attention heads",
        ),
        ("model_index.json", "unet", json!([null, null]), "x: holds no Stable Diffusion pipeline"),
        (
            "model_index.json",
            "text_encoder",
            json!([null, null]),
            "x: holds no Stable Diffusion pipeline",
        ),
    ] {
        let file = path.join(file);
        let before = fs::read_to_string(&file).unwrap();
        let mut config: Value = serde_json::from_str(&before).unwrap();
        config[key] = value.clone();
        fs::write(&file, config.to_string()).unwrap();
        let error = refused(&path);
        assert!(error.starts_with(says), "{key}: {value}: {error}");
        fs::write(&file, before).unwrap();
    }
    open(&path).unwrap();
}

#[test]
fn a_damaged_folder_is_refused_by_what_is_missing() {
    let (_scratch, path) = folder("small");
    fs::write(path.join("model_index.json"), "{").unwrap();
    let error = refused(&path);
    assert!(error.starts_with("x/model_index.json: is not JSON: "), "{error}");
    fs::write(path.join("model_index.json"), "[]").unwrap();
    assert!(refused(&path).starts_with("x: holds no Stable Diffusion pipeline"));
    fs::remove_file(path.join("model_index.json")).unwrap();
    assert!(refused(&path).starts_with("x: is a folder without a model_index.json; "));

    let (_scratch, path) = folder("small");
    fs::remove_file(path.join(VAE)).unwrap();
    fs::write(path.join("vae/diffusion_pytorch_model.bin"), "PK").unwrap();
    let error = refused(&path);
    assert!(error.starts_with(&format!("x/{VAE}: cannot be read: ")), "{error}");
    fs::remove_dir_all(path.join("vae")).unwrap();
    let error = refused(&path);
    assert!(error.starts_with("x/vae/config.json: cannot be read: No such file"), "{error}");
}

#[test]
fn heads_are_of_one_number_or_of_one_width() {
    let (_scratch, path) = folder("small");
    let file = path.join("unet/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    // Its levels are 32, 32 and 64 wide.
    for (counts, down, expected) in [
        (json!(8), "CrossAttnDownBlock2D", Heads::Count(8)),
        (json!([4, 4, 8]), "CrossAttnDownBlock2D", Heads::Width(8)),
        (json!([4, 4, 4]), "CrossAttnDownBlock2D", Heads::Count(4)),
        (json!([1, 4, 8]), "DownBlock2D", Heads::Width(8)),
        (json!(null), "CrossAttnDownBlock2D", Heads::Count(8)),
    ] {
        config["attention_head_dim"] = counts.clone();
        config["down_block_types"][0] = down.into();
        fs::write(&file, config.to_string()).unwrap();
        assert_eq!(open(&path).unwrap().facts().heads, expected, "{counts}");
    }
}

/// Latents are scaled as the autoencoder says that draws them, and not as the one that it replaces.
#[test]
fn an_autoencoder_brings_its_scale_along() {
    let (_scratch, path) = folder("small");
    let scale = |spec: &PipelineSpec| {
        Prepared::open(spec, &mut Default::default()).unwrap().facts().latent_scale
    };
    assert_eq!(scale(&spec(&path)), 0.18215);
    let (_scratch, other) = folder("sdxl");
    let vae = other.join("vae");
    let with_vae = |vae: &Path| PipelineSpec {
        vae: Some(CheckpointRef { name: "vae".to_owned(), path: vae.to_owned() }),
        ..spec(&path)
    };
    assert_eq!(scale(&with_vae(&vae)), 0.13025);
    assert_eq!(scale(&with_vae(&vae.join("diffusion_pytorch_model.safetensors"))), 0.18215);
    fs::write(vae.join("config.json"), "{}").unwrap();
    assert_eq!(scale(&with_vae(&vae)), 0.18215);
    fs::write(vae.join("config.json"), r#"{"scaling_factor": 0}"#).unwrap();
    let error = Prepared::open(&with_vae(&vae), &mut Default::default()).err().unwrap().to_string();
    assert_eq!(error, "vae/config.json: has a 'scaling_factor' that is no positive number: 0");
}
