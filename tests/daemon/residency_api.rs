//! What is loaded, and having it loaded, over the API.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, command, folder, wait_for};

const LOAD: &str = "/api/models/load";
const UNLOAD: &str = "/api/models/unload";
const SWITCH: &str = "/api/modes/switch";

/// More steps than any test waits for.
fn long_request() -> Value {
    json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512"})
}

/// With the default mode loaded.
fn started() -> Daemon {
    let daemon = Daemon::start();
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    daemon
}

/// A mode's entry in `GET /api/models`.
fn model(daemon: &Daemon, name: &str) -> Value {
    let models = daemon.get("/api/models").json();
    let mut modes = models["modes"].as_array().unwrap().iter();
    modes.find(|mode| mode["name"] == name).unwrap().clone()
}

fn states(daemon: &Daemon) -> Value {
    let models = daemon.get("/api/models").json();
    let modes = models["modes"].as_array().unwrap().iter();
    modes.map(|mode| (mode["name"].as_str().unwrap().to_owned(), mode["state"].clone())).collect()
}

#[track_caller]
fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn a_mode_is_loaded_beside_the_current_one() {
    let daemon = started();
    assert_eq!(
        states(&daemon),
        json!({"tiny": "active", "other": "not_loaded", "styled": "not_loaded"})
    );
    let answer = daemon.post(LOAD, &json!({"mode": "other", "wait": true}));
    let loaded = ok(&answer);
    assert_eq!((&loaded["status"], &loaded["state"]), (&json!("loaded"), &json!("loaded")));
    let job = daemon.get(&format!("/api/jobs/{}", answer.header("x-job-id"))).json();
    assert_eq!(
        (&job["type"], &job["state"], &job["mode"]),
        (&json!("load"), &json!("done"), &json!("other"))
    );
    let entry = model(&daemon, "other");
    assert_eq!(entry["figures"], loaded["figures"]);
    assert_eq!(entry["figures"]["loads"], 1);
    assert_eq!(entry["figures"]["components"][0]["dtype"], "fp32");
    assert_eq!(states(&daemon)["tiny"], "active");

    let again = daemon.post(LOAD, &json!({"mode": "other"}));
    assert_eq!(ok(&again)["status"], "already_loaded");
    assert_eq!(again.header("x-job-id"), "");

    let vram = daemon.get("/api/vram").json();
    assert_eq!(vram["models_loaded"], 2, "{vram}");
    let shown = |name: &str| {
        let mut models = vram["models"].as_array().unwrap().iter();
        models.find(|model| model["name"] == name).unwrap().clone()
    };
    assert_eq!(
        (&shown("tiny")["active"], &shown("other")["active"]),
        (&json!(true), &json!(false))
    );
    assert!(vram["limit_gb"].is_null() && vram["lora_cache"]["hits"].is_u64(), "{vram}");
    let sum = vram["models"].as_array().unwrap().iter().map(|it| it["own_gb"].as_f64().unwrap());
    assert!(sum.sum::<f64>() <= vram["weights_gb"].as_f64().unwrap() + 0.002, "{vram}");
}

#[test]
fn a_switch_that_is_waited_for_is_done() {
    let daemon = started();
    let answer = daemon.post(SWITCH, &json!({"mode": "other", "wait": true, "timeout_secs": 60}));
    let switched = ok(&answer);
    assert_eq!(
        (&switched["status"], &switched["from_mode"], &switched["to_mode"]),
        (&json!("switched"), &json!("tiny"), &json!("other"))
    );
    let job = daemon.get(&format!("/api/jobs/{}", answer.header("x-job-id"))).json();
    assert_eq!((&job["state"], &job["timeout_secs"]), (&json!("done"), &json!(60)));
    let current = ok(&daemon.get("/api/models/current"));
    assert_eq!((&current["name"], &current["state"]), (&json!("other"), &json!("active")));
    assert!(current["figures"]["last_used_unix_ms"].as_u64().unwrap() > 0);
    assert_eq!(states(&daemon)["tiny"], "loaded");
}

