//! A library user's own binary: `examples/custom_job.rs`, as it is.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{Daemon, MODES, command_of, folder, shipped_checkpoint};

/// `cargo test` builds the examples, too, unless it is told which tests to build.
fn start() -> Daemon {
    let binaries = Path::new(env!("CARGO_BIN_EXE_diffused")).parent().unwrap();
    let program = binaries.join("examples/custom_job");
    assert!(program.exists(), "run `cargo build --example custom_job` in this profile first");
    let folder = folder(MODES);
    fs::create_dir_all(folder.path().join("files/deep")).unwrap();
    fs::write(folder.path().join("files/a"), [0; 3]).unwrap();
    fs::copy(shipped_checkpoint(), folder.path().join("files/deep/b")).unwrap();
    Daemon::spawn(command_of(&program, folder.path()), folder, &[])
}

/// Submits a job and returns what became of it.
fn run(daemon: &Daemon, request: &Value) -> Value {
    let answer = daemon.post("/api/jobs/custom", request);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.header("x-job-id");
    assert_eq!(answer.header("location"), format!("/api/jobs/{id}"));
    assert_eq!(answer.json(), json!({"id": id, "state": "queued"}));
    let job = daemon.finished_job(id);
    assert_eq!((&job["type"], &job["name"]), (&json!("custom"), &request["name"]), "{job}");
    job
}

#[test]
fn a_binary_with_jobs_of_its_own_runs_them_between_the_images() {
    let daemon = start();
    let usage = |folder: Value| json!({"name": "disk_usage", "args": {"folder": folder}});

    let job = run(&daemon, &usage(json!("files")));
    assert_eq!(job["state"], "done", "{job}");
    let bytes = fs::metadata(shipped_checkpoint()).unwrap().len() + 3;
    assert_eq!(job["result"], json!({"files": 2, "bytes": bytes}));

    for (request, reason) in [
        (usage(json!("nowhere")), "nowhere: No such file or directory"),
        (usage(json!("../..")), "../..: give a folder below"),
        (usage(json!(7)), "invalid type: integer `7`, expected a string"),
        (json!({"name": "disk_usage"}), "invalid type: null"),
        (json!({"name": "bug"}), "the job's handler panicked; the daemon's log says why"),
    ] {
        let job = run(&daemon, &request);
        assert_eq!(job["state"], "failed", "{job}");
        assert!(job["reason"].as_str().unwrap().starts_with(reason), "{job}");
        assert!(job.get("result").is_none(), "{job}");
    }
    assert!(daemon.log().contains("nobody has written this handler yet"));

    let unknown = daemon.post("/api/jobs/custom", &json!({"name": "disk_usag"}));
    let problem = unknown.problem(404, "unknown-handler", "/api/jobs/custom");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("did you mean 'disk_usage'?"), "{detail}");
    assert!(
        detail.contains(
            "(there are: bug, disk_usage, unload_all, upscale, verify_checkpoint, warm_up)"
        ),
        "{detail}"
    );

    // It draws like any other, with its own worker.
    let image = daemon.post("/generate", &json!({"prompt": "x"}));
    assert_eq!(image.status, 200, "{}", image.text());
    assert_eq!(daemon.get("/api/models/status").json()["worker_restarts"], 0);
}

