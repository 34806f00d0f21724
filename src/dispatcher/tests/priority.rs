//! Priorities, `affinity`, and a queue that is held back.

use super::*;
use crate::modes::Scheduling;

async fn submit_at(daemon: &Daemon, mode: &str, priority: i8) -> Ticket {
    let terms = Terms { priority, ..Terms::default() };
    within(daemon.handle.submit_with(generation(mode), terms)).await.unwrap()
}

/// A dispatcher that has "a" loaded, and draws with it.
async fn drawing(change: impl FnOnce(&mut DispatcherConfig)) -> (Daemon, Worker, Ticket) {
    let mut daemon = Daemon::start_with(change);
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    worker.load("a").await;
    (daemon, worker, ticket)
}

fn with_affinity(config: &mut DispatcherConfig) {
    let mut modes = Modes::clone(&config.modes);
    modes.order.scheduling = Scheduling::Affinity;
    config.modes = modes.into();
}

#[tokio::test]
async fn a_higher_priority_is_drawn_first_and_the_others_know_it() {
    let (daemon, mut worker, running) = drawing(|_| ()).await;
    let job = worker.expect_generate("a").await;
    let low = submit_at(&daemon, "a", -1).await;
    let middle = submit_at(&daemon, "a", 0).await;
    let high = submit_at(&daemon, "b", 1).await;
    // With "b" and back: two switches more.
    assert_eq!(daemon.handle.status().queue_size, 5);
    let before = |ticket: &Ticket| daemon.handle.job(ticket.id()).unwrap().jobs_before;
    assert_eq!([&high, &low].map(before), [2, 5]);
    worker.send_image(job).await;
    worker.load("b").await;
    assert_eq!(worker.expect_generate("b").await, high.id());
    worker.send_image(high.id()).await;
    for ticket in [middle, low] {
        assert_eq!(worker.expect_generate("a").await, ticket.id());
        worker.send_image(ticket.id()).await;
        assert_eq!(outcome(ticket).await, drawn());
    }
    assert_eq!(outcome(running).await, drawn());
}

#[tokio::test]
async fn with_affinity_the_loaded_mode_is_drawn_first_and_the_needless_switch_is_cancelled() {
    let (daemon, mut worker, running) = drawing(with_affinity).await;
    let job = worker.expect_generate("a").await;
    let other = daemon.submit(generation("b")).await;
    let same = daemon.submit(generation("a")).await;
    assert_eq!(daemon.handle.status().queue_size, 4);
    worker.send_image(job).await;
    assert_eq!(worker.expect_generate("a").await, same.id());
    assert_eq!(daemon.handle.status().queue_size, 2);
    worker.send_image(same.id()).await;
    worker.load("b").await;
    worker.draw("b").await;
    for ticket in [running, same, other] {
        assert_eq!(outcome(ticket).await, drawn());
    }
    let cancelled = (crate::job::JobKind::ModeSwitch, Ending::Cancelled);
    assert_eq!(daemon.handle.status().counters.jobs.get(&cancelled), Some(&1));
}

#[tokio::test]
async fn a_switch_that_was_put_in_fails_for_all_that_follow_it() {
    let (daemon, mut worker, running) = drawing(|_| ()).await;
    let job = worker.expect_generate("a").await;
    let [first, second] = [daemon.submit(generation("c")).await, submit_at(&daemon, "c", 0).await];
    let high = submit_at(&daemon, "b", 9).await;
    worker.send_image(job).await;
    worker.load("b").await;
    worker.draw("b").await;
    worker.fail_to_prepare("c").await;
    for ticket in [first, second] {
        assert_eq!(
            failed_with(outcome(ticket).await),
            (FailureKind::UnusableModel, "c is bad".to_owned())
        );
    }
    assert_eq!((outcome(high).await, outcome(running).await), (drawn(), drawn()));
}

#[tokio::test]
async fn while_paused_the_running_job_ends_and_none_begins() {
    let (daemon, mut worker, running) = drawing(|_| ()).await;
    let job = worker.expect_generate("a").await;
    for _ in 0..2 {
        within(daemon.handle.set_paused(true)).await.unwrap();
        assert!(daemon.handle.status().paused);
    }
    let waiting = daemon.submit(generation("a")).await;
    worker.send_image(job).await;
    assert_eq!(outcome(running).await, drawn());
    daemon.until(|status| status.running.is_none()).await;
    assert_eq!(daemon.state(waiting.id()), JobState::Queued);
    assert_eq!(daemon.handle.status().queue_size, 1);
    within(daemon.handle.set_paused(false)).await.unwrap();
    assert_eq!(worker.expect_generate("a").await, waiting.id());
    worker.send_image(waiting.id()).await;
    assert_eq!(outcome(waiting).await, drawn());
    assert!(!daemon.handle.status().paused);
}

#[tokio::test]
async fn what_waits_is_cleared_and_what_runs_is_not() {
    let (daemon, mut worker, running) = drawing(|_| ()).await;
    let job = worker.expect_generate("a").await;
    let waiting = [daemon.submit(generation("b")).await, daemon.submit(switch("c")).await];
    assert_eq!(within(daemon.handle.clear()).await, Ok(3));
    assert_eq!(daemon.handle.status().queue_size, 0);
    for ticket in waiting {
        assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    }
    assert_eq!(daemon.handle.status().selected_mode, "a");
    worker.send_image(job).await;
    assert_eq!(outcome(running).await, drawn());
    assert_eq!(within(daemon.handle.clear()).await, Ok(0));
}

#[tokio::test]
async fn a_paused_daemon_can_be_shut_down() {
    let mut daemon = Daemon::start();
    let _worker = daemon.worker().await;
    within(daemon.handle.set_paused(true)).await.unwrap();
    let waiting = daemon.submit(generation("a")).await;
    within(daemon.shutdown.drain()).await;
    assert_eq!(failed_with(outcome(waiting).await).0, FailureKind::ShuttingDown);
    assert_eq!(within(daemon.handle.set_paused(false)).await, Err(SubmitError::ShuttingDown));
}
