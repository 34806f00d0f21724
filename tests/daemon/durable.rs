//! Jobs outlive the daemon that accepted them.

use std::fs;

use serde_json::{Value, json};

use crate::{
    process::limit_file_size,
    support::{Answer, Daemon, MODES, folder, wait_for},
};

fn body(fields: Value) -> Value {
    let mut body = json!({"prompt": "a fox", "seed": 7, "num_inference_steps": 2, "mode": "tiny"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// Draws for minutes unless it is stopped.
fn long() -> Value {
    json!({"size": "512x512", "num_inference_steps": 999})
}

fn submit(daemon: &Daemon, fields: Value) -> String {
    let answer = daemon.post("/api/jobs", &body(fields));
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn submit_with_key(daemon: &Daemon, key: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    daemon.send("POST", "/api/jobs", &headers, body(json!({"seed": 9})).to_string().as_bytes())
}

fn job(daemon: &Daemon, id: &str) -> Value {
    daemon.get(&format!("/api/jobs/{id}")).json()
}

fn until_it_is_drawn(daemon: &Daemon, id: &str) {
    wait_for("the drawing", || (job(daemon, id)["state"] == "running").then_some(()));
}

fn delete(daemon: &Daemon, id: &str) {
    let answer = daemon.send("DELETE", &format!("/api/jobs/{id}"), &[], &[]);
    assert!([200, 202].contains(&answer.status), "{}", answer.text());
}

fn image(daemon: &Daemon, id: &str) -> Vec<u8> {
    let answer = daemon.get(&format!("/api/jobs/{id}/image"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.body
}

fn start(lines: &str) -> Daemon {
    Daemon::start_in(folder(&format!("{lines}{MODES}")), &[])
}

#[test]
fn what_was_accepted_goes_on_after_a_kill() {
    let mut daemon = Daemon::start();
    let running = submit(&daemon, long());
    let first = submit(&daemon, json!({"seed": 1, "tags": ["mine"]}));
    let other = submit(&daemon, json!({"seed": 2, "mode": "other"}));
    let urgent = submit(&daemon, json!({"seed": 3, "priority": 5}));
    let keyed = submit_with_key(&daemon, "k").json()["id"].as_str().unwrap().to_owned();
    let switch = daemon.post("/api/modes/switch", &json!({"mode": "other"}));
    let switch = switch.header("x-job-id").to_owned();
    until_it_is_drawn(&daemon, &running);
    daemon.kill();
    daemon.start_again(&[]);

    let again = submit_with_key(&daemon, "k");
    assert_eq!(again.json()["id"], keyed.as_str(), "the key is known");
    until_it_is_drawn(&daemon, &running);
    assert_eq!(job(&daemon, &running)["attempts"], 2);
    assert_eq!(job(&daemon, &first)["tags"], json!(["mine"]));
    delete(&daemon, &running);
    let all = [&urgent, &first, &other, &keyed];
    let done: Vec<Value> = all.iter().map(|id| daemon.finished_job(id)).collect();
    assert!(done.iter().all(|job| job["state"] == "done"), "{done:?}");
    let ended: Vec<u64> =
        done.iter().map(|job| job["finished_unix_ms"].as_u64().unwrap()).collect();
    assert!(ended.is_sorted(), "in their order: {ended:?}");
    assert_eq!(daemon.finished_job(&switch)["state"], "done");
    daemon.wait_for_status("the mode that was asked for", |it| it["current_mode"] == "other");
    for (id, seed, mode) in [(&first, 1, "tiny"), (&other, 2, "other"), (&keyed, 9, "tiny")] {
        let waited = daemon.post("/generate", &body(json!({"seed": seed, "mode": mode})));
        assert!(image(&daemon, id) == waited.body, "seed {seed}: another image");
    }
    assert_eq!(job(&daemon, &running)["state"], "cancelled");
}

#[test]
fn what_has_ended_keeps_its_result() {
    let mut daemon = Daemon::start();
    let two = submit(&daemon, json!({"n": 2, "tags": ["x"]}));
    let failing = submit(&daemon, json!({"mode": "styled"})); // its LoRAs are not there
    let before = [&two, &failing].map(|id| daemon.finished_job(id));
    let images = [0, 1].map(|at| daemon.get(&format!("/api/jobs/{two}/image/{at}")).body);
    for stop in ["-KILL", "-TERM"] {
        daemon.signal(stop);
        daemon.ended();
        daemon.start_again(&[]);
        assert_eq!([&two, &failing].map(|id| job(&daemon, id)), before, "after {stop}");
        let again = [0, 1].map(|at| daemon.get(&format!("/api/jobs/{two}/image/{at}")).body);
        assert!(again == images, "other images after {stop}");
    }
    let webp = daemon.get(&format!("/api/jobs/{two}/image/1?format=webp"));
    assert_eq!((webp.header("content-type"), webp.header("x-seed")), ("image/webp", "8"));
    // A file that somebody has removed is gone, and nothing worse.
    fs::remove_file(daemon.path().join(format!("state/results/{two}-0.png"))).unwrap();
    let path = format!("/api/jobs/{two}/image/0");
    daemon.get(&path).problem(410, "gone", &path);
}

#[test]
fn a_larger_image_and_a_custom_job_keep_their_results_too() {
    let mut daemon = start("custom_jobs: {echo: {command: [cat]}}\n");
    let drawn = submit(&daemon, json!({"superres": true}));
    daemon.finished_job(&drawn);
    let small = daemon.post("/generate", &body(json!({}))).body;
    let image = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, small);
    let upscale = json!({"name": "upscale", "args": {"image": image}});
    let upscale = daemon.post("/api/jobs/custom", &upscale).header("x-job-id").to_owned();
    let echo = json!({"name": "echo", "args": {"a": [1, 2]}, "tags": ["mine"]});
    let echo = daemon.post("/api/jobs/custom", &echo).header("x-job-id").to_owned();
    let all = [&drawn, &upscale, &echo];
    let before = all.map(|id| daemon.finished_job(id));
    assert_eq!(before[2]["result"], json!({"a": [1, 2]}));
    let paths = [&drawn, &upscale].map(|id| format!("/api/jobs/{id}/image"));
    let images = paths.each_ref().map(|path| daemon.get(path));
    daemon.kill();
    daemon.start_again(&[]);
    assert_eq!(all.map(|id| job(&daemon, id)), before);
    for (path, image) in paths.iter().zip(&images) {
        let again = daemon.get(path);
        assert!(again.body == image.body && image.status == 200, "{}", again.text());
        for header in ["x-superres", "x-superres-model"] {
            assert_eq!(again.header(header), image.header(header));
            assert!(!image.header(header).is_empty());
        }
        assert_eq!(daemon.get(&format!("{path}?format=jpeg")).header("content-type"), "image/jpeg");
    }
}

#[test]
fn a_job_that_ends_the_daemon_again_and_again_is_given_up() {
    let mut daemon = start("jobs: {max_attempts: 3}\n");
    let poison = submit(&daemon, long());
    let next = submit(&daemon, json!({}));
    for attempt in 1..=3 {
        until_it_is_drawn(&daemon, &poison);
        assert_eq!(job(&daemon, &poison)["attempts"], attempt);
        daemon.kill();
        daemon.start_again(&[]);
    }
    let failed = daemon.finished_job(&poison);
    assert_eq!(failed["state"], "failed", "{failed}");
    assert!(failed["reason"].as_str().unwrap().contains("3 times in this job's turn"), "{failed}");
    assert_eq!(daemon.finished_job(&next)["state"], "done");
}

#[test]
fn a_stop_puts_back_what_it_does_not_wait_for() {
    let mut daemon = Daemon::start_with(&["--drain-timeout", "0"]);
    let running = submit(&daemon, long());
    let waiting = submit(&daemon, json!({}));
    for _ in 0..3 {
        until_it_is_drawn(&daemon, &running);
        assert_eq!(job(&daemon, &running)["attempts"], 1, "a stop is no attempt");
        daemon.signal("-TERM");
        assert_eq!(daemon.ended().code(), Some(0));
        daemon.start_again(&["--drain-timeout", "0"]);
    }
    delete(&daemon, &running);
    assert_eq!(daemon.finished_job(&waiting)["state"], "done");
}

#[test]
fn without_a_journal_jobs_end_with_the_daemon() {
    let mut daemon = start("jobs: {journal: off}\n");
    assert!(daemon.log().contains("journal: off"), "{}", daemon.log());
    let id = submit(&daemon, json!({}));
    assert_eq!(daemon.finished_job(&id)["images"], 1);
    image(&daemon, &id);
    assert!(!daemon.path().join("state/journal.sqlite3").exists());
    daemon.kill();
    daemon.start_again(&[]);
    let path = format!("/api/jobs/{id}");
    daemon.get(&path).problem(404, "unknown-job", &path);
}

#[test]
fn a_damaged_journal_is_put_aside_loudly() {
    let mut daemon = Daemon::start();
    let lost = submit(&daemon, json!({}));
    daemon.finished_job(&lost);
    daemon.signal("-TERM");
    daemon.ended();
    let journal = daemon.path().join("state/journal.sqlite3");
    fs::write(&journal, "this is no database any more, whatever it was before".repeat(100))
        .unwrap();
    daemon.start_again(&[]);
    let log = daemon.log();
    assert!(log.contains("ERROR") && log.contains("is damaged"), "{log}");
    assert_eq!(daemon.get(&format!("/api/jobs/{lost}")).status, 404);
    let id = submit(&daemon, json!({}));
    assert_eq!(daemon.finished_job(&id)["state"], "done");
    let names = fs::read_dir(daemon.path().join("state")).unwrap();
    let names: Vec<_> = names.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("journal.sqlite3.damaged-")), "{names:?}");
}

#[test]
fn jobs_and_images_are_kept_for_as_long_as_the_file_says() {
    let daemon = start("jobs: {retention: {max_jobs: 3}}\n");
    let ids: Vec<String> = (0..5).map(|seed| submit(&daemon, json!({"seed": seed}))).collect();
    daemon.finished_job(&ids[4]);
    let known = |id: &String| daemon.get(&format!("/api/jobs/{id}")).status == 200;
    let file = |id: &String| daemon.path().join(format!("state/results/{id}-0.png")).exists();
    let are = |is: &dyn Fn(&String) -> bool| ids.iter().map(is).collect::<Vec<bool>>();
    assert_eq!(are(&known), [false, false, true, true, true]);
    wait_for("the files to go", || (are(&file) == [false, false, true, true, true]).then_some(()));
    // Less from now on: the images alone, the jobs stay.
    let less = format!("jobs: {{retention: {{max_jobs: 3, max_gb: 0}}}}\n{MODES}");
    fs::write(daemon.config_file(), less).unwrap();
    wait_for("all files to go", || (are(&file) == [false; 5]).then_some(()));
    assert_eq!(are(&known), [false, false, true, true, true]);
    let path = format!("/api/jobs/{}/image", ids[4]);
    daemon.get(&path).problem(410, "gone", &path);
}

#[test]
fn a_full_disk_refuses_jobs_and_loses_none() {
    let mut daemon = Daemon::start();
    let before = submit(&daemon, json!({"seed": 1}));
    let image_before = {
        daemon.finished_job(&before);
        image(&daemon, &before)
    };
    let running = submit(&daemon, json!({"seed": 2, "num_inference_steps": 400}));
    let next = submit(&daemon, json!({"seed": 3, "num_inference_steps": 400}));
    let waiting = submit(&daemon, json!({"seed": 4}));
    until_it_is_drawn(&daemon, &running);
    limit_file_size(daemon.id(), Some(1));
    let refused = daemon.post("/api/jobs", &body(json!({"seed": 5})));
    refused.problem(503, "not-written", "/api/jobs");
    assert!(!refused.header("retry-after").is_empty());
    // What runs comes to its end, and can be seen, and what was there before.
    assert_eq!(daemon.finished_job(&running)["state"], "done");
    let drawn = image(&daemon, &running);
    assert!(image(&daemon, &before) == image_before);
    daemon.wait_for_status("to be held", |status| status["storage_fails"] == true);
    assert_eq!(daemon.get("/health/ready").status, 503);
    // The next one may have been begun before that was known; nothing is any more.
    assert_eq!(daemon.finished_job(&next)["state"], "done");
    assert_eq!(job(&daemon, &waiting)["state"], "queued");
    limit_file_size(daemon.id(), None);
    assert_eq!(daemon.finished_job(&waiting)["state"], "done");
    let later = submit(&daemon, json!({"seed": 6}));
    daemon.finished_job(&later);
    daemon.kill();
    daemon.start_again(&[]);
    for id in [&before, &running, &next, &waiting, &later] {
        assert_eq!(job(&daemon, id)["state"], "done");
    }
    assert!(image(&daemon, &running) == drawn, "it was written when there was room again");
    let all = daemon.get("/api/jobs").json();
    let generations = all["jobs"].as_array().unwrap().iter();
    assert_eq!(generations.filter(|job| job["type"] == "generation").count(), 5, "{all}");
}
