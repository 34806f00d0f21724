//! Workers that hang: stopped in the middle of whatever they do, and noticed.

use std::net::TcpStream;

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Value, json};

use crate::{
    process::Worker,
    support::{Daemon, MODES, folder, read_to_end, wait_for},
};

/// What the worker does when it is stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Loading,
    Drawing,
    Enlarging,
    Unloading,
}

/// What becomes of its job's caller then.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Caller {
    Waits,
    Deletes,
    HangsUp,
    /// It had set a deadline, which passes.
    IsLate,
}

use Caller::{Deletes, HangsUp, IsLate, Waits};

fn start(arguments: &[&str]) -> (Daemon, Worker) {
    let daemon = Daemon::start_in(folder(MODES), arguments);
    daemon.wait_for_status("the default mode", |status| {
        status["current_mode"] == "tiny" && status["running_job"].is_null()
    });
    let worker = daemon.worker();
    (daemon, worker)
}

fn is_ready(daemon: &Daemon) -> bool {
    daemon.get("/health/ready").status == 200
}

fn wait_until_ready(daemon: &Daemon) {
    wait_for("a daemon that is ready", || is_ready(daemon).then_some(()));
}

/// Waits until `/health/ready` says that the worker is silent.
fn wait_until_silent(daemon: &Daemon) {
    wait_for("a silent worker", || {
        let answer = daemon.get("/health/ready");
        let is_silent = answer.status == 503 && answer.text().contains("is silent");
        is_silent.then_some(())
    });
    assert_eq!(daemon.get("/health").status, 200, "the daemon itself is well");
}

/// A request that has the worker in that phase once it is taken up.
fn request(phase: Phase, caller: Caller) -> (&'static str, Value) {
    let (path, mut body) = match phase {
        Phase::Loading => ("/generate", json!({"prompt": "x", "mode": "other"})),
        // So many that it is stopped between two of them: nobody waits for the image.
        Phase::Drawing => {
            let steps = if caller == Waits { 20 } else { 999 };
            ("/generate", json!({"prompt": "x", "num_inference_steps": steps, "size": "256x256"}))
        }
        Phase::Enlarging => ("/superres", json!({"image": picture(), "superres_magnitude": 3})),
        Phase::Unloading => ("/api/models/unload", json!({"mode": "tiny", "wait": true})),
    };
    if caller == IsLate {
        body["deadline"] = json!(3);
    }
    (path, body)
}

fn picture() -> String {
    let mut png = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(64, 64, [10, 20, 30].into());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    BASE64.encode(png.into_inner())
}

/// Has the worker stopped in that phase; the caller's connection and the job that runs.
fn stop_in(phase: Phase, caller: Caller, daemon: &Daemon, worker: Worker) -> (TcpStream, String) {
    let (path, body) = request(phase, caller);
    // Only drawing takes long enough to be stopped in its middle.
    if phase != Phase::Drawing {
        worker.signal("-STOP");
    }
    let connection = daemon.begin_post(path, &body);
    let job = wait_for("a running job", || {
        let status = daemon.get("/api/models/status").json();
        status["running_job"].as_str().map(str::to_owned)
    });
    if phase == Phase::Drawing {
        worker.wait_for_work();
        worker.signal("-STOP");
    }
    (connection, job)
}

