//! Processes that are killed in the middle of their work, and more clients than there is room for.

use std::{collections::BTreeSet, thread};

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, read_to_end, wait_for};

/// Long enough to be killed in the middle, short enough to be drawn again.
fn request() -> Value {
    json!({"prompt": "a fox", "seed": 7, "num_inference_steps": 20, "size": "256x256"})
}

fn draw(daemon: &Daemon) -> Answer {
    let answer = daemon.post("/generate", &request());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// Kills the worker while it draws the only job that there is, and waits for the next worker.
fn kill_while_drawing(daemon: &Daemon) {
    // Once the mode is loaded, the worker has nothing to compute but the image.
    daemon.wait_for_status("the mode", |status| status["current_mode"] == "tiny");
    let worker = daemon.worker();
    worker.wait_for_work();
    worker.kill();
    wait_for("another worker", || (daemon.worker() != worker).then_some(()));
}

/// The same request, while `meanwhile` happens.
fn draw_while(daemon: &Daemon, meanwhile: impl FnOnce()) -> Answer {
    thread::scope(|scope| {
        let drawing = scope.spawn(|| daemon.post("/generate", &request()));
        meanwhile();
        wait_for("the answer", || {
            assert_eq!(daemon.get("/health").status, 200);
            assert_eq!(daemon.get("/api/models/status").status, 200);
            drawing.is_finished().then_some(())
        });
        drawing.join().unwrap()
    })
}

fn job(daemon: &Daemon, answer: &Answer) -> Value {
    daemon.get(&format!("/api/jobs/{}", answer.header("x-job-id"))).json()
}

#[test]
fn a_worker_that_is_killed_in_mid_job_costs_a_retry_and_no_more() {
    let daemon = Daemon::start();
    let before = draw(&daemon);
    assert_eq!(job(&daemon, &before)["attempts"], 1);

    let retried = draw_while(&daemon, || kill_while_drawing(&daemon));
    assert_eq!(retried.status, 200, "{}", retried.text());
    assert!(retried.body == before.body, "the retried job drew another image");
    let view = job(&daemon, &retried);
    assert_eq!((&view["state"], &view["attempts"]), (&json!("done"), &json!(2)), "{view}");

    let next = draw(&daemon);
    assert!(next.body == before.body, "the next job drew another image");
    assert_eq!(job(&daemon, &next)["attempts"], 1);
    assert_eq!(daemon.get("/api/models/status").json()["worker_restarts"], 1);
}

#[test]
fn a_job_whose_workers_are_killed_twice_fails_and_the_next_one_works() {
    let daemon = Daemon::start();
    let failed = draw_while(&daemon, || (0..2).for_each(|_| kill_while_drawing(&daemon)));
    failed.problem(500, "worker-died", "/generate");
    let view = job(&daemon, &failed);
    assert_eq!((&view["state"], &view["attempts"]), (&json!("failed"), &json!(2)), "{view}");

    let image = draw(&daemon);
    assert_eq!(job(&daemon, &image)["attempts"], 1);
}

#[test]
fn a_worker_that_is_killed_while_it_rests_costs_no_job_anything() {
    let daemon = Daemon::start();
    daemon.wait_for_status("the mode", |status| status["current_mode"] == "tiny");
    daemon.worker().kill();
    daemon.wait_for_status("no mode", |status| status["current_mode"].is_null());
    let image = draw(&daemon);
    assert_eq!(job(&daemon, &image)["attempts"], 1);
}

#[test]
fn a_daemon_that_is_killed_takes_its_worker_along() {
    for busy in [false, true] {
        let mut daemon = Daemon::start();
        daemon.wait_for_status("the mode", |status| status["current_mode"] == "tiny");
        let worker = daemon.worker();
        let _stream = busy.then(|| {
            let stream = daemon.begin_post("/generate", &request());
            worker.wait_for_work();
            stream
        });
        assert!(worker.is_alive());
        daemon.kill();
        wait_for("the worker's end", || (!worker.is_alive()).then_some(()));
    }
}

#[test]
fn of_200_at_once_each_gets_an_image_or_a_refusal() {
    let daemon = Daemon::start();
    let request = json!({"prompt": "x", "num_inference_steps": 1});
    let streams: Vec<_> = (0..200).map(|_| daemon.begin_post("/generate", &request)).collect();
    let (mut drawn, mut refused) = (BTreeSet::new(), 0);
    for answer in streams.into_iter().map(read_to_end) {
        let (head, _) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("no {name} in {head}")).to_owned()
        };
        match head.lines().next() {
            Some("HTTP/1.1 200 OK") => {
                assert_eq!(header("content-type"), "image/png");
                drawn.insert(header("x-job-id"));
            }
            Some("HTTP/1.1 429 Too Many Requests") => {
                assert!(header("retry-after").parse::<u64>().unwrap() >= 1);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    // Each job is one client's, and a queue of 64 has been full.
    assert_eq!(drawn.len() + refused, 200);
    assert!(drawn.len() >= 64, "{}", drawn.len());
    for id in &drawn {
        assert_eq!(daemon.get(&format!("/api/jobs/{id}")).json()["state"], "done");
    }
    daemon.wait_for_status("an empty queue", |status| status["queue_size"] == 0);
    draw(&daemon);
}
