//! Jobs whose time is over.

use super::*;
use crate::worker::protocol::FromWorker::Cancelled;

/// Soon, and not before what follows at once.
fn soon() -> Terms {
    Terms { deadline_unix_ms: Some(unix_ms() + 50), ..Terms::default() }
}

async fn submit(daemon: &Daemon, mode: &str, terms: Terms) -> Ticket {
    within(daemon.handle.submit_with(generation(mode), terms)).await.unwrap()
}

async fn fails_with(ticket: Ticket, kind: FailureKind, message: &str) {
    assert_eq!(failed_with(outcome(ticket).await), (kind, message.to_owned()));
}

const DEADLINE: &str = "its deadline has passed";
const TIMEOUT: &str = "drawing took longer than its timeout";

#[tokio::test]
async fn a_job_that_waits_past_its_deadline_leaves_the_queue_with_its_switch() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let running = daemon.submit(generation("a")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    let late = submit(&daemon, "b", soon()).await;
    assert_eq!(daemon.handle.status().queue_size, 2);
    let id = late.id();
    fails_with(late, FailureKind::DeadlinePassed, DEADLINE).await;
    assert_eq!(daemon.state(id), JobState::Failed { reason: DEADLINE.to_owned() });
    assert_eq!(daemon.handle.status().queue_size, 0);
    worker.send_image(job).await;
    assert_eq!(outcome(running).await, drawn());
}

#[tokio::test]
async fn a_job_that_runs_past_its_deadline_is_stopped_at_its_next_step() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    worker_has(&mut daemon, &mut worker, "a").await;
    // Whether the worker heard of it in time or not, late is late; and who cancels then is late, too.
    for in_time in [true, false] {
        let ticket = submit(&daemon, "a", soon()).await;
        let job = worker.expect_generate("a").await;
        assert_eq!(worker.receive().await, ToWorker::Cancel { job });
        assert!(daemon.cancel(job).await);
        match in_time {
            true => worker.send(Cancelled { job }).await,
            false => worker.send_image(job).await,
        }
        fails_with(ticket, FailureKind::DeadlinePassed, DEADLINE).await;
    }
}

#[tokio::test]
async fn a_deadline_that_passes_while_the_worker_starts_or_loads_is_kept() {
    let mut daemon = Daemon::start();
    let mut first = daemon.worker().await;
    // A worker is started again after 100 ms.
    let terms = Terms { deadline_unix_ms: Some(unix_ms() + 2000), ..Terms::default() };
    let ticket = submit(&daemon, "a", terms).await;
    first.load("a").await;
    first.expect_generate("a").await;
    // Its second attempt finds nothing loaded.
    drop(first);
    let mut second = daemon.worker().await;
    let job = second.expect_load("a").await;
    assert_eq!(job, ticket.id());
    // The dispatcher's clock may be a little behind.
    let deadline = daemon.handle.job(job).unwrap().terms.deadline_unix_ms.unwrap();
    until(|| deadline + 100 < unix_ms()).await;
    second.send_loaded(job).await;
    fails_with(ticket, FailureKind::DeadlinePassed, DEADLINE).await;

    drop(second);
    let ticket = submit(&daemon, "a", soon()).await;
    let _socket = daemon.workers.recv().await.unwrap();
    // It never says that it is ready.
    fails_with(ticket, FailureKind::DeadlinePassed, DEADLINE).await;
}

#[tokio::test]
async fn a_job_whose_caller_has_waited_long_enough_leaves_the_queue_and_one_that_has_begun_stays() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let terms = || Terms { admission_secs: Some(1), ..Terms::default() };
    let begun = submit(&daemon, "a", terms()).await;
    let job = worker.expect_load("a").await;
    let waiting = submit(&daemon, "b", terms()).await;
    fails_with(waiting, FailureKind::NotAdmitted, "it waited longer than it may; try again later")
        .await;
    // The first one waits for its own switch.
    assert_eq!(daemon.state(begun.id()), JobState::Queued);
    worker.send_loaded(job).await;
    worker.draw("a").await;
    assert_eq!(outcome(begun).await, drawn());
}

