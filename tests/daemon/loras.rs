//! LoRAs of modes and of requests, from files to what is said of them.

use std::{fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, folder};

/// Writes a LoRA in kohya's names that has something for each of these modules of that width.
pub fn write_lora(file: &Path, width: usize, modules: &[&str]) {
    let half: Vec<u8> = std::iter::repeat_n(0.5f32.to_le_bytes(), 2 * width).flatten().collect();
    let view = |shape: [usize; 2]| TensorView::new(Dtype::F32, shape.to_vec(), &half).unwrap();
    let tensors = modules.iter().flat_map(|module| {
        let name = |part: &str| format!("lora_unet_{module}.lora_{part}.weight");
        [(name("down"), view([2, width])), (name("up"), view([width, 2]))]
    });
    fs::write(file, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

const FITS: &str = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
const FITS_NOT: &str = "down_blocks_7_attentions_0_transformer_blocks_0_attn1_to_q";

/// A daemon with the LoRAs "ink", which fits but for one of its two modules, and "alien".
fn start() -> Daemon {
    let alien = "{model: tiny.safetensors, default_size: 64x64, loras: [alien.safetensors]";
    let modes = format!(
        "lora_root: loras{MODES}  failing: {alien}}}\n  skipping: {alien}, on_lora_error: skip}}\n"
    );
    let folder = folder(&modes);
    let loras = folder.path().join("loras");
    fs::create_dir(&loras).unwrap();
    write_lora(&loras.join("ink.safetensors"), 32, &[FITS, FITS_NOT]);
    write_lora(&loras.join("alien.safetensors"), 32, &[FITS_NOT]);
    Daemon::start_in(folder, &[])
}

fn draw(daemon: &Daemon, fields: Value) -> Answer {
    let mut body = json!({"prompt": "a fox", "seed": 7, "num_inference_steps": 2});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    daemon.post("/generate", &body)
}

#[track_caller]
fn pixels(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    image::load_from_memory(&answer.body).unwrap().into_bytes()
}

#[test]
fn a_requests_lora_is_for_it_alone() {
    let daemon = start();
    let plain = draw(&daemon, json!({}));
    let inked = draw(&daemon, json!({"loras": [{"name": "ink", "strength": 0.8}]}));
    assert_ne!(pixels(&inked), pixels(&plain));
    let job = daemon.get(&format!("/api/jobs/{}", inked.header("x-job-id"))).json();
    let lora = json!({"path": "ink.safetensors", "strength": 0.8, "adapter_name": null});
    assert_eq!(job["loras"], json!([lora]));

    let status = daemon.get("/api/models/status").json();
    assert_eq!(
        (&status["current_mode"], &status["selected_mode"]),
        (&json!("tiny"), &json!("tiny"))
    );
    let merged = json!({
        "path": "ink.safetensors", "strength": 0.8, "merged": 1, "unmatched": 1, "skipped": null,
    });
    assert_eq!(daemon.active_model()["loras"], json!([merged]));

    let models = daemon.get("/api/models").json();
    let own = &models["others"][0];
    assert_eq!(
        (&own["mode"], &own["state"], &own["loras"]),
        (&json!("tiny"), &json!("active"), &job["loras"])
    );
    assert_eq!(daemon.get("/api/models/current").json()["loras"], job["loras"]);
    let tiny = models["modes"].as_array().unwrap().iter().find(|mode| mode["name"] == "tiny");
    assert_eq!(tiny.unwrap()["state"], "loaded", "{models}");

    let tagged = draw(&daemon, json!({"prompt": "a fox <lora:ink:0.8>"}));
    assert_eq!(pixels(&tagged), pixels(&inked));
    let parameters = String::from_utf8_lossy(&tagged.body);
    assert!(parameters.contains("a fox <lora:ink:0.8>\nSteps: 2, "));
    assert!(parameters.contains(r#", LoRAs: "ink: 0.8", Version: "#));

    assert!(draw(&daemon, json!({})).body == plain.body, "another image without the LoRA");
    assert_eq!(daemon.active_model()["loras"], json!([]));
}

#[test]
fn a_lora_that_does_not_fit_fails_the_mode_or_is_skipped_and_said() {
    let daemon = start();
    let plain = draw(&daemon, json!({}));
    let failed = draw(&daemon, json!({"mode": "failing"}));
    let problem = failed.problem(500, "model-unusable", "/generate");
    assert!(problem["detail"].as_str().unwrap().contains("alien.safetensors"), "{problem}");
    assert_eq!(daemon.get("/api/models/status").json()["current_mode"], "tiny");
    // Chosen by the caller, it is the caller's mistake.
    let own = draw(&daemon, json!({"loras": [{"name": "ink"}, {"name": "alien"}]}));
    let errors = &own.problem(422, "invalid-request", "/generate")["errors"];
    assert_eq!(errors[0]["pointer"], "/loras/1/name");
    assert!(errors[0]["detail"].as_str().unwrap().starts_with("alien.safetensors: "), "{errors}");
    let both = draw(&daemon, json!({"mode": "failing", "loras": [{"name": "ink"}]}));
    both.problem(500, "model-unusable", "/generate");
    assert_eq!(pixels(&draw(&daemon, json!({}))), pixels(&plain));

    let skipped = draw(&daemon, json!({"mode": "skipping"}));
    assert_eq!(pixels(&skipped), pixels(&plain));
    assert_eq!(skipped.header("x-lora-skipped"), "alien.safetensors");
    assert!(!String::from_utf8_lossy(&skipped.body).contains("LoRAs: "));
    let model = daemon.active_model();
    let lora = &model["loras"][0];
    assert_eq!(lora["path"], "alien.safetensors");
    assert!(lora["skipped"].as_str().is_some_and(|reason| !reason.is_empty()), "{model}");
    let both = draw(&daemon, json!({"mode": "skipping", "loras": [{"name": "ink"}]}));
    assert_eq!(both.header("x-lora-skipped"), "alien.safetensors");
    assert_ne!(pixels(&both), pixels(&plain));
}
