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
    assert!(detail.contains("(there are: bug, disk_usage)"), "{detail}");

    // It draws like any other, with its own worker.
    let image = daemon.post("/generate", &json!({"prompt": "x"}));
    assert_eq!(image.status, 200, "{}", image.text());
    assert_eq!(daemon.get("/api/models/status").json()["worker_restarts"], 0);
}