#[test]
fn a_switch_waits_no_longer_than_it_may() {
    let daemon = started();
    let drawing = daemon.begin_post("/generate", &long_request());
    daemon.wait_for_status("the drawing", |status| status["running_job"].is_string());
    let answer = daemon.post(SWITCH, &json!({"mode": "other", "wait": true, "timeout_secs": 1}));
    answer.problem(504, "timed-out", SWITCH);
    let job = daemon.finished_job(answer.header("x-job-id"));
    assert_eq!((&job["state"], &job["timeout_secs"]), (&json!("failed"), &json!(1)), "{job}");
    drop(drawing);
    daemon.wait_for_status("the end", |status| status["running_job"].is_null());
    assert_eq!(states(&daemon)["other"], "not_loaded");
    assert_eq!(daemon.get("/api/models/current").json()["name"], "tiny");
}

#[test]
fn what_waits_says_how_many_jobs_come_before_it() {
    let daemon = started();
    let drawing = daemon.begin_post("/generate", &long_request());
    daemon.wait_for_status("the drawing", |status| status["running_job"].is_string());
    let answer = daemon.post(LOAD, &json!({"mode": "other"}));
    assert_eq!((answer.status, &answer.json()["status"]), (202, &json!("queued")));
    let address = format!("/api/jobs/{}", answer.header("x-job-id"));
    assert_eq!(answer.header("location"), address);
    let job = daemon.get(&address).json();
    assert_eq!((&job["state"], &job["jobs_before"]), (&json!("queued"), &json!(1)), "{job}");
    drop(drawing);
    assert_eq!(daemon.finished_job(answer.header("x-job-id"))["state"], "done");
}

#[test]
fn hanging_up_does_not_cancel_a_load() {
    let daemon = started();
    let drawing = daemon.begin_post("/generate", &long_request());
    daemon.wait_for_status("the drawing", |status| status["running_job"].is_string());
    let loading = daemon.begin_post(LOAD, &json!({"mode": "other", "wait": true}));
    daemon.wait_for_status("the load to wait", |status| status["queue_size"] == 1);
    drop(loading);
    drop(drawing);
    wait_for("the other mode", || (states(&daemon)["other"] == "loaded").then_some(()));
}

#[test]
fn what_is_unloaded_is_named() {
    let daemon = started();
    ok(&daemon.post(LOAD, &json!({"mode": "other", "wait": true})));
    let unloaded = ok(&daemon.post(UNLOAD, &json!({"mode": "other", "wait": true})));
    assert_eq!(unloaded, json!({"status": "unloaded", "modes": ["other"]}));
    assert_eq!(
        states(&daemon),
        json!({"tiny": "active", "other": "not_loaded", "styled": "not_loaded"})
    );
    ok(&daemon.post(LOAD, &json!({"mode": "other", "wait": true})));
    let unloaded = ok(&daemon.post(UNLOAD, &json!({"all": true, "wait": true})));
    assert_eq!(unloaded["modes"], json!(["other", "tiny"]));
    let nothing = ok(&daemon.post(UNLOAD, &json!({"all": true, "wait": true})));
    assert_eq!(nothing["modes"], json!([]));
    daemon.get("/api/models/current").problem(404, "no-current-mode", "/api/models/current");
    // It is loaded again when somebody draws.
    assert_eq!(daemon.post("/generate", &json!({"prompt": "x"})).status, 200);
    assert_eq!(states(&daemon)["tiny"], "active");
}

#[test]
fn a_load_behind_an_unloading_loads_again() {
    let daemon = started();
    let drawing = daemon.begin_post("/generate", &long_request());
    daemon.wait_for_status("the drawing", |status| status["running_job"].is_string());
    let unload = daemon.post(UNLOAD, &json!({"all": true}));
    assert_eq!(unload.status, 202, "{}", unload.text());
    let load = daemon.post(LOAD, &json!({"mode": "tiny"}));
    assert_eq!(load.status, 202, "{}", load.text());
    drop(drawing);
    assert_eq!(daemon.finished_job(load.header("x-job-id"))["state"], "done");
    assert_eq!(model(&daemon, "tiny")["figures"]["loads"], 2);
}