/// The worker is stopped in that phase: it is replaced whatever the caller does, its job ends as it
/// should, and the queue goes on.
fn check(phase: Phase, caller: Caller) {
    // The running job is the switch then, which nobody has stopped.
    let is_stopped = !matches!((phase, caller), (_, Waits) | (Phase::Loading, HangsUp | IsLate));
    // Each rule by itself: the other one's limit is out of reach.
    let (silence, grace) = if is_stopped { ("600", "1") } else { ("9", "600") };
    let (daemon, worker) = start(&["--worker-silence", silence, "--stop-grace", grace]);
    let (connection, job) = stop_in(phase, caller, &daemon, worker);
    let mut connection = Some(connection);
    match caller {
        Waits => wait_until_silent(&daemon),
        Deletes => {
            let answer = daemon.send("DELETE", &format!("/api/jobs/{job}"), &[], b"");
            assert_eq!(answer.status, 202, "{}", answer.text());
        }
        HangsUp => connection = None,
        IsLate => {}
    }
    wait_for("the old worker's end", || (!worker.is_alive()).then_some(()));
    let ended = daemon.finished_job(&job);
    let answer = connection.map(read_to_end).unwrap_or_default();
    let state = ended["state"].as_str().unwrap();
    match (phase, caller) {
        // Taken up again by the next worker.
        (_, Waits) => {
            assert_eq!(state, "done", "{ended}");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        (_, Deletes) => assert_eq!(state, "cancelled", "{ended}"),
        (Phase::Loading, HangsUp | IsLate) => assert_eq!(state, "done", "{ended}"),
        (_, HangsUp) => assert_eq!(state, "cancelled", "{ended}"),
        (_, IsLate) => assert_eq!(ended["reason"], "its deadline has passed", "{ended}"),
    }
    if caller == IsLate {
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    }
    let why = match is_stopped {
        true => "the worker does not stop the job, and is killed",
        false => "it was silent for 9 s (--worker-silence)",
    };
    assert!(daemon.log().contains(why), "{}", daemon.log());
    if caller == Waits && matches!(phase, Phase::Drawing | Phase::Enlarging) {
        assert_eq!(ended["attempts"], 2, "{ended}");
    }
    let next = daemon.post("/generate", &json!({"prompt": "x", "num_inference_steps": 1}));
    assert_eq!(next.status, 200, "{}", next.text());
    wait_until_ready(&daemon);
    let restarts = daemon.get("/api/models/status").json()["worker_restarts"].clone();
    assert_eq!(restarts, 1);
}

#[test]
fn a_worker_that_hangs_while_it_loads_is_replaced() {
    [Waits, Deletes, HangsUp, IsLate].into_iter().for_each(|caller| check(Phase::Loading, caller));
}

#[test]
fn a_worker_that_hangs_while_it_draws_is_replaced() {
    [Waits, Deletes, HangsUp, IsLate].into_iter().for_each(|caller| check(Phase::Drawing, caller));
}

#[test]
fn a_worker_that_hangs_while_it_enlarges_is_replaced() {
    [Waits, Deletes, HangsUp].into_iter().for_each(|caller| check(Phase::Enlarging, caller));
}

#[test]
fn a_worker_that_hangs_while_it_unloads_is_replaced() {
    [Waits, Deletes].into_iter().for_each(|caller| check(Phase::Unloading, caller));
}

#[test]
fn a_worker_that_hangs_while_it_is_idle_is_replaced_and_its_mode_loaded_again() {
    let (daemon, worker) = start(&["--worker-silence", "3"]);
    assert!(is_ready(&daemon));
    worker.signal("-STOP");
    wait_until_silent(&daemon);
    wait_for("the old worker's end", || (!worker.is_alive()).then_some(()));
    wait_until_ready(&daemon);
    daemon.wait_for_status("the mode again", |status| status["current_mode"] == "tiny");
    assert!(daemon.log().contains("it was silent for 3 s"), "{}", daemon.log());
}

#[test]
fn a_job_whose_workers_hang_each_time_fails_as_promised() {
    let (daemon, mut worker) = start(&["--worker-silence", "3"]);
    let body = json!({"prompt": "x", "num_inference_steps": 999, "size": "256x256"});
    let id = daemon.post("/api/jobs", &body).json()["id"].as_str().unwrap().to_owned();
    for attempt in 1..=2 {
        wait_for("the attempt", || {
            let job = daemon.get(&format!("/api/jobs/{id}")).json();
            (job["attempts"] == attempt && job["state"] == "running").then_some(())
        });
        worker = match attempt {
            1 => worker,
            _ => daemon.worker(),
        };
        worker.signal("-STOP");
        wait_for("the worker's end", || (!worker.is_alive()).then_some(()));
    }
    let ended = daemon.finished_job(&id);
    let reason = ended["reason"].as_str().unwrap();
    assert!(reason.contains("died, hung or would not start twice"), "{ended}");
}

#[test]
fn a_worker_that_was_merely_slow_is_left_alone() {
    let (daemon, worker) = start(&["--worker-silence", "30"]);
    let (connection, job) = stop_in(Phase::Drawing, Waits, &daemon, worker);
    wait_until_silent(&daemon);
    worker.signal("-CONT");
    assert!(read_to_end(connection).starts_with("HTTP/1.1 200"));
    assert_eq!(daemon.get(&format!("/api/jobs/{job}")).json()["attempts"], 1);
    wait_until_ready(&daemon);
    assert_eq!(daemon.get("/api/models/status").json()["worker_restarts"], 0);
}

#[test]
fn a_paused_daemon_is_not_ready() {
    let (daemon, _) = start(&[]);
    assert!(is_ready(&daemon));
    daemon.post("/api/queue/pause", &json!({}));
    let problem = daemon.get("/health/ready").problem(503, "not-ready", "/health/ready");
    assert!(problem["detail"].as_str().unwrap().contains("paused"), "{problem}");
    daemon.post("/api/queue/resume", &json!({}));
    assert!(is_ready(&daemon));
}
