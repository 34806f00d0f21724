//! The order of the work over the API: priorities, and a queue that is held back and cleared.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, folder, has_answer, read_to_end};

const PAUSE: &str = "/api/queue/pause";
const RESUME: &str = "/api/queue/resume";
const CLEAR: &str = "/api/queue/clear";

/// With the default mode loaded, and nothing to do.
fn started() -> Daemon {
    let daemon = Daemon::start();
    daemon.wait_for_status("the default mode", |status| {
        status["current_mode"] == "tiny" && status["running_job"].is_null()
    });
    daemon
}

fn post(daemon: &Daemon, path: &str) -> Value {
    let answer = daemon.send("POST", path, &[], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn metric(daemon: &Daemon) -> String {
    let text = daemon.get("/metrics").text();
    text.lines().find(|line| line.starts_with("diffused_paused")).unwrap().to_owned()
}

#[test]
fn while_paused_a_request_waits_and_resumed_it_is_drawn() {
    let daemon = started();
    assert_eq!(daemon.get("/api/models/status").json()["paused"], false);
    assert_eq!(metric(&daemon), "diffused_paused 0");
    for _ in 0..2 {
        assert_eq!(post(&daemon, PAUSE), json!({"paused": true, "queue_size": 0}));
    }
    let drawing = daemon.begin_post("/generate", &json!({"prompt": "x"}));
    daemon.wait_for_status("the request", |status| status["queue_size"] == 1);
    let status = daemon.get("/api/models/status").json();
    assert_eq!((&status["paused"], &status["running_job"]), (&json!(true), &Value::Null));
    assert_eq!(metric(&daemon), "diffused_paused 1");
    assert!(!has_answer(&drawing));
    for _ in 0..2 {
        assert_eq!(post(&daemon, RESUME)["paused"], false);
    }
    let answer = read_to_end(drawing);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_paused_queue_fills_up() {
    let daemon = Daemon::start_with(&["--queue-max", "2"]);
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    post(&daemon, PAUSE);
    let waiting: Vec<_> =
        (0..2).map(|_| daemon.begin_post("/generate", &json!({"prompt": "x"}))).collect();
    daemon.wait_for_status("both", |status| status["queue_size"] == 2);
    let refused = daemon.post("/generate", &json!({"prompt": "x"}));
    refused.problem(429, "queue-full", "/generate");
    post(&daemon, RESUME);
    for stream in waiting {
        assert!(read_to_end(stream).starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn clear_cancels_what_waits() {
    let daemon = started();
    post(&daemon, PAUSE);
    let drawing = daemon.begin_post("/generate", &json!({"prompt": "x", "mode": "other"}));
    daemon.wait_for_status("the request", |status| status["queue_size"] == 2);
    let cleared = post(&daemon, CLEAR);
    assert_eq!(cleared, json!({"cancelled": 2, "paused": true, "queue_size": 0}));
    let answer = read_to_end(drawing);
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    assert_eq!(post(&daemon, CLEAR)["cancelled"], 0);
    assert_eq!(daemon.get("/api/models/status").json()["current_mode"], "tiny");
    post(&daemon, RESUME);
    assert_eq!(daemon.post("/generate", &json!({"prompt": "x"})).status, 200);
}

#[test]
fn who_has_no_admin_key_holds_nothing_back() {
    let folder = folder(MODES);
    let key = folder.path().join("key");
    fs::write(&key, "secret\n").unwrap();
    let daemon = Daemon::start_in(folder, &["--admin-key-file", key.to_str().unwrap()]);
    for path in [PAUSE, RESUME, CLEAR] {
        daemon.send("POST", path, &[], b"").problem(401, "admin-key-needed", path);
        assert_eq!(daemon.send("POST", path, &[("x-admin-key", "secret")], b"").status, 200);
    }
}

#[test]
fn a_higher_priority_is_drawn_first() {
    let daemon = started();
    post(&daemon, PAUSE);
    let form = |priority: &'static [u8]| {
        let parts: [(&str, Option<&str>, &[u8]); 2] =
            [("prompt", None, b"x"), ("priority", None, priority)];
        daemon.post_form("/generate", &parts)
    };
    let job =
        |answer: &Answer| daemon.get(&format!("/api/jobs/{}", answer.header("x-job-id"))).json();
    let jobs = std::thread::scope(|scope| {
        let low =
            scope.spawn(|| daemon.post("/generate", &json!({"prompt": "x", "priority": -10})));
        daemon.wait_for_status("the first", |status| status["queue_size"] == 1);
        let plain = scope.spawn(|| daemon.post("/generate", &json!({"prompt": "x"})));
        daemon.wait_for_status("the second", |status| status["queue_size"] == 2);
        let high = scope.spawn(|| form(b"10"));
        daemon.wait_for_status("the third", |status| status["queue_size"] == 3);
        post(&daemon, RESUME);
        [high, plain, low].map(|answer| job(&answer.join().unwrap()))
    });
    let priorities: Vec<_> = jobs.iter().map(|job| job["priority"].as_i64()).collect();
    assert_eq!(priorities, [Some(10), Some(0), Some(-10)]);
    let started: Vec<_> = jobs.iter().map(|job| job["started_unix_ms"].as_u64()).collect();
    assert!(started.is_sorted(), "{started:?}");
    assert!(jobs.iter().all(|job| job["request"].get("priority").is_none()), "{jobs:?}");

    for priority in [json!(11), json!(-11), json!(0.5), json!("1")] {
        let refused = daemon.post("/generate", &json!({"prompt": "x", "priority": priority}));
        let problem = refused.problem(422, "invalid-request", "/generate");
        assert_eq!(problem["errors"][0]["pointer"], "/priority");
    }
    form(b"11").problem(422, "invalid-request", "/generate");
}

#[test]
fn clients_take_turns_where_it_is_fair() {
    let daemon = Daemon::start_in(folder(&format!("{MODES}fair: true\n")), &[]);
    daemon.wait_for_status("the default mode", |status| {
        status["current_mode"] == "tiny" && status["running_job"].is_null()
    });
    post(&daemon, PAUSE);
    let body = json!({"prompt": "x", "num_inference_steps": 1}).to_string();
    let submit = |key: &[(&str, &str)], prefer: bool| {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(key);
        let path = match prefer {
            true => {
                headers.push(("prefer", "respond-async"));
                "/generate"
            }
            false => "/api/jobs",
        };
        let answer = daemon.send("POST", path, &headers, body.as_bytes());
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    let (x, y) = ([("authorization", "Bearer secret-x")], [("x-api-key", "secret-y")]);
    let ids = [
        submit(&x, false),
        submit(&x, true),
        submit(&x, false),
        submit(&y, true),
        submit(&[], false),
        submit(&y, false),
    ];
    post(&daemon, RESUME);
    let jobs: Vec<Value> = ids.iter().map(|id| daemon.finished_job(id)).collect();
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|at| jobs[*at]["started_unix_ms"].as_u64());
    assert_eq!(order, [0, 3, 4, 1, 5, 2]);
    let told = format!("{jobs:?}{}", daemon.log());
    assert!(!told.contains("secret-"), "a key is shown: {told}");
}

#[test]
fn a_reload_changes_the_order_at_once() {
    let daemon = started();
    post(&daemon, PAUSE);
    let other = daemon.begin_post("/generate", &json!({"prompt": "x", "mode": "other"}));
    daemon.wait_for_status("the first", |status| status["queue_size"] == 2);
    let same = daemon.begin_post("/generate", &json!({"prompt": "x", "mode": "tiny"}));
    daemon.wait_for_status("the second", |status| status["queue_size"] == 4);
    fs::write(daemon.config_file(), format!("{MODES}scheduling: affinity\nmax_wait: 1h\n"))
        .unwrap();
    let reloaded = daemon.post("/api/modes/reload", &json!({}));
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    post(&daemon, RESUME);
    let started = |stream| {
        let answer = read_to_end(stream).to_lowercase();
        let id = answer.split("x-job-id: ").nth(1).unwrap().split("\r\n").next().unwrap();
        daemon.get(&format!("/api/jobs/{id}")).json()["started_unix_ms"].as_u64().unwrap()
    };
    let (other, same) = (started(other), started(same));
    assert!(same < other, "{same} {other}");
}
