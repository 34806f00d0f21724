//! Memory that runs out, in a load and while an image is drawn.

use super::{
    residency::{small, with},
    *,
};
use crate::vram::Reason;

fn out_of_memory() -> WorkerError {
    let message = "it needs 12.00 GiB, and the limit is 10.00 GiB".to_owned();
    WorkerError { kind: WorkerErrorKind::OutOfMemory, message }
}

#[tokio::test]
async fn out_of_memory_in_a_load_makes_room_and_is_tried_once_more() {
    for succeeds in [true, false] {
        let mut daemon = Daemon::start_with(with(small(), &["c"]));
        let mut worker = daemon.worker().await;
        for mode in ["c", "b", "a"] {
            daemon.switch_to(&mut worker, mode, 2).await;
        }
        let ticket = daemon.submit(switch("d")).await;
        let (job, _) = worker.expect_load_of("d", 3).await;
        let held = Some(worker.holding());
        worker.send(FromWorker::Failed { job, error: out_of_memory(), held: held.clone() }).await;
        // Neither the pinned one nor the current mode's.
        worker.unload(1).await;
        let (job, _) = worker.expect_load_of("d", 3).await;
        if succeeds {
            worker.send_loaded(job).await;
            assert_eq!(outcome(ticket).await, Outcome::Switched);
            assert_eq!(daemon.loaded(), "a c d");
        } else {
            let held = Some(worker.holding());
            worker.send(FromWorker::Failed { job, error: out_of_memory(), held }).await;
            let (kind, message) = failed_with(outcome(ticket).await);
            assert_eq!(kind, FailureKind::OutOfMemory);
            assert!(message.contains("12.00 GiB"), "{message}");
            assert_eq!((daemon.loaded().as_str(), daemon.current().as_deref()), ("a c", Some("a")));
        }
        assert_eq!(daemon.evictions(Reason::OutOfMemory), 1);
    }
}

#[tokio::test]
async fn out_of_memory_while_drawing_costs_a_retry_or_that_job_alone() {
    for succeeds in [true, false] {
        let mut daemon = Daemon::start();
        let mut worker = daemon.worker().await;
        for mode in ["b", "a"] {
            daemon.switch_to(&mut worker, mode, 2).await;
        }
        let ticket = daemon.submit(generation("a")).await;
        let next = daemon.submit(generation("a")).await;
        let job = worker.expect_generate("a").await;
        worker.send(FromWorker::Failed { job, error: out_of_memory(), held: None }).await;
        worker.unload(1).await;
        assert_eq!(worker.expect_generate("a").await, job);
        if succeeds {
            worker.send_image(job).await;
            assert_eq!(outcome(ticket).await, drawn());
        } else {
            worker.send(FromWorker::Failed { job, error: out_of_memory(), held: None }).await;
            assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::OutOfMemory);
        }
        worker.draw("a").await;
        assert_eq!(outcome(next).await, drawn());
        assert_eq!(daemon.loaded(), "a");
    }
}

#[tokio::test]
async fn out_of_memory_with_nobody_to_leave_fails_at_once() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    worker.send(FromWorker::Failed { job, error: out_of_memory(), held: None }).await;
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::OutOfMemory);
}
