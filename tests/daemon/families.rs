//! SDXL and its refiner over HTTP: with another autoencoder, with LoRAs of a mode and of a request.

use std::fs;

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Value, json};

use crate::{
    loras::write_lora,
    recipe::Recipe,
    support::{Answer, Daemon, folder},
};

/// The autoencoder is that of the small SD1.x checkpoint.
const MODES: &str = r#"
model_root: models
lora_root: loras
default_mode: xl
modes:
  xl: &xl {model: xl.safetensors, vae: tiny.safetensors, default_size: 64x64, default_steps: 2}
  own_vae: {model: xl.safetensors, default_size: 64x64, default_steps: 2}
  skipping: {<<: *xl, on_lora_error: skip}
  refiner: {model: refiner.safetensors, default_size: 64x64, default_steps: 2}
"#;

/// Two attentions of the tiny SDXL, of width 64, and one that it does not have.
const FIT: [&str; 2] = [
    "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
];
const FITS_NOT: &str = "down_blocks_7_attentions_0_transformer_blocks_0_attn1_to_q";

fn start() -> Daemon {
    let folder = folder(MODES);
    let (models, loras) = (folder.path().join("models"), folder.path().join("loras"));
    for (model, file) in [("sdxl", "xl"), ("refiner", "refiner")] {
        Recipe::of(model).write_single_file(&models.join(format!("{file}.safetensors")));
    }
    fs::create_dir(&loras).unwrap();
    write_lora(&loras.join("ink.safetensors"), 64, &[FIT[0], FIT[1], FITS_NOT]);
    write_lora(&loras.join("alien.safetensors"), 64, &[FITS_NOT]);
    Daemon::start_in(folder, &[])
}

fn draw(daemon: &Daemon, fields: Value) -> Answer {
    let mut body = json!({"prompt": "a fox", "seed": 7});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    daemon.post("/generate", &body)
}

#[track_caller]
fn drawn(daemon: &Daemon, fields: Value) -> Vec<u8> {
    let answer = draw(daemon, fields);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-lora-skipped"), "");
    answer.body
}

#[test]
fn sdxl_draws_with_another_autoencoder_and_the_loras_of_a_request() {
    let daemon = start();
    let plain = drawn(&daemon, json!({}));
    let ink = json!([{"name": "ink"}]);

    let inked = drawn(&daemon, json!({"loras": ink}));
    assert!(inked != plain, "the LoRA changes nothing");
    let model = daemon.active_model();
    let loras = &model["loras"];
    assert_eq!((&loras[0]["merged"], &loras[0]["unmatched"]), (&json!(2), &json!(1)), "{model}");
    assert!(drawn(&daemon, json!({})) == plain, "another image after the LoRA");
    assert_eq!(daemon.active_model()["loras"], json!([]));

    let failed = draw(&daemon, json!({"loras": [{"name": "alien"}]}));
    let problem = failed.problem(422, "invalid-request", "/generate");
    assert_eq!(problem["errors"][0]["pointer"], "/loras/0/name");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("alien.safetensors: does not fit this SDXL checkpoint"), "{detail}");
    assert!(drawn(&daemon, json!({})) == plain, "another image after a LoRA that does not fit");

    let loras = json!([{"name": "alien"}, {"name": "ink"}]);
    let skipped = draw(&daemon, json!({"mode": "skipping", "loras": loras}));
    assert_eq!(skipped.status, 200, "{}", skipped.text());
    assert_eq!(skipped.header("x-lora-skipped"), "alien.safetensors");
    let pixels = |png: &[u8]| image::load_from_memory(png).unwrap().into_bytes();
    assert_eq!(pixels(&skipped.body), pixels(&inked));
    let model = daemon.active_model();
    let loras = &model["loras"];
    assert!(loras[0]["skipped"].is_string() && loras[1]["skipped"].is_null(), "{model}");
    assert_eq!((&loras[0]["merged"], &loras[1]["merged"]), (&json!(0), &json!(2)), "{model}");

    let own = drawn(&daemon, json!({"mode": "own_vae"}));
    assert_ne!(pixels(&own), pixels(&plain), "the other autoencoder changes nothing");
    assert!(drawn(&daemon, json!({})) == plain, "another image after other modes");
}

#[test]
fn several_images_of_sdxl_and_its_refiner_are_those_of_the_seeds_that_follow() {
    let daemon = start();
    for mode in ["xl", "refiner"] {
        let answer = draw(&daemon, json!({"mode": mode, "n": 2}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let images = answer.json()["images"].as_array().unwrap().clone();
        assert_eq!((images.len(), &images[1]["seed"]), (2, &json!(8)));
        for image in images {
            let alone = drawn(&daemon, json!({"mode": mode, "seed": image["seed"]}));
            assert_eq!(image["data"], BASE64.encode(&alone), "{mode}, seed {}", image["seed"]);
        }
    }
}