#[test]
fn what_is_built_in_is_there_in_every_daemon() {
    let daemon = Daemon::start();
    let loaded = || {
        let models = daemon.get("/api/models").json();
        let models = models["modes"].as_array().unwrap();
        let loaded = models.iter().filter(|model| model["state"] != "not_loaded");
        loaded.map(|model| model["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let job = run_built_in(&daemon, &json!({"name": "warm_up", "args": {"mode": "other"}}));
    assert_eq!((&job["type"], &job["mode"]), (&json!("load"), &json!("other")), "{job}");
    assert_eq!(loaded(), ["other", "tiny"]);
    // It is warm already: once more is no harm.
    run_built_in(&daemon, &json!({"name": "warm_up", "args": {"mode": "other"}}));
    let body = json!({"name": "unload_all", "tags": ["mine"], "priority": 3});
    let job = run_built_in(&daemon, &body);
    assert_eq!((&job["type"], &job["priority"]), (&json!("unload"), &json!(3)), "{job}");
    assert_eq!(job["tags"], json!(["mine"]));
    assert_eq!(loaded(), [""; 0]);

    let wrong = daemon.post("/api/jobs/custom", &json!({"name": "warm_up", "args": {"mod": 1}}));
    let problem = wrong.problem(422, "invalid-request", "/api/jobs/custom");
    let pointers = problem["errors"].as_array().unwrap().iter().map(|error| &error["pointer"]);
    assert_eq!(pointers.collect::<Vec<_>>(), ["/args/mod", "/args/mode"], "{problem}");
}

fn run_built_in(daemon: &Daemon, request: &Value) -> Value {
    let answer = daemon.post("/api/jobs/custom", request);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let job = daemon.finished_job(answer.header("x-job-id"));
    assert_eq!(job["state"], "done", "{job}");
    job
}

#[test]
fn who_changes_what_is_loaded_needs_the_admin_key() {
    let folder = folder(MODES);
    let mut command = command_of(Path::new(env!("CARGO_BIN_EXE_diffused")), folder.path());
    command.env("DIFFUSED_ADMIN_KEY", "secret");
    let daemon = Daemon::spawn(command, folder, &[]);
    let json = ("content-type", "application/json");
    for body in [
        json!({"name": "unload_all"}).to_string(),
        json!({"name": "warm_up", "args": {"mode": "tiny"}}).to_string(),
    ] {
        let refused = daemon.send("POST", "/api/jobs/custom", &[json], body.as_bytes());
        refused.problem(401, "admin-key-needed", "/api/jobs/custom");
        let headers = [json, ("x-admin-key", "secret")];
        let answer = daemon.send("POST", "/api/jobs/custom", &headers, body.as_bytes());
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
}

#[test]
fn a_checkpoint_is_verified_to_its_last_byte() {
    let daemon = Daemon::start();
    let models = daemon.path().join("models");
    let whole = fs::read(shipped_checkpoint()).unwrap();
    fs::write(models.join("cut.safetensors"), &whole[..whole.len() - 1]).unwrap();
    let mut spoilt = whole.clone();
    let at = whole.len() - 8;
    spoilt[at..].fill(0xff); // NaN, whether as fp16 or fp32
    fs::write(models.join("spoilt.safetensors"), &spoilt).unwrap();
    let verify = |args: Value| {
        let job = run_built_in(&daemon, &json!({"name": "verify_checkpoint", "args": args}));
        assert!(!job.to_string().contains(daemon.path().to_str().unwrap()), "{job}");
        job["result"].clone()
    };

    let report = verify(json!({"mode": "tiny"}));
    assert_eq!((&report["verdict"], &report["bytes"]), (&json!("ok"), &json!(whole.len())));
    let file = &report["files"][0];
    assert_eq!((&file["file"], &file["family"]), (&json!("tiny.safetensors"), &json!("SD1.x")));
    let sha256 = std::process::Command::new("sha256sum").arg(shipped_checkpoint()).output();
    let sha256 = String::from_utf8(sha256.unwrap().stdout).unwrap();
    assert_eq!(file["sha256"], sha256[..64], "{file}");

    // Its LoRAs are not there.
    let report = verify(json!({"mode": "styled"}));
    let problems = report["files"].as_array().unwrap().iter().map(|file| &file["problem"]);
    let missing = json!("cannot be read: entity not found");
    assert_eq!(problems.collect::<Vec<_>>(), [&Value::Null, &missing, &missing]);
    assert_eq!(report["verdict"], "failed");

    for (model, problem) in [
        ("cut.safetensors", "is truncated: '"),
        ("spoilt.safetensors", "has "),
        ("nowhere.safetensors", "cannot be read: entity not found"),
    ] {
        let report = verify(json!({"model": model}));
        assert_eq!(report["verdict"], "failed", "{report}");
        let found = report["files"][0]["problem"].as_str().unwrap();
        assert!(found.starts_with(problem), "{found}");
    }
    let refused = json!({"name": "verify_checkpoint", "args": {"model": "../modes.yaml"}});
    let refused = daemon.post("/api/jobs/custom", &refused);
    let problem = refused.problem(422, "invalid-request", "/api/jobs/custom");
    assert_eq!(problem["errors"][0]["pointer"], "/args/model", "{problem}");
}
