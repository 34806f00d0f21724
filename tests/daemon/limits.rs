//! Jobs whose time is over, over the API.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Daemon, MODES, folder, read_to_end, wait_for};

/// With the default mode loaded, and nothing to do.
fn started(arguments: &[&str]) -> Daemon {
    let daemon = Daemon::start_with(arguments);
    daemon.wait_for_status("the default mode", |status| {
        status["current_mode"] == "tiny" && status["running_job"].is_null()
    });
    daemon
}

/// It would be drawn for minutes.
fn long() -> Value {
    json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512"})
}

fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

fn submit(daemon: &Daemon, body: &Value) -> String {
    let answer = daemon.post("/api/jobs", body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn is_drawn(daemon: &Daemon) {
    let image = daemon.post("/generate", &json!({"prompt": "x", "num_inference_steps": 1}));
    assert_eq!(image.status, 200, "{}", image.text());
}

#[test]
fn what_has_not_ended_by_its_deadline_fails() {
    let daemon = started(&[]);
    let running = daemon.begin_post("/generate", &with(long(), "deadline", json!(3)));
    daemon.wait_for_status("a running job", |status| !status["running_job"].is_null());
    let waiting = submit(&daemon, &with(long(), "deadline", json!(0.5)));
    let ended = daemon.finished_job(&waiting);
    assert_eq!((&ended["state"], &ended["started_unix_ms"]), (&json!("failed"), &Value::Null));
    assert_eq!(ended["reason"], "its deadline has passed");
    let [wanted, finished] =
        ["deadline_unix_ms", "finished_unix_ms"].map(|name| ended[name].as_u64().unwrap());
    assert!(finished >= wanted, "{ended}");
    let answer = read_to_end(running);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("deadline-passed"), "{answer}");
    is_drawn(&daemon);

    for wrong in [json!("2001-01-01T00:00:00Z"), json!("soon"), json!(0), json!(-5)] {
        for path in ["/generate", "/api/jobs"] {
            let refused = daemon.post(path, &with(long(), "deadline", wrong.clone()));
            let problem = refused.problem(422, "invalid-request", path);
            assert_eq!(problem["errors"][0]["pointer"], "/deadline", "{problem}");
        }
    }
    let in_time = json!({"prompt": "x", "deadline": "2999-01-01T00:00:00+01:00"});
    assert_eq!(daemon.post("/generate", &in_time).status, 200);
}

#[test]
fn who_waits_for_an_answer_waits_no_longer_than_the_admission_timeout() {
    let daemon = started(&["--admission-timeout", "1"]);
    let running = daemon.begin_post("/generate", &long());
    daemon.wait_for_status("a running job", |status| !status["running_job"].is_null());
    let patient = submit(&daemon, &json!({"prompt": "x", "num_inference_steps": 1}));
    let refused = daemon.post("/generate", &long());
    refused.problem(503, "admission-timeout", "/generate");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(daemon.finished_job(refused.header("x-job-id"))["state"], "failed");
    // Neither the one that has begun nor the one that nobody waits for.
    assert_eq!(daemon.get(&format!("/api/jobs/{patient}")).json()["state"], "queued");
    drop(running);
    assert_eq!(daemon.finished_job(&patient)["state"], "done");
}

#[test]
fn drawing_takes_no_longer_than_the_shortest_timeout() {
    let daemon = started(&[]);
    let refused = daemon.post("/generate", &with(long(), "timeout", json!(1)));
    let problem = refused.problem(504, "drawing-timed-out", "/generate");
    assert_eq!(problem["detail"], "drawing took longer than its timeout");
    let form: [(&str, Option<&str>, &[u8]); 2] =
        [("prompt", None, b"x"), ("timeout", None, b"0.5")];
    let wrong = daemon.post_form("/generate", &form).problem(422, "invalid-request", "/generate");
    assert_eq!(wrong["errors"][0]["pointer"], "/timeout");

    let timeout = |body: &Value| {
        let id = submit(&daemon, body);
        let job = daemon.get(&format!("/api/jobs/{id}")).json();
        daemon.send("DELETE", &format!("/api/jobs/{id}"), &[], b"");
        job["timeout_secs"].clone()
    };
    assert_eq!(timeout(&long()), Value::Null);
    let modes = MODES.replace("72x64,", "72x64, timeout: 1m,");
    fs::write(daemon.config_file(), format!("timeout: 10m\n{modes}")).unwrap();
    let reloaded = daemon.post("/api/modes/reload", &json!({}));
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    let of_other = with(long(), "mode", json!("other"));
    for (body, expected) in [
        (long(), 600),
        (with(long(), "timeout", json!(601)), 600),
        (with(long(), "timeout", json!(599)), 599),
        (of_other.clone(), 60),
        (with(of_other, "timeout", json!(30)), 30),
    ] {
        assert_eq!(timeout(&body), expected, "{body}");
    }
    let modes = daemon.get("/api/modes").json()["modes"].clone();
    assert_eq!(
        (&modes["tiny"]["timeout"], &modes["other"]["timeout"]),
        (&json!(null), &json!("60s"))
    );
}

#[test]
fn a_worker_that_hangs_is_ended_and_the_queue_goes_on() {
    let daemon = Daemon::start_in(folder(MODES), &["--stop-grace", "0"]);
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    let worker = daemon.worker();
    let hanging = submit(&daemon, &with(long(), "timeout", json!(2)));
    let next = submit(&daemon, &json!({"prompt": "x", "num_inference_steps": 1}));
    worker.wait_for_work();
    worker.signal("-STOP");
    let ended = daemon.finished_job(&hanging);
    assert_eq!(ended["reason"], "drawing took longer than its timeout", "{ended}");
    assert_eq!(daemon.finished_job(&next)["state"], "done");
    wait_for("the old worker's end", || (!worker.is_alive()).then_some(()));
    assert_eq!(daemon.get("/api/models/status").json()["worker_restarts"], 1);
}