#[tokio::test]
async fn drawing_has_a_timeout_that_does_not_count_what_comes_before() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let terms = Terms { timeout_secs: Some(1), ..Terms::default() };
    let ticket = submit(&daemon, "a", terms.clone()).await;
    let next = submit(&daemon, "a", terms).await;
    let loading = worker.expect_load("a").await;
    let began = unix_ms();
    until(|| unix_ms() > began + 1100).await;
    worker.send_loaded(loading).await;
    let job = worker.expect_generate("a").await;
    assert_eq!(worker.receive().await, ToWorker::Cancel { job });
    worker.send(Cancelled { job }).await;
    fails_with(ticket, FailureKind::DrawingTimedOut, TIMEOUT).await;
    worker.draw("a").await;
    assert_eq!(outcome(next).await, drawn());
}

#[tokio::test]
async fn a_worker_that_does_not_stop_a_job_is_ended_and_the_queue_goes_on() {
    let mut daemon = Daemon::start_with(|config| config.stop_grace = Duration::from_millis(50));
    let mut hung = daemon.worker().await;
    let terms = Terms { timeout_secs: Some(1), ..Terms::default() };
    let ticket = submit(&daemon, "a", terms).await;
    let next = daemon.submit(generation("a")).await;
    hung.load("a").await;
    let job = hung.expect_generate("a").await;
    fails_with(ticket, FailureKind::DrawingTimedOut, TIMEOUT).await;
    assert_eq!(hung.receive().await, ToWorker::Cancel { job });
    assert!(within(process::receive::<ToWorker>(&mut hung.socket)).await.is_err(), "it is gone");

    let mut worker = daemon.worker().await;
    worker.load("a").await;
    worker.draw("a").await;
    assert_eq!(outcome(next).await, drawn());
    let status = daemon.handle.status();
    assert_eq!((status.worker_restarts, status.current_mode.as_deref()), (1, Some("a")));
}

#[tokio::test]
async fn a_worker_whose_steps_are_long_has_the_time_of_two() {
    let mut daemon = Daemon::start_with(|config| config.stop_grace = Duration::ZERO);
    let mut worker = daemon.worker().await;
    worker_has(&mut daemon, &mut worker, "a").await;
    let terms = Terms { timeout_secs: Some(1), ..Terms::default() };
    let ticket = submit(&daemon, "a", terms).await;
    let job = worker.expect_generate("a").await;
    let began = unix_ms();
    until(|| unix_ms() > began + 900).await;
    worker.send(FromWorker::Step { job, step: 1, steps: STEPS }).await;
    assert_eq!(worker.receive().await, ToWorker::Cancel { job });
    let told = unix_ms();
    until(|| unix_ms() > told + 300).await;
    worker.send(Cancelled { job }).await;
    fails_with(ticket, FailureKind::DrawingTimedOut, TIMEOUT).await;
    assert_eq!(daemon.handle.status().worker_restarts, 0);
}

#[tokio::test]
async fn a_cancelled_job_has_the_grace_period_too() {
    let mut daemon = Daemon::start_with(|config| config.stop_grace = Duration::from_millis(50));
    let mut hung = daemon.worker().await;
    worker_has(&mut daemon, &mut hung, "a").await;
    let ticket = daemon.submit(generation("a")).await;
    let next = daemon.submit(generation("a")).await;
    let job = hung.expect_generate("a").await;
    assert!(daemon.cancel(job).await);
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    assert_eq!(hung.receive().await, ToWorker::Cancel { job });
    assert!(within(process::receive::<ToWorker>(&mut hung.socket)).await.is_err(), "it is gone");
    let mut worker = daemon.worker().await;
    worker.load("a").await;
    worker.draw("a").await;
    assert_eq!(outcome(next).await, drawn());
}

/// Nothing to load any more.
async fn worker_has(daemon: &mut Daemon, worker: &mut Worker, mode: &str) {
    let ticket = daemon.submit(switch(mode)).await;
    worker.load(mode).await;
    assert_eq!(outcome(ticket).await, Outcome::Switched);
}