#[test]
fn modes_with_equal_pipelines_share_one() {
    let daemon = started();
    let file = "model_root: models\ndefault_mode: tiny\nmodes: {tiny: {model: tiny.safetensors, \
                default_size: 64x64}, twin: {model: tiny.safetensors, default_size: 72x64}}\n";
    fs::write(daemon.config_file(), file).unwrap();
    assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 200);
    assert_eq!(states(&daemon), json!({"tiny": "active", "twin": "loaded"}));
    assert_eq!(
        model(&daemon, "tiny")["figures"]["own_gb"],
        model(&daemon, "twin")["figures"]["own_gb"]
    );
    assert_eq!(daemon.get("/api/models").json()["others"], json!([]));
}

#[test]
fn modes_whose_files_are_not_there_are_not_available() {
    let daemon = started();
    let available = ok(&daemon.get("/api/models/available"));
    let incomplete = json!([{"name": "styled", "missing": ["a.safetensors", "b.safetensors"]}]);
    assert_eq!(available["incomplete"], incomplete);
    let list = available["available"].as_array().unwrap();
    let states: Vec<_> = list.iter().map(|it| (&it["name"], &it["state"])).collect();
    let expected = [(&json!("other"), &json!("not_loaded")), (&json!("tiny"), &json!("active"))];
    assert_eq!(states, expected);
    fs::remove_file(daemon.path().join("models/other.safetensors")).unwrap();
    let available = daemon.get("/api/models/available");
    assert_eq!(available.json()["incomplete"][0]["missing"], json!(["other.safetensors"]));
    assert!(!available.text().contains(daemon.path().to_str().unwrap()));
    let load = daemon.post(LOAD, &json!({"mode": "other", "wait": true}));
    load.problem(500, "model-unusable", LOAD);
    assert_ne!(load.header("x-job-id"), "");
}

#[test]
fn a_model_that_is_larger_than_all_memory_has_no_room() {
    let modes =
        MODES.replace("default_mode: tiny", "default_mode: tiny\nmemory: {limit_gb: 0.001}");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let answer = daemon.post(LOAD, &json!({"mode": "other", "wait": true}));
    answer.problem(422, "no-room", LOAD);
    assert_eq!(daemon.finished_job(answer.header("x-job-id"))["state"], "failed");
    daemon.post("/generate", &json!({"prompt": "x"})).problem(422, "no-room", "/generate");
    assert_eq!(daemon.get("/api/vram").json()["limit_gb"], 0.001);
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn wrong_wishes_are_refused() {
    let daemon = started();
    for (path, body, status, kind) in [
        (LOAD, json!({"mode": "tinny"}), 404, "unknown-mode"),
        (LOAD, json!({}), 422, "invalid-request"),
        (LOAD, json!({"mode": "tiny", "wait": "yes"}), 422, "invalid-request"),
        (UNLOAD, json!({"mode": "tinny"}), 404, "unknown-mode"),
        (UNLOAD, json!({}), 422, "invalid-request"),
        (UNLOAD, json!({"all": false}), 422, "invalid-request"),
        (UNLOAD, json!({"mode": "tiny", "all": true}), 422, "invalid-request"),
        (SWITCH, json!({"mode": "tiny", "timeout_secs": 0}), 422, "invalid-request"),
        (SWITCH, json!({"mode": "tiny", "timeout_secs": 86_401}), 422, "invalid-request"),
    ] {
        let problem = daemon.post(path, &body).problem(status, kind, path);
        let has_errors = problem["errors"].as_array().is_some_and(|errors| !errors.is_empty());
        assert_eq!(has_errors, status == 422, "{body}: {problem}");
    }
}

#[test]
fn who_has_no_admin_key_loads_nothing() {
    let folder = folder(MODES);
    let mut program = command(folder.path());
    program.env("DIFFUSED_ADMIN_KEY", "secret");
    let daemon = Daemon::spawn(program, folder, &[]);
    let json = ("content-type", "application/json");
    for path in [LOAD, UNLOAD, SWITCH] {
        let body = json!({"mode": "other"});
        daemon.post(path, &body).problem(401, "admin-key-needed", path);
        let headers = [json, ("x-admin-key", "wrong")];
        let wrong = daemon.send("POST", path, &headers, body.to_string().as_bytes());
        wrong.problem(401, "admin-key-needed", path);
        let headers = [json, ("x-admin-key", "secret")];
        let right = daemon.send("POST", path, &headers, body.to_string().as_bytes());
        assert_eq!(right.status, 202, "{}", right.text());
    }
    for path in ["/api/models", "/api/models/available", "/api/vram", "/metrics"] {
        assert_eq!(daemon.get(path).status, 200, "{path}");
    }
}

#[test]
fn being_alive_and_being_ready_are_two_things() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.get("/health/live").json()["status"], "ok");
    wait_for("the worker", || (daemon.get("/health/ready").status == 200).then_some(()));
    assert_eq!(daemon.get("/health").json()["status"], "ok");
    let drawing = daemon.begin_post("/generate", &long_request());
    daemon.wait_for_status("the drawing", |status| {
        status["running_job"].is_string() && status["current_mode"].is_string()
    });
    daemon.signal("-TERM");
    wait_for("the end to begin", || (daemon.get("/health/ready").status == 503).then_some(()));
    let ready = "/health/ready";
    daemon.get(ready).problem(503, "shutting-down", ready);
    assert_eq!(daemon.get("/health/live").status, 200);
    drop(drawing);
    assert!(daemon.ended().success());
}

