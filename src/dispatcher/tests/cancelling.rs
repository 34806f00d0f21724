//! Jobs that are cancelled, and callers that go.

use super::{
    residency::{load, small, with},
    *,
};
use crate::job::Unload;

#[tokio::test]
async fn a_queued_job_is_cancelled_with_the_switch_that_it_brought() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let running = daemon.submit(generation("a")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    let queued = daemon.submit(generation("b")).await;
    assert_eq!(daemon.handle.status().queue_size, 2);

    let id = queued.id();
    assert!(daemon.cancel(id).await);
    assert_eq!(daemon.handle.status().queue_size, 0);
    assert_eq!(daemon.state(id), JobState::Cancelled);
    assert_eq!(outcome(queued).await, Outcome::Cancelled);
    assert!(!daemon.cancel(id).await, "it has ended");
    assert!(!daemon.cancel(JobId::new()).await, "nobody knows it");

    worker.send_image(job).await;
    assert_eq!(outcome(running).await, drawn());
    let next = daemon.submit(generation("a")).await;
    assert_eq!(worker.expect_generate("a").await, next.id(), "nothing is said of the other");
}

#[tokio::test]
async fn a_running_job_is_cancelled_at_its_next_step() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    // Whether the worker heard of it in time or not, cancelled is cancelled.
    for in_time in [true, false] {
        let ticket = daemon.submit(generation("a")).await;
        if in_time {
            worker.load("a").await;
        }
        let job = worker.expect_generate("a").await;
        assert!(daemon.cancel(ticket.id()).await);
        assert_eq!(worker.receive().await, ToWorker::Cancel { job });
        match in_time {
            true => worker.send(FromWorker::Cancelled { job }).await,
            false => worker.send_image(job).await,
        }
        assert_eq!(outcome(ticket).await, Outcome::Cancelled);
        assert_eq!(daemon.state(job), JobState::Cancelled);
    }
}

#[tokio::test]
async fn a_worker_that_decodes_is_left_to_it_when_its_job_is_cancelled() {
    let mut daemon = Daemon::start_with(|config| config.stop_grace = Duration::ZERO);
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    let (step, steps) = (4, 4);
    worker.send(FromWorker::Step { job, step, steps }).await;
    until(|| daemon.state(job) == JobState::Running { step, steps }).await;
    assert!(daemon.cancel(job).await);
    assert_eq!(worker.receive().await, ToWorker::Cancel { job });
    // Longer than the grace period for a worker that could have stopped.
    tokio::time::sleep(Duration::from_millis(100)).await;
    worker.send_image(job).await;
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    assert_eq!(daemon.handle.status().worker_restarts, 0);
}

#[tokio::test]
async fn no_worker_is_started_for_the_files_of_a_job_that_is_cancelled() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(switch("a")).await;
    let job = worker.expect_prepare("a").await;
    assert!(daemon.cancel(job).await);
    assert_eq!(worker.receive().await, ToWorker::Cancel { job });
    worker.send(FromWorker::Failed { job, error: outside(), held: None }).await;
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    let _next = daemon.submit(switch("b")).await;
    worker.expect_prepare("b").await;
}

#[tokio::test]
async fn time_to_draw_does_not_pass_while_a_worker_is_started_for_a_jobs_files() {
    let mut daemon = Daemon::start();
    let mut first = daemon.worker().await;
    let terms = Terms { timeout_secs: Some(1), ..Terms::default() };
    let ticket = within(daemon.handle.submit_with(generation("a"), terms)).await.unwrap();
    first.load("a").await;
    let job = first.expect_generate("a").await;
    first.send(FromWorker::Failed { job, error: outside(), held: None }).await;
    let mut second = daemon.worker().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    second.load("a").await;
    second.draw("a").await;
    assert_eq!(outcome(ticket).await, drawn());
}

fn outside() -> WorkerError {
    WorkerError { kind: WorkerErrorKind::OutsideSandbox, message: "outside".to_owned() }
}

#[tokio::test]
async fn a_job_that_was_cancelled_is_not_retried() {
    let mut daemon = Daemon::start();
    let mut first = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    first.load("a").await;
    first.expect_generate("a").await;
    assert!(daemon.cancel(ticket.id()).await);
    drop(first);
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    let _next = daemon.submit(switch("b")).await;
    daemon.worker().await.expect_load("b").await;
}

#[tokio::test]
async fn a_generation_that_is_being_loaded_is_not_drawn_once_cancelled() {
    let mut daemon = Daemon::start();
    let mut first = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    first.load("a").await;
    first.expect_generate("a").await;
    drop(first);
    // The retry loads for itself: no switch stands before it any more.
    let mut second = daemon.worker().await;
    let job = second.expect_load("a").await;
    assert!(daemon.cancel(ticket.id()).await);
    assert_eq!(second.receive().await, ToWorker::Cancel { job });
    // It was loaded before the worker heard of that.
    second.send_loaded(job).await;
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    assert_eq!(daemon.handle.status().current_mode.as_deref(), Some("a"));
    let next = daemon.submit(generation("a")).await;
    assert_eq!(second.expect_generate("a").await, next.id());
}

