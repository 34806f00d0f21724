//! Many models in one worker: what they share, who leaves, what is taken back, and that memory
//! returns.

use std::{fs, path::Path};

use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use crate::{
    loras::write_lora,
    support::{Answer, Daemon, folder, shipped_checkpoint, wait_for},
};

const MODES: &str = "
model_root: models
lora_root: loras
watch: off
default_mode: tiny
modes:
  tiny: {model: tiny.safetensors, default_size: 64x64, default_steps: 2}
  other: {model: other.safetensors, default_size: 64x64, default_steps: 2}
  ink: {model: tiny.safetensors, loras: [ink.safetensors], default_size: 64x64, default_steps: 2}
  chalk: {model: tiny.safetensors, loras: [chalk.safetensors], default_size: 64x64, default_steps: 2}
  nan: {model: nan.safetensors, default_size: 64x64, default_steps: 2}
";

/// A daemon with these lines before its modes.
fn start(settings: &str) -> Daemon {
    let folder = folder(&format!("{settings}\n{MODES}"));
    let (models, loras) = (folder.path().join("models"), folder.path().join("loras"));
    fs::create_dir(&loras).unwrap();
    for (name, module) in [("ink", "attn1_to_q"), ("chalk", "attn2_to_q")] {
        let module = format!("down_blocks_0_attentions_0_transformer_blocks_0_{module}");
        write_lora(&loras.join(format!("{name}.safetensors")), 32, &[&module]);
    }
    // A file of its own: the tests damage it.
    let tiny = models.join("tiny.safetensors");
    fs::remove_file(&tiny).unwrap();
    fs::copy(shipped_checkpoint(), tiny).unwrap();
    write_with_nan(&models.join("nan.safetensors"));
    Daemon::start_in(folder, &[])
}

