//! What the worker inherits, what confines it, and that nobody notices.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    loras::write_lora,
    support::{Daemon, MODES, command, folder, shipped_checkpoint},
};

/// With the default mode loaded.
fn started(daemon: Daemon) -> Daemon {
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    daemon
}

fn draws(daemon: &Daemon, mode: &str) {
    let body = json!({"prompt": "x", "mode": mode, "num_inference_steps": 1});
    let image = daemon.post("/generate", &body);
    assert_eq!(image.status, 200, "{}", image.text());
}

/// Whether the kernel confines files: the daemon's log says so.
fn confines_files(daemon: &Daemon) -> bool {
    daemon.log().contains("confined by Landlock")
}

#[test]
fn the_worker_inherits_no_keys() {
    let folder = folder(MODES);
    let mut program = command(folder.path());
    program.env("DIFFUSED_ADMIN_KEY", "sesame").env("AWS_SECRET_ACCESS_KEY", "AKIA");
    program.env("RAYON_NUM_THREADS", "2");
    let daemon = started(Daemon::spawn(program, folder, &[]));
    let environment = daemon.worker().environment();
    assert!(environment.iter().any(|it| it == "RAYON_NUM_THREADS=2"), "{environment:?}");
    for secret in ["DIFFUSED_ADMIN_KEY=", "AWS_SECRET_ACCESS_KEY=", "PATH="] {
        assert!(!environment.iter().any(|it| it.starts_with(secret)), "{environment:?}");
    }
}

#[test]
fn the_worker_is_confined_unless_that_is_switched_off() {
    for (arguments, seccomp) in [(&[][..], "2"), (&["--sandbox", "off"], "0")] {
        let daemon = started(Daemon::start_with(arguments));
        assert_eq!(daemon.worker().status("Seccomp"), seccomp, "{arguments:?}");
        assert_eq!(confines_files(&daemon) && arguments.is_empty(), confines_files(&daemon));
        draws(&daemon, "tiny");
    }
}

#[test]
fn linked_loras_of_requests_are_read_by_the_worker_that_is_there() {
    let folder = folder(&format!("lora_root: loras{MODES}"));
    let (loras, disk) = (folder.path().join("loras"), folder.path().join("disk"));
    fs::create_dir(&loras).unwrap();
    fs::create_dir(&disk).unwrap();
    for name in ["ink.safetensors", "wash.safetensors"] {
        let module = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
        write_lora(&disk.join(name), 32, &[module]);
        symlink(disk.join(name), loras.join(name)).unwrap();
    }
    let daemon = started(Daemon::start_in(folder, &[]));
    let worker = daemon.worker();
    for name in ["ink", "wash"] {
        let body = json!({"prompt": "x", "num_inference_steps": 1, "loras": [{"name": name}]});
        let image = daemon.post("/generate", &body);
        assert_eq!(image.status, 200, "{}", image.text());
        assert_eq!(daemon.worker(), worker, "{name}");
    }
}

/// A checkpoint of its own on "another disk", outside of all roots.
fn elsewhere(daemon: &Daemon, name: &str) -> PathBuf {
    let disk = daemon.path().join("disk");
    fs::create_dir_all(&disk).unwrap();
    let file = disk.join(name);
    fs::copy(shipped_checkpoint(), &file).unwrap();
    file
}

fn reload(daemon: &Daemon, modes: &str) {
    fs::write(daemon.config_file(), modes).unwrap();
    let reloaded = daemon.post("/api/modes/reload", &json!({}));
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
}

fn restarts(daemon: &Daemon) -> Value {
    daemon.get("/api/models/status").json()["worker_restarts"].clone()
}

#[test]
fn models_that_are_linked_elsewhere_later_are_read_by_a_worker_that_is_started_anew() {
    let daemon = started(Daemon::start());
    let worker = daemon.worker();
    // Declared at the start, and links themselves: nothing of it takes another worker.
    draws(&daemon, "tiny");
    draws(&daemon, "other");
    assert_eq!(daemon.worker(), worker);

    let link = |target: &Path, name: &str| {
        let link = daemon.path().join("models").join(name);
        let _ = fs::remove_file(&link);
        symlink(target, link).unwrap();
    };
    // A new link.
    link(&elsewhere(&daemon, "late.safetensors"), "late.safetensors");
    reload(&daemon, &format!("{MODES}  late: {{model: late.safetensors, default_size: 64x64}}\n"));
    draws(&daemon, "late");
    // A link that leads elsewhere now.
    link(&elsewhere(&daemon, "moved.safetensors"), "other.safetensors");
    daemon.unload("other");
    draws(&daemon, "other");
    // Other roots.
    let models = daemon.path().join("more");
    fs::create_dir(&models).unwrap();
    fs::copy(shipped_checkpoint(), models.join("tiny.safetensors")).unwrap();
    fs::copy(shipped_checkpoint(), models.join("other.safetensors")).unwrap();
    reload(&daemon, &MODES.replace("model_root: models", "model_root: more"));
    draws(&daemon, "tiny");
    draws(&daemon, "other");
    assert_eq!(restarts(&daemon), 0, "none of these is a failure");
    let log = daemon.log();
    assert!(!log.contains("ermission denied"), "{log}");
    let anew = log.matches("restarting the worker so that it can read this job's files").count();
    assert!(!confines_files(&daemon) || anew >= 3, "{log}");
}