#[tokio::test]
async fn a_load_that_is_cancelled_is_stopped_and_the_mode_before_it_comes_back() {
    let mut daemon = Daemon::start_with(with(small(), &[]));
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 6).await;
    let ticket = daemon.submit(switch("b")).await;
    let (job, gone) = worker.expect_load_of("b", 6).await;
    assert_eq!(gone, 1, "'a' has to make room");
    assert!(daemon.cancel(job).await);
    assert_eq!(worker.receive().await, ToWorker::Cancel { job });
    let held = worker.holding();
    worker.send(FromWorker::Holds { held }).await;
    worker.send(FromWorker::Cancelled { job }).await;
    let (again, _) = worker.expect_load_of("a", 6).await;
    assert_eq!(again, job);
    // It is cancelled already, and this load is not to be stopped.
    assert!(daemon.cancel(job).await);
    worker.send_loaded(job).await;
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    assert_eq!(daemon.current().as_deref(), Some("a"));
    let next = daemon.submit(generation("a")).await;
    assert_eq!(worker.expect_generate("a").await, next.id());
}

#[tokio::test]
async fn a_load_that_is_cancelled_before_it_is_read_lets_nobody_go() {
    let mut daemon = Daemon::start_with(with(small(), &[]));
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 6).await;
    let ticket = daemon.submit(switch("b")).await;
    let job = worker.expect_prepare("b").await;
    assert!(daemon.cancel(job).await);
    assert_eq!(worker.receive().await, ToWorker::Cancel { job });
    worker.send_prepared(job, 6).await;
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    assert_eq!(daemon.current().as_deref(), Some("a"));
}

#[tokio::test]
async fn a_cancelled_load_that_was_done_in_time_leaves_the_current_mode() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 1).await;
    for job in [switch("b"), load("c")] {
        let mode = job.mode().unwrap().to_owned();
        let ticket = daemon.submit(job).await;
        let job = worker.expect_load(&mode).await;
        assert!(daemon.cancel(job).await);
        assert_eq!(worker.receive().await, ToWorker::Cancel { job });
        worker.send_loaded(job).await;
        assert_eq!(outcome(ticket).await, Outcome::Cancelled);
        assert_eq!(daemon.current().as_deref(), Some("a"));
    }
}

#[tokio::test]
async fn a_worker_that_does_not_stop_a_load_is_replaced_and_what_was_loaded_comes_back() {
    let mut daemon = Daemon::start_with(|config| {
        with(small(), &[])(config);
        config.stop_grace = Duration::from_millis(50);
    });
    let mut hung = daemon.worker().await;
    daemon.switch_to(&mut hung, "a", 6).await;
    let ticket = daemon.submit(switch("b")).await;
    let (job, _) = hung.expect_load_of("b", 6).await;
    assert!(daemon.cancel(job).await);
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    assert_eq!(hung.receive().await, ToWorker::Cancel { job });
    assert!(within(process::receive::<ToWorker>(&mut hung.socket)).await.is_err(), "it is gone");
    let mut worker = daemon.worker().await;
    worker.load("a").await;
    daemon.until(|status| status.current_mode.as_deref() == Some("a")).await;
    assert_eq!(daemon.handle.status().worker_restarts, 1);
}

#[tokio::test]
async fn a_worker_that_does_not_unload_is_replaced() {
    let mut daemon = Daemon::start_with(|config| config.stop_grace = Duration::from_millis(50));
    let mut hung = daemon.worker().await;
    daemon.switch_to(&mut hung, "a", 1).await;
    let ticket = daemon.submit(Job::Unload { what: Unload::All }).await;
    let ToWorker::Unload { .. } = hung.receive().await else { panic!("it is to unload") };
    assert!(daemon.cancel(ticket.id()).await);
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    daemon.worker().await;
}

#[tokio::test]
async fn a_caller_that_goes_takes_its_job_along() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let running = daemon.submit(generation("a")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;

    let queued = daemon.submit(generation("a")).await;
    let queued_id = queued.id();
    drop(queued);
    daemon.until(|status| status.queue_size == 0).await;
    assert_eq!(daemon.state(queued_id), JobState::Cancelled);

    // Gone before it was told that the job is queued.
    tokio::select! {
        biased;
        _ = daemon.handle.submit(generation("a")) => panic!("the dispatcher has not had its turn"),
        () = ready(()) => {}
    }
    // The first round trip comes behind that command, the second behind the one that it caused.
    daemon.cancel(JobId::new()).await;
    daemon.cancel(JobId::new()).await;
    assert_eq!(daemon.handle.status().queue_size, 0);

    // Gone in the middle of waiting.
    drop(Box::pin(running.outcome()));
    assert_eq!(worker.receive().await, ToWorker::Cancel { job });
    worker.send(FromWorker::Cancelled { job }).await;
    daemon.until(|status| status.running.is_none()).await;
}

#[tokio::test]
async fn a_detached_job_is_done_without_its_caller() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let id = daemon.submit(generation("a")).await.detach();
    worker.load("a").await;
    worker.draw("a").await;
    daemon.until(|status| status.running.is_none() && status.queue_size == 0).await;
    assert_eq!(daemon.state(id), JobState::Done);
}
