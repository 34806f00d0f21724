//! Checkpoints as folders: what their configurations say, with something else in its place.

use std::{fs, path::Path};

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use crate::{checkpoint, request::values};

/// A file of the folder, a key of what is in it, and what is there instead.
type Change = (Index, Index, Option<Value>);

fn folder() -> Vec<(&'static str, Value)> {
    let class = |name: &str| json!(["diffusers", name]);
    vec![
        (
            "model_index.json",
            json!({
                "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": true,
                "unet": class("UNet2DConditionModel"), "vae": class("AutoencoderKL"),
                "scheduler": class("EulerDiscreteScheduler"),
                "text_encoder": class("CLIPTextModel"), "text_encoder_2": class("CLIPTextModel"),
            }),
        ),
        (
            "unet/config.json",
            json!({
                "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280],
                "num_attention_heads": null, "time_cond_proj_dim": null,
            }),
        ),
        (
            "scheduler/scheduler_config.json",
            json!({
                "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
                "rescale_betas_zero_snr": false, "timestep_spacing": "leading",
            }),
        ),
        ("vae/config.json", json!({"scaling_factor": 0.13025})),
        ("text_encoder/config.json", json!({"hidden_act": "quick_gelu"})),
        ("text_encoder_2/config.json", json!({"hidden_act": "gelu"})),
        (
            "unet/diffusion_pytorch_model.safetensors.index.json",
            json!({"weight_map": {"conv_in.weight": "1.safetensors", "conv_out.weight": "../2.safetensors"}}),
        ),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (any::<Index>(), any::<Index>(), prop::option::of(values()));
    prop::collection::vec(change, 0..6)
}

fn change(files: &mut [(&'static str, Value)], (file, key, value): &Change) {
    let content = &mut files[file.index(files.len())].1;
    let keys: Vec<String> =
        content.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
    match (content, value) {
        (Value::Object(map), Some(value)) if !keys.is_empty() => {
            map.insert(keys[key.index(keys.len())].clone(), value.clone());
        }
        (Value::Object(map), None) if !keys.is_empty() => {
            map.remove(&keys[key.index(keys.len())]);
        }
        (content, value) => *content = value.clone().unwrap_or_default(),
    }
}

fn write(folder: &Path, files: &[(&'static str, Value)], weights: bool) {
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content.to_string()).unwrap();
    }
    if weights {
        for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
            let path = folder.join(component);
            fs::create_dir_all(&path).unwrap();
            checkpoint::write_real(&path.join("1.safetensors"));
            checkpoint::write_real(&path.join("model.safetensors"));
        }
    }
}

proptest! {
    #![proptest_config(crate::cases(40))]

    #[test]
    fn configurations_with_changes(changes in changes(), weights in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let mut files = self::folder();
        changes.iter().for_each(|one| change(&mut files, one));
        write(folder.path(), &files, weights);
        // Its tensors go by other names than a folder's do.
        prop_assert!(!checkpoint::open(folder.path())?);
    }
}