#[test]
fn prometheus_finds_all_families() {
    let daemon = started();
    assert_eq!(
        daemon.post("/generate", &json!({"prompt": "x", "num_inference_steps": 2})).status,
        200
    );
    let text = daemon.get("/metrics").text();
    for line in [
        "diffused_jobs_running 0",
        "diffused_jobs_waiting 0",
        "diffused_jobs_total{type=\"generation\",outcome=\"done\"} 1",
        "diffused_jobs_total{type=\"mode_switch\",outcome=\"done\"} 1",
        "diffused_jobs_total{type=\"unload\",outcome=\"failed\"} 0",
        "diffused_queue_wait_seconds_count 2",
        "diffused_stage_seconds_count{stage=\"load\"} 1",
        "diffused_stage_seconds_count{stage=\"denoise\"} 1",
        "diffused_step_seconds_count 2",
        "diffused_pipeline_loads_total{mode=\"tiny\"} 1",
        "diffused_pipeline_hits_total{mode=\"tiny\"} 1",
        "diffused_evictions_total{reason=\"asked\"} 0",
        "diffused_worker_restarts_total 0",
        "diffused_degraded 0",
        "diffused_config_reloads_total{by=\"api\",outcome=\"applied\"} 0",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    for start in [
        "diffused_model_bytes{mode=\"tiny\",component=\"unet\"} ",
        "diffused_weights_bytes ",
        "diffused_allocated_bytes ",
        "diffused_device_bytes{kind=\"total\"} ",
    ] {
        let line = text.lines().find_map(|line| line.strip_prefix(start)).expect(start);
        assert!(line.parse::<u64>().unwrap() > 0, "{start}{line}");
    }
}

#[test]
fn a_switch_does_not_trust_another_one_that_may_be_given_up() {
    let daemon = started();
    let drawing = daemon.begin_post("/generate", &long_request());
    daemon.wait_for_status("the drawing", |status| status["running_job"].is_string());
    daemon.post(SWITCH, &json!({"mode": "other", "timeout_secs": 1}));
    let body = json!({"mode": "other", "wait": true, "timeout_secs": 2});
    daemon.post(SWITCH, &body).problem(504, "timed-out", SWITCH);
    drop(drawing);
}
