//! Work that is handed in now and fetched later.

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, folder, wait_for};

fn body(fields: Value) -> Value {
    let mut body = json!({"prompt": "a fox", "seed": 7, "num_inference_steps": 2, "mode": "tiny"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// Draws for minutes unless it is stopped.
fn long() -> Value {
    body(json!({"size": "512x512", "num_inference_steps": 999}))
}

fn submit(daemon: &Daemon, fields: Value) -> String {
    let answer = daemon.post("/api/jobs", &body(fields));
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("/api/jobs/{id}"));
    assert_eq!(answer.header("x-job-id"), id);
    id
}

fn delete(daemon: &Daemon, id: &str) -> Answer {
    daemon.send("DELETE", &format!("/api/jobs/{id}"), &[], &[])
}

fn state(daemon: &Daemon, id: &str) -> String {
    daemon.get(&format!("/api/jobs/{id}")).json()["state"].as_str().unwrap().to_owned()
}

fn ids(list: &Value) -> Vec<&str> {
    list["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect()
}

#[test]
fn a_job_is_submitted_followed_and_its_images_fetched() {
    let daemon = Daemon::start();
    let id = submit(&daemon, json!({"n": 2, "tags": ["covers", "draft"]}));
    let done = daemon.finished_job(&id);
    assert_eq!((&done["state"], &done["images"]), (&json!("done"), &json!(2)), "{done}");
    assert_eq!(done["tags"], json!(["covers", "draft"]));
    for (index, seed) in [(0, 7), (1, 8)] {
        let image = daemon.get(&format!("/api/jobs/{id}/image/{index}"));
        assert_eq!((image.status, image.header("content-type")), (200, "image/png"));
        assert_eq!(image.header("x-seed"), seed.to_string());
        // The same bytes as who waits for it gets.
        let waited = daemon.post("/generate", &body(json!({"seed": seed})));
        assert!(image.body == waited.body, "image {index} differs");
    }
    assert!(
        daemon.get(&format!("/api/jobs/{id}/image")).body
            == daemon.get(&format!("/api/jobs/{id}/image/0")).body
    );
    let path = format!("/api/jobs/{id}/image");
    for (query, media_type) in [
        ("?format=jpeg", "image/jpeg"),
        ("?format=webp", "image/webp"),
        ("?quality=10", "image/jpeg"),
    ] {
        let image = daemon.get(&format!("{path}{query}"));
        assert_eq!((image.status, image.header("content-type")), (200, media_type), "{query}");
    }
    let (worse, better) =
        (daemon.get(&format!("{path}?quality=5")), daemon.get(&format!("{path}?quality=100")));
    assert!(worse.body.len() < better.body.len());
    let webp = daemon.send("GET", &path, &[("accept", "image/webp")], &[]);
    assert_eq!(webp.header("content-type"), "image/webp");

    daemon.get(&format!("{path}/2")).problem(404, "not-found", &format!("{path}/2"));
    daemon.get(&format!("{path}/first")).problem(404, "not-found", &format!("{path}/first"));
    for query in ["format=gif", "quality=0", "format=png&quality=9"] {
        daemon.get(&format!("{path}?{query}")).problem(422, "invalid-request", &path);
    }
}

#[test]
fn what_has_no_image_says_why() {
    let daemon = Daemon::start();
    let waited = daemon.post("/generate", &body(json!({})));
    let path = format!("/api/jobs/{}/image", waited.header("x-job-id"));
    daemon.get(&path).problem(410, "gone", &path);
    let failing = submit(&daemon, json!({"mode": "styled"})); // its LoRAs are not there
    assert_eq!(daemon.finished_job(&failing)["state"], "failed");
    let path = format!("/api/jobs/{failing}/image");
    let problem = daemon.get(&path).problem(409, "conflict", &path);
    assert!(problem["detail"].as_str().unwrap().contains("a.safetensors"), "{problem}");
    daemon.get("/api/jobs/nope/image").problem(404, "unknown-job", "/api/jobs/nope/image");
}

#[test]
fn jobs_are_cancelled_where_they_wait_and_where_they_run() {
    let daemon = Daemon::start();
    let running = submit(&daemon, long());
    let waiting = submit(&daemon, json!({}));
    wait_for("the drawing", || (state(&daemon, &running) == "running").then_some(()));
    let image = format!("/api/jobs/{waiting}/image");
    daemon.get(&image).problem(409, "conflict", &image);
    assert_eq!(delete(&daemon, &waiting).status, 200);
    assert_eq!(state(&daemon, &waiting), "cancelled");
    let answer = delete(&daemon, &running);
    assert!([200, 202].contains(&answer.status), "{}", answer.text());
    assert_eq!(daemon.finished_job(&running)["state"], "cancelled");
    let path = format!("/api/jobs/{running}");
    delete(&daemon, &running).problem(409, "conflict", &path);
    delete(&daemon, "nope").problem(404, "unknown-job", "/api/jobs/nope");
    // The worker is free again.
    assert_eq!(daemon.post("/generate", &body(json!({}))).status, 200);
}

#[test]
fn the_same_idempotency_key_is_the_same_job() {
    let daemon = Daemon::start();
    let send = |key: &str, fields: Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        daemon.send("POST", "/api/jobs", &headers, body(fields).to_string().as_bytes())
    };
    let first = send("k1", json!({}));
    assert_eq!(first.status, 202);
    let again = send("k1", json!({}));
    assert_eq!((again.status, again.json()["id"].clone()), (202, first.json()["id"].clone()));
    assert_ne!(send("k2", json!({})).json()["id"], first.json()["id"]);
    send("k1", json!({"seed": 8})).problem(422, "idempotency-key-reused", "/api/jobs");
    let id = first.json()["id"].as_str().unwrap().to_owned();
    daemon.finished_job(&id);
    assert_eq!(send("k1", json!({})).json()["state"], "done");
    let generations = |list: &Value| {
        list["jobs"].as_array().unwrap().iter().filter(|job| job["type"] == "generation").count()
    };
    assert_eq!(generations(&daemon.get("/api/jobs").json()), 2);
}

#[test]
fn jobs_are_listed_by_state_mode_and_tag_page_by_page() {
    let daemon = Daemon::start_in(folder(MODES), &[]);
    let running = submit(&daemon, long());
    wait_for("the drawing", || (state(&daemon, &running) == "running").then_some(()));
    let mine: Vec<String> =
        (0..5).map(|seed| submit(&daemon, json!({"seed": seed, "tags": ["mine"]}))).collect();
    let other = submit(&daemon, json!({"mode": "other"}));
    let list = |query: &str| daemon.get(&format!("/api/jobs?{query}")).json();
    assert_eq!(ids(&list("state=running")), [running.as_str()]);
    let newest_first: Vec<&str> = mine.iter().rev().map(String::as_str).collect();
    assert_eq!(ids(&list("tag=mine&state=queued,running")), newest_first);
    assert!(ids(&list("mode=other")).contains(&other.as_str()));
    assert!(!ids(&list("mode=other")).contains(&running.as_str()));
    // Page by page nothing is missing and nothing is there twice.
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(&format!("tag=mine&limit=2{cursor}"));
        found.extend(ids(&page).into_iter().map(str::to_owned));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found, newest_first);
    let problem = daemon.get("/api/jobs?state=sleeping&limit=0&cursor=x").problem(
        422,
        "invalid-request",
        "/api/jobs",
    );
    assert_eq!(problem["errors"].as_array().unwrap().len(), 3, "{problem}");
    delete(&daemon, &running);
}

#[test]
fn who_prefers_not_to_wait_need_not() {
    let daemon = Daemon::start();
    let headers = [("content-type", "application/json"), ("prefer", "respond-async")];
    let answer = daemon.send("POST", "/generate", &headers, body(json!({})).to_string().as_bytes());
    assert_eq!((answer.status, answer.header("preference-applied")), (202, "respond-async"));
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    daemon.finished_job(&id);
    assert_eq!(daemon.get(&format!("/api/jobs/{id}/image")).status, 200);
    // What is wrong is said at once.
    let bad = body(json!({"size": "1x1", "tags": [7]})).to_string();
    let problem = daemon.send("POST", "/api/jobs", &headers, bad.as_bytes()).problem(
        422,
        "invalid-request",
        "/api/jobs",
    );
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/size", "/tags"]);
}

#[test]
fn a_job_says_when_it_will_begin_and_where_its_time_went() {
    let daemon = Daemon::start();
    let job = |id: &str| daemon.get(&format!("/api/jobs/{id}")).json();
    let submit =
        |body: &Value| daemon.post("/api/jobs", body).json()["id"].as_str().unwrap().to_owned();
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    let drawn = submit(&json!({"prompt": "x", "num_inference_steps": 4, "size": "128x128"}));
    let drawn = daemon.finished_job(&drawn);
    let timings = &drawn["timings"];
    let ms = |name: &str| timings[name].as_u64().unwrap_or_else(|| panic!("{name}: {drawn}"));
    let stages = ["queued_ms", "loading_ms", "encode_ms", "denoise_ms", "decode_ms"].map(ms);
    // Each is rounded down by itself.
    assert!(stages.iter().sum::<u64>() <= ms("total_ms") + 2, "{timings}");
    assert!(ms("denoise_ms") > 0, "{timings}");
    let [created, finished] =
        ["created_unix_ms", "finished_unix_ms"].map(|name| drawn[name].as_u64().unwrap());
    assert_eq!(ms("total_ms"), finished - created);
    assert_eq!(drawn["estimated_start_unix_ms"], Value::Null);

    // One that takes at least a hundred times as long, and two behind it.
    let long = submit(&json!({"prompt": "x", "num_inference_steps": 999, "size": "256x256"}));
    let ids = [(); 2].map(|()| submit(&json!({"prompt": "x", "size": "256x256"})));
    daemon.wait_for_status("the first", |status| status["running_job"] == long.as_str());
    let views = ids.each_ref().map(|id| job(id));
    let starts = views.map(|view| {
        assert_eq!(view["timings"], Value::Null);
        view["estimated_start_unix_ms"].as_u64().unwrap_or_else(|| panic!("{view}"))
    });
    let now = job(&long)["started_unix_ms"].as_u64().unwrap();
    assert!(now < starts[0] && starts[0] < starts[1], "{now} {starts:?}");
    let listed = daemon.get("/api/jobs?state=queued").json();
    let listed = listed["jobs"].as_array().unwrap().iter();
    assert!(listed.into_iter().all(|job| job["estimated_start_unix_ms"].is_u64()));

    assert_eq!(daemon.send("POST", "/api/queue/pause", &[], b"").status, 200);
    assert_eq!(job(&ids[0])["estimated_start_unix_ms"], Value::Null, "nobody knows");
    let cancelled = daemon.send("DELETE", &format!("/api/jobs/{long}"), &[], b"");
    assert_eq!(cancelled.status, 202, "{}", cancelled.text());
    assert_eq!(daemon.finished_job(&long)["timings"], Value::Null);
}
