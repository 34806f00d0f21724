//! Jobs that are cancelled, and callers that go.

use super::*;

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
    second.send_loaded(job).await;
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    assert_eq!(daemon.handle.status().current_mode.as_deref(), Some("a"));
    let next = daemon.submit(generation("a")).await;
    assert_eq!(second.expect_generate("a").await, next.id());
}

#[tokio::test]
async fn a_switch_that_is_being_loaded_cannot_be_cancelled() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(switch("b")).await;
    let job = worker.expect_load("b").await;
    assert!(!daemon.cancel(job).await);
    worker.send_loaded(job).await;
    assert_eq!(outcome(ticket).await, Outcome::Switched);
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
