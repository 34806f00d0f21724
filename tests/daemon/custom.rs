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
    assert!(detail.contains("(there are: bug, disk_usage, unload_all, warm_up)"), "{detail}");

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
        let models = models["models"].as_array().unwrap();
        let loaded = models.iter().filter(|model| model["state"] != "not_loaded");
        loaded.map(|model| model["mode"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
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
