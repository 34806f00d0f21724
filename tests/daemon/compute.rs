//! What computes, and on what: the file, arguments and the environment, as far as a build without a
//! second engine and a machine without a card can tell.

use std::process::Output;

use serde_json::json;

use crate::support::{Daemon, MODES, command, folder};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(modes: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = folder(modes);
    command(folder.path()).args(arguments).envs(environment.iter().copied()).output().unwrap()
}

fn in_file(line: &str) -> String {
    format!("{MODES}{line}\n")
}

#[cfg(not(any(feature = "libtorch", feature = "cuda", feature = "metal")))]
#[test]
fn what_is_not_built_in_is_refused_where_it_is_asked_for() {
    let in_line_8 = "modes.yaml:8:9: error: device: cuda:0 is not built into this program";
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    for arguments in [&["check"][..], &serve] {
        let output = run(&in_file("device: cuda:0"), arguments, &[]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.starts_with(in_line_8), "{said}");
        assert!(said.contains("build it with --features libtorch"), "{said}");
    }
    let check = text(&run(&in_file("device: cuda:0"), &["check"], &[]).stdout);
    assert!(check.contains("8 | device: cuda:0\n  |         ^^^^^^\n"), "{check}");

    // Wherever else it is asked for, there is no line.
    let (cuda, torch) = ([("DEVICE", "cuda")], ["check", "--engine", "libtorch"]);
    for (arguments, environment, expected) in [
        (&["check"][..], &cuda[..], "--device or DEVICE: error: device: cuda:0 is not built in"),
        (&torch, &[], "--engine or ENGINE: error: engine: libtorch is not built in"),
    ] {
        let output = run(MODES, arguments, environment);
        assert_eq!(output.status.code(), Some(78));
        assert!(text(&output.stdout).starts_with(expected), "{}", text(&output.stdout));
    }
    let folder = folder(MODES);
    let mut without_file = command(folder.path());
    without_file.args(["serve", "--config", "none.yaml", "--listen", "127.0.0.1:0"]);
    without_file.env("MODEL_ROOT", "models").env("MODEL", "tiny.safetensors");
    let output = without_file.env("PRECISION", "bf16").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output.stderr);
    assert!(said.starts_with("--precision or PRECISION: error: precision: bf16"), "{said}");
}

#[test]
fn arguments_come_before_the_environment_and_that_before_the_file() {
    let modes = in_file("device: cuda:0");
    for (arguments, environment) in [
        (&["check", "--device", "cpu"][..], &[("DEVICE", "cuda:1")][..]),
        (&["check"], &[("DEVICE", "cpu"), ("ENGINE", "candle"), ("PRECISION", "fp32")]),
    ] {
        let output = run(&modes, arguments, environment);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    }
    let wrong = run(&modes, &["check"], &[("DEVICE", "gpu")]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("write auto, cpu, cuda"), "{}", text(&wrong.stderr));
}

#[test]
fn a_worker_describes_itself() {
    let described = run(MODES, &["worker", "--describe", "--device", "cpu"], &[]);
    assert_eq!(text(&described.stdout), "candle on cpu, fp32\n");
    let not_there = run(MODES, &["worker", "--describe", "--device=cpu", "--precision=fp16"], &[]);
    assert_eq!((not_there.status.code(), text(&not_there.stdout)), (Some(78), String::new()));
    assert_eq!(text(&not_there.stderr).lines().count(), 1, "{}", text(&not_there.stderr));
}

#[test]
fn what_computes_is_shown_and_a_reload_changes_it_later() {
    let folder = folder(&in_file("watch: off\nengine: auto"));
    let mut program = command(folder.path());
    program.env("DEVICE", "cpu");
    let daemon = Daemon::spawn(program, folder, &[]);
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    let vram = daemon.get("/api/vram").json();
    for (member, expected) in [
        ("engine", "candle"),
        ("device", "cpu"),
        ("precision", "fp32"),
        ("device_name", "CPU (host memory)"),
    ] {
        assert_eq!(vram[member], expected, "{vram}");
    }
    let shown = daemon.get("/api/models/status").json();
    assert_eq!(shown["vram"]["engine"], "candle", "{shown}");
    assert!(daemon.log().contains("engine=\"candle\""), "{}", daemon.log());
    let wish = |config: &serde_json::Value| {
        json!([config["engine"], config["device"], config["precision"]])
    };
    let config = daemon.get("/api/modes/config").json();
    assert_eq!(wish(&config), json!(["auto", "cpu", "auto"]), "the environment's");

    std::fs::write(daemon.config_file(), in_file("watch: off\nengine: candle")).unwrap();
    let report = daemon.post("/api/modes/reload", &json!({})).json();
    assert_eq!(report["settings"], json!(["engine"]), "{report}");
    let config = daemon.get("/api/modes/config").json();
    assert_eq!(wish(&config), json!(["candle", "cpu", "auto"]));
    let warnings = config["warnings"].as_array().unwrap();
    let about = warnings.iter().find(|it| it["pointer"] == "/engine").unwrap();
    assert_eq!((&about["line"], &about["column"]), (&json!(9), &json!(9)));
    assert!(about["detail"].as_str().unwrap().contains("next start"), "{about}");
    assert!(daemon.log().contains("counts from the daemon's next start on"));
}

/// What a daemon draws with these keys, and what it says of its memory then; and whether all of it is
/// given back.
#[cfg(feature = "libtorch")]
fn drawn_with(keys: &str) -> (image::RgbImage, serde_json::Value) {
    let folder = folder(&in_file(keys));
    let daemon = Daemon::spawn(command(folder.path()), folder, &[]);
    let request =
        json!({"prompt": "a red circle", "seed": 7, "num_inference_steps": 2, "size": "64x64"});
    let answer = daemon.post("/generate", &request);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let vram = daemon.get("/api/vram").json();
    let unloaded = daemon.post("/api/models/unload", &json!({"all": true, "wait": true}));
    assert_eq!(unloaded.status, 200, "{}", unloaded.text());
    let weights = daemon.get("/api/vram").json()["weights_gb"].clone();
    assert_eq!(weights.as_f64(), Some(0.0));
    (image::load_from_memory(&answer.body).unwrap().to_rgb8(), vram)
}

#[cfg(feature = "libtorch")]
#[test]
fn a_daemon_draws_by_libtorch_in_either_precision() {
    let psnr_db = |a: &image::RgbImage, b: &image::RgbImage| {
        let squares = a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        10.0 * (255f64.powi(2) / (squares.sum::<f64>() / a.len() as f64)).log10()
    };
    let (reference, by_candle) = drawn_with("engine: candle\ndevice: cpu");
    assert_eq!(by_candle["engine"], "candle");
    for (precision, least_db) in [("fp32", 45.0), ("bf16", 20.0)] {
        let (image, vram) =
            drawn_with(&format!("engine: libtorch\ndevice: cpu\nprecision: {precision}"));
        let found = psnr_db(&image, &reference);
        assert!(found >= least_db, "{precision}: {found:.1} dB");
        let shown = ["engine", "device", "precision"].map(|member| vram[member].clone());
        assert_eq!(shown, ["libtorch", "cpu", precision].map(serde_json::Value::from));
        let model = &vram["models"][0];
        assert_eq!(model["components"][0]["dtype"], precision, "{model}");
    }
}