/// A checkpoint that is whole, and draws nothing: one of its weights is no number.
fn write_with_nan(file: &Path) {
    const DAMAGED: &str = "model.diffusion_model.out.2.weight";
    let good = fs::read(shipped_checkpoint()).unwrap();
    let tensors = SafeTensors::deserialize(&good).unwrap();
    // In every type of numbers, all bits set is no number.
    let nans = vec![0xff; tensors.tensor(DAMAGED).unwrap().data().len()];
    let views = tensors.iter().map(|(name, view)| {
        let data = if name == DAMAGED { &nans[..] } else { view.data() };
        (name.to_owned(), TensorView::new(view.dtype(), view.shape().to_vec(), data).unwrap())
    });
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn draw(daemon: &Daemon, fields: Value) -> Answer {
    let mut body = json!({"prompt": "a fox", "seed": 7});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    daemon.post("/generate", &body)
}

#[track_caller]
fn image(daemon: &Daemon, mode: &str) -> Vec<u8> {
    let answer = draw(daemon, json!({"mode": mode}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.body
}

fn switch(daemon: &Daemon, mode: &str) -> Answer {
    daemon.post("/api/modes/switch", &json!({"mode": mode, "wait": true}))
}

/// A number of `/metrics`, all its labels added up.
fn metric(daemon: &Daemon, name: &str) -> u64 {
    let text = daemon.get("/metrics").text();
    let lines = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    let values: Vec<u64> =
        lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {name} in {text}");
    values.iter().sum()
}

fn current_mode(daemon: &Daemon) -> Value {
    daemon.get("/api/models/status").json()["current_mode"].clone()
}

/// The loaded models' names, sorted.
fn loaded(daemon: &Daemon) -> Vec<String> {
    let vram = daemon.get("/api/vram").json();
    let models = vram["models"].as_array().unwrap();
    let mut names: Vec<String> =
        models.iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// `memory:` with room for that many of the small models, and a little more.
fn room_for(models: f64) -> String {
    // Measured, so that the test follows the engine.
    let daemon = start("");
    image(&daemon, "tiny");
    let (weights, all) =
        (metric(&daemon, "diffused_weights_bytes"), metric(&daemon, "diffused_allocated_bytes"));
    let bytes = models * weights as f64 + (all - weights) as f64;
    format!("memory: {{limit_gb: {:.9}, verify: true}}", bytes / f64::from(1 << 30))
}

#[test]
fn modes_on_one_base_share_what_their_loras_leave_alone() {
    let daemon = start("");
    let modes = ["tiny", "ink", "chalk"];
    let first: Vec<_> = modes.iter().map(|mode| image(&daemon, mode)).collect();
    assert!(first[0] != first[1] && first[1] != first[2]);
    assert_eq!(loaded(&daemon), ["chalk", "ink", "tiny"]);
    let vram = daemon.get("/api/vram").json();
    for model in vram["models"].as_array().unwrap() {
        let (own, shared) =
            (model["own_gb"].as_f64().unwrap(), model["shared_gb"].as_f64().unwrap());
        assert!(own < 0.1 * shared, "{model}");
    }
    let weights = metric(&daemon, "diffused_weights_bytes");
    let loads = metric(&daemon, "diffused_pipeline_loads_total");
    // Back and forth, nothing is loaded, and nothing has drifted.
    for (mode, image_before) in modes.iter().zip(&first) {
        assert!(image(&daemon, mode) == *image_before, "another image of {mode}");
    }
    assert_eq!(metric(&daemon, "diffused_pipeline_loads_total"), loads);

    daemon.unload("tiny");
    daemon.unload("chalk");
    let alone = metric(&daemon, "diffused_weights_bytes");
    assert!(weights < alone + alone / 10, "three take {weights}, one {alone}");
    // What was made beside others is what is made alone.
    let fresh = start("");
    assert!(image(&fresh, "ink") == first[1], "another image of a pipeline that shares");
}

#[test]
fn what_does_not_fit_beside_leaves_by_the_policy_and_pinned_ones_stay() {
    let settings = room_for(2.5);
    let daemon = start(&settings);
    for mode in ["tiny", "other", "nan"] {
        switch(&daemon, mode);
    }
    // nan is refused by its probe: who left for it does not come back, the current mode does.
    assert_eq!((loaded(&daemon), current_mode(&daemon)), (vec!["other".into()], json!("other")));
    assert_eq!(switch(&daemon, "tiny").status, 200);
    assert_eq!(loaded(&daemon), ["other", "tiny"]);
    assert_eq!(metric(&daemon, "diffused_evictions_total"), 1);
}

#[test]
fn what_is_too_large_is_refused_with_both_numbers_and_nothing_leaves() {
    let daemon = start(&room_for(0.5));
    let refused = draw(&daemon, json!({})).problem(422, "no-room", "/generate");
    let detail = refused["detail"].as_str().unwrap();
    assert_eq!(detail.matches(" GiB").count(), 2, "{detail}");
    assert!(detail.contains("mode 'tiny'"), "{detail}");
    assert_eq!(daemon.get("/health").status, 200);
    assert_eq!(metric(&daemon, "diffused_evictions_total"), 0);
}

/// (What fails while it is read, memory included, the dispatcher's own tests have.)
#[test]
fn whatever_fails_in_a_switch_the_mode_before_it_draws_on() {
    let daemon = start("");
    let models = daemon.path().join("models");
    fs::write(models.join("rubbish.safetensors"), "rubbish").unwrap();
    let before = image(&daemon, "tiny");
    let weights = metric(&daemon, "diffused_weights_bytes");
    let gb = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let all = metric(&daemon, "diffused_allocated_bytes");
    // Room for one, and for less than one.
    let (one, less) = (gb(all + weights / 2), gb(all - weights / 2));
    for (what, mode, limit, status, kind) in [
        ("a bad file", "{model: rubbish.safetensors}", one, 500, "model-unusable"),
        ("no file", "{model: nowhere.safetensors}", one, 500, "model-unusable"),
        (
            "no LoRA",
            "{model: tiny.safetensors, loras: [nowhere.safetensors]}",
            one,
            500,
            "model-unusable",
        ),
        ("no room", "{model: other.safetensors}", less, 422, "no-room"),
        ("no picture", "{model: nan.safetensors}", one, 500, "model-unusable"),
    ] {
        let settings = format!("memory: {{limit_gb: {limit:.9}, verify: true}}\n{MODES}");
        fs::write(daemon.config_file(), format!("{settings}  new: {mode}\n")).unwrap();
        assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 200);
        switch(&daemon, "new").problem(status, kind, "/api/modes/switch");
        assert_eq!(
            (current_mode(&daemon), daemon.get("/health").status),
            (json!("tiny"), 200),
            "{what}"
        );
        let after = draw(&daemon, json!({"size": "64x64"}));
        assert!(less == limit || after.body == before, "{what}: {}", after.status);
    }
}

#[test]
fn a_model_that_cannot_draw_is_taken_back() {
    // Room for one: the old one must go before the new one is tried.
    let daemon = start(&room_for(1.5));
    let before = image(&daemon, "tiny");
    let problem = switch(&daemon, "nan").problem(500, "model-unusable", "/api/modes/switch");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("nan.safetensors: was loaded, and cannot draw: "), "{detail}");
    let status = daemon.get("/api/models/status").json();
    assert_eq!(
        (&status["current_mode"], &status["selected_mode"]),
        (&json!("tiny"), &json!("tiny"))
    );
    assert_eq!(daemon.get("/health").status, 200);
    assert!(image(&daemon, "tiny") == before, "another image after a switch that was taken back");
    assert_eq!(metric(&daemon, "diffused_pipeline_loads_total"), 2);
}

#[test]
fn where_the_way_back_is_barred_the_daemon_says_so_and_heals() {
    let daemon = start(&room_for(1.5));
    image(&daemon, "tiny");
    fs::write(daemon.path().join("models/tiny.safetensors"), "pulled away").unwrap();
    switch(&daemon, "nan").problem(500, "model-unusable", "/api/modes/switch");
    for path in ["/health", "/health/ready"] {
        let problem = daemon.get(path).problem(503, "degraded", path);
        let detail = problem["detail"].as_str().unwrap();
        let files = ["nan.safetensors", "tiny.safetensors"];
        assert!(files.iter().all(|file| detail.contains(file)), "{detail}");
        assert!(!detail.contains(daemon.path().to_str().unwrap()), "{detail}");
    }
    assert_eq!(daemon.get("/health/live").status, 200);
    assert_eq!(current_mode(&daemon), Value::Null);
    assert_eq!(metric(&daemon, "diffused_degraded"), 1);
    daemon.get("/api/models/current").problem(404, "no-current-mode", "/api/models/current");
    // Others are still tried, and the first that succeeds heals it.
    image(&daemon, "other");
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn a_picture_too_large_for_memory_costs_that_job_alone() {
    let daemon = start(&room_for(2.5));
    let before = image(&daemon, "tiny");
    image(&daemon, "other");
    image(&daemon, "tiny");
    let large = draw(&daemon, json!({"mode": "tiny", "size": "1024x1024"}));
    let problem = large.problem(503, "out-of-memory", "/generate");
    assert_eq!(problem["detail"].as_str().unwrap().matches(" GiB").count(), 2, "{problem}");
    // The other one has left for a second attempt.
    assert_eq!(loaded(&daemon), ["tiny"]);
    assert!(image(&daemon, "tiny") == before, "another image after memory ran out");
    assert_eq!(daemon.get("/api/models/status").json()["worker_restarts"], 0);
}

#[test]
fn what_is_idle_gives_its_memory_back_and_comes_again_when_it_is_asked_for() {
    let daemon = start("memory: {idle_unload: 1s}");
    let before = image(&daemon, "tiny");
    daemon.wait_for_status("the idle mode to leave", |status| status["current_mode"].is_null());
    assert_eq!(daemon.get("/api/models/status").json()["selected_mode"], "tiny");
    let again = draw(&daemon, json!({}));
    assert!(again.body == before, "{}", again.status);
}

#[test]
fn modes_are_loaded_before_anybody_asks_and_survive_a_reload() {
    let modes = MODES.replace("ink: {", "ink: {preload: true, ");
    let folder = folder(&modes);
    fs::create_dir(folder.path().join("loras")).unwrap();
    let module = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    write_lora(&folder.path().join("loras/ink.safetensors"), 32, &[module]);
    let daemon = Daemon::start_in(folder, &[]);
    daemon.wait_for_status("both to be loaded", |status| status["loads"] == 2);
    assert_eq!(
        (loaded(&daemon), current_mode(&daemon)),
        (vec!["ink".into(), "tiny".into()], json!("tiny"))
    );

    // One mode is changed; the other is not even touched.
    let changed = modes.replace("loras: [ink.safetensors], ", "prediction: v, ");
    fs::write(daemon.config_file(), changed).unwrap();
    assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 200);
    wait_for("the old pipeline to leave", || (loaded(&daemon) == ["tiny"]).then_some(()));
    assert_eq!(daemon.get("/api/models/status").json()["loads"], 2);
    assert_eq!(current_mode(&daemon), "tiny");
}

#[test]
fn after_fifty_loads_and_unloadings_the_worker_is_as_small_as_at_its_start() {
    // Nothing is loaded at the start: the default mode's file is not there.
    let modes = MODES.replace("default_mode: tiny", "default_mode: nothing")
        + "  nothing: {model: nothing.safetensors}\n";
    let folder = folder(&modes);
    fs::create_dir(folder.path().join("loras")).unwrap();
    let module = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    write_lora(&folder.path().join("loras/ink.safetensors"), 32, &[module]);
    let daemon = Daemon::start_in(folder, &[]);
    let unload_all = || {
        let answer = daemon.post("/api/models/unload", &json!({"all": true, "wait": true}));
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    // Of its own: what it has of files is the page cache's.
    let memory = || daemon.worker().anonymous_bytes();
    wait_for("the worker", || daemon.log().contains("the worker is ready").then_some(()));
    let at_start = wait_for("a worker", &memory);
    let drawn = image(&daemon, "tiny");
    let with_a_model = wait_for("a worker", &memory);
    assert!(with_a_model > at_start + at_start / 2, "{with_a_model} beside {at_start}");
    for round in 0..50 {
        let mode = ["tiny", "ink", "other"][round % 3];
        let answer = daemon.post("/api/models/load", &json!({"mode": mode, "wait": true}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        unload_all();
    }
    wait_for("the memory to be as at the start", || {
        let now = memory()?;
        (now.abs_diff(at_start) <= at_start / 50).then_some(())
    });
    assert_eq!(metric(&daemon, "diffused_weights_bytes"), 0);
    assert_eq!(daemon.get("/api/models/status").json()["worker_restarts"], 0, "it has died");
    assert!(image(&daemon, "tiny") == drawn, "another image after fifty loads");
}
