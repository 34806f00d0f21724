//! Many pipelines at once, and switches that fail at every point on their way.

use super::*;
use crate::{job::Unload, modes::Eviction, vram::Reason};

/// Room for 10 bytes of models.
pub fn small() -> Memory {
    Memory { limit_bytes: Some(10), ..Memory::default() }
}

pub fn with(memory: Memory, pinned: &'static [&'static str]) -> impl FnOnce(&mut DispatcherConfig) {
    move |config| config.modes = modes(memory, pinned)
}

pub fn load(mode: &str) -> Job {
    Job::Load { mode: mode.to_owned(), pipeline: pipeline(mode), warm_up: false }
}

impl Daemon {
    /// Switches to that mode, which takes so many bytes, and for which nobody has to go first.
    pub async fn switch_to(&self, worker: &mut Worker, mode: &str, bytes: u64) {
        let ticket = self.submit(switch(mode)).await;
        let (job, gone) = worker.expect_load_of(mode, bytes).await;
        assert_eq!(gone, 0);
        worker.send_loaded(job).await;
        assert_eq!(outcome(ticket).await, Outcome::Switched);
    }

    pub fn current(&self) -> Option<String> {
        self.handle.status().current_mode.clone()
    }

    pub fn loaded(&self) -> String {
        let status = self.handle.status();
        let mut modes: Vec<&str> =
            status.vram.models.iter().map(|model| model.loaded.mode.as_str()).collect();
        modes.sort_unstable();
        modes.join(" ")
    }

    pub fn evictions(&self, reason: Reason) -> u64 {
        *self.handle.status().vram.evictions.get(&reason).unwrap_or(&0)
    }
}

#[tokio::test]
async fn a_switch_to_what_is_loaded_loads_nothing() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 1).await;
    daemon.switch_to(&mut worker, "b", 1).await;
    for mode in ["a", "b", "a"] {
        assert_eq!(outcome(daemon.submit(switch(mode)).await).await, Outcome::Switched);
        assert_eq!(daemon.current().as_deref(), Some(mode));
    }
    let vram = &daemon.handle.status().vram;
    assert_eq!((vram.loads.values().sum::<u64>(), vram.hits.values().sum::<u64>()), (2, 3));
    // The worker has not heard of it.
    let ticket = daemon.submit(generation("a")).await;
    worker.draw("a").await;
    assert_eq!(outcome(ticket).await, drawn());
}

#[tokio::test]
async fn who_was_used_least_recently_leaves_for_another() {
    let mut daemon = Daemon::start_with(with(small(), &[]));
    let mut worker = daemon.worker().await;
    for mode in ["a", "b", "c"] {
        daemon.switch_to(&mut worker, mode, 3).await;
    }
    // b is now the one that was used least recently.
    daemon.submit(switch("a")).await.outcome().await;
    daemon.submit(switch("c")).await.outcome().await;
    let ticket = daemon.submit(switch("d")).await;
    let (job, gone) = worker.expect_load_of("d", 3).await;
    assert_eq!(gone, 1);
    worker.send_loaded(job).await;
    assert_eq!(outcome(ticket).await, Outcome::Switched);
    assert_eq!((daemon.loaded().as_str(), daemon.evictions(Reason::Memory)), ("a c d", 1));
}

#[tokio::test]
async fn one_too_many_leaves_when_the_other_is_there() {
    let memory = Memory { max_models: Some(1), eviction: Eviction::Fifo, ..Memory::default() };
    let mut daemon = Daemon::start_with(with(memory, &[]));
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 1).await;
    daemon.switch_to(&mut worker, "b", 1).await;
    worker.unload(1).await;
    assert_eq!((daemon.loaded().as_str(), daemon.current().as_deref()), ("b", Some("b")));
    assert_eq!(daemon.evictions(Reason::MaxModels), 1);
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_nothing_leaves() {
    let mut daemon = Daemon::start_with(with(small(), &["b"]));
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "b", 4).await;
    daemon.switch_to(&mut worker, "a", 4).await;
    for (bytes, beside) in [(11, false), (7, true)] {
        let ticket = daemon.submit(switch("c")).await;
        let job = worker.expect_prepare("c").await;
        worker.send_prepared(job, bytes).await;
        let (kind, message) = failed_with(outcome(ticket).await);
        assert_eq!(kind, FailureKind::NoRoom);
        assert_eq!(message.contains("beside what stays"), beside, "{message}");
        assert!(message.contains(" GiB"), "{message}");
    }
    assert_eq!((daemon.loaded().as_str(), daemon.current().as_deref()), ("a b", Some("a")));
    // With the current one's place there is room: the pinned one stays.
    let ticket = daemon.submit(switch("c")).await;
    let (job, gone) = worker.expect_load_of("c", 6).await;
    assert_eq!(gone, 1);
    worker.send_loaded(job).await;
    assert_eq!(outcome(ticket).await, Outcome::Switched);
    assert_eq!(daemon.loaded(), "b c");
}

#[tokio::test]
async fn a_load_stands_beside_the_current_mode_and_never_in_its_place() {
    let mut daemon = Daemon::start_with(with(small(), &[]));
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 6).await;
    let ticket = daemon.submit(load("b")).await;
    let (job, _) = worker.expect_load_of("b", 4).await;
    worker.send_loaded(job).await;
    assert_eq!(outcome(ticket).await, Outcome::Loaded);
    assert_eq!((daemon.loaded().as_str(), daemon.current().as_deref()), ("a b", Some("a")));
    assert_eq!(outcome(daemon.submit(load("b")).await).await, Outcome::Loaded, "as it is");

    let ticket = daemon.submit(load("c")).await;
    let job = worker.expect_prepare("c").await;
    worker.send_prepared(job, 5).await;
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::NoRoom);
    assert_eq!(daemon.loaded(), "a b");
}

#[tokio::test]
async fn unloading_waits_its_turn_and_takes_even_the_current_and_the_pinned() {
    let mut daemon = Daemon::start_with(with(Memory::default(), &["a"]));
    let mut worker = daemon.worker().await;
    let drawing = daemon.submit(generation("a")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    let (mode, of_a) = ("a".to_owned(), pipeline("a"));
    let unload = Job::Unload { what: Unload::Mode { mode, pipeline: of_a } };
    let unloading = daemon.submit(unload.clone()).await;
    assert_eq!(daemon.state(unloading.id()), JobState::Queued, "not under a running job");
    assert_eq!(daemon.handle.job(unloading.id()).unwrap().jobs_before, 1);
    worker.send_image(job).await;
    assert_eq!(outcome(drawing).await, drawn());
    worker.unload(1).await;
    assert_eq!(outcome(unloading).await, Outcome::Unloaded(vec!["a".to_owned()]));
    assert_eq!((daemon.loaded().as_str(), daemon.current()), ("", None));
    let again = daemon.submit(unload).await;
    assert_eq!(outcome(again).await, Outcome::Unloaded(vec![]));

    for mode in ["a", "b"] {
        daemon.switch_to(&mut worker, mode, 1).await;
    }
    let all = daemon.submit(Job::Unload { what: Unload::All }).await;
    worker.unload(2).await;
    assert_eq!(outcome(all).await, Outcome::Unloaded(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(daemon.evictions(Reason::Asked), 3);
    // It is loaded again for who asks for it.
    let ticket = daemon.submit(generation("a")).await;
    worker.load("a").await;
    worker.draw("a").await;
    assert_eq!(outcome(ticket).await, drawn());
}

#[tokio::test]
async fn a_file_that_is_refused_costs_nothing_that_is_loaded() {
    let mut daemon = Daemon::start_with(with(small(), &[]));
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 6).await;
    let bad = daemon.submit(switch("b")).await;
    worker.fail_to_prepare("b").await;
    let failure = failed_with(outcome(bad).await);
    assert_eq!(failure, (FailureKind::UnusableModel, "b is bad".to_owned()));
    let status = daemon.handle.status();
    assert_eq!((&*status.selected_mode, status.degraded.as_ref()), ("a", None));
    let ticket = daemon.submit(generation("a")).await;
    worker.draw("a").await;
    assert_eq!(outcome(ticket).await, drawn());
}

#[tokio::test]
async fn those_who_wait_behind_a_switch_that_fails_fail_with_it() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 1).await;
    let [first, second] =
        [daemon.submit(generation("b")).await, daemon.submit(generation("b")).await];
    let other = daemon.submit(generation("a")).await;
    worker.fail_to_prepare("b").await;
    for ticket in [first, second] {
        assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::UnusableModel);
    }
    worker.draw("a").await;
    assert_eq!(outcome(other).await, drawn());
}

/// The current mode a had to go for b, which then could not be read.
async fn a_gone_and_b_failed() -> (Daemon, Worker, Ticket) {
    let mut daemon = Daemon::start_with(with(small(), &[]));
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 6).await;
    let bad = daemon.submit(switch("b")).await;
    worker.fail_to_load("b", 6, 1).await;
    (daemon, worker, bad)
}

#[tokio::test]
async fn a_load_that_fails_is_rolled_back() {
    let (daemon, mut worker, bad) = a_gone_and_b_failed().await;
    // What had to go for it comes back, in the same job.
    let (job, _) = worker.expect_load_of("a", 6).await;
    assert_eq!(job, bad.id());
    worker.send_loaded(job).await;
    let failure = failed_with(outcome(bad).await);
    assert_eq!(failure, (FailureKind::UnusableModel, "b is bad".to_owned()));
    let status = daemon.handle.status();
    assert_eq!((status.current_mode.as_deref(), &*status.selected_mode), (Some("a"), "a"));
    assert_eq!(status.degraded, None);
    let ticket = daemon.submit(generation("a")).await;
    worker.draw("a").await;
    assert_eq!(outcome(ticket).await, drawn());
}

#[tokio::test]
async fn where_the_way_back_fails_too_the_daemon_is_degraded_until_a_switch_succeeds() {
    let (daemon, mut worker, bad) = a_gone_and_b_failed().await;
    worker.fail_to_prepare("a").await;
    let (kind, message) = failed_with(outcome(bad).await);
    assert_eq!(kind, FailureKind::UnusableModel);
    assert!(message.contains("b is bad") && message.contains("a is bad"), "{message}");
    let status = daemon.handle.status();
    assert_eq!((status.current_mode.as_ref(), status.degraded.as_ref()), (None, Some(&message)));
    // Other modes are still tried.
    let also_bad = daemon.submit(generation("c")).await;
    worker.fail_to_prepare("c").await;
    failed_with(outcome(also_bad).await);
    assert!(daemon.handle.status().degraded.is_some());
    let good = daemon.submit(generation("d")).await;
    let (job, _) = worker.expect_load_of("d", 6).await;
    worker.send_loaded(job).await;
    worker.draw("d").await;
    assert_eq!(outcome(good).await, drawn());
    assert_eq!(daemon.handle.status().degraded, None);
}

#[tokio::test]
async fn a_reload_heals_too() {
    let (daemon, mut worker, bad) = a_gone_and_b_failed().await;
    worker.fail_to_prepare("a").await;
    failed_with(outcome(bad).await);
    // Somebody mends a, and says so.
    let mended = ModesDiff { to_reload: vec!["a".to_owned()], ..ModesDiff::default() };
    daemon.handle.configure(mended, modes(small(), &[]));
    worker.load("a").await;
    daemon.until(|status| status.degraded.is_none()).await;
    assert_eq!(daemon.current().as_deref(), Some("a"));
}

#[tokio::test]
async fn a_worker_that_dies_of_a_load_is_restarted_and_the_mode_before_comes_back() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    daemon.switch_to(&mut worker, "a", 1).await;
    let bad = daemon.submit(switch("b")).await;
    worker.expect_load("b").await;
    drop(worker);
    let mut second = daemon.worker().await;
    second.expect_load("b").await;
    drop(second);
    let mut third = daemon.worker().await;
    third.load("a").await;
    assert_eq!(failed_with(outcome(bad).await).0, FailureKind::WorkerDied);
    assert_eq!(daemon.current().as_deref(), Some("a"));
}

#[tokio::test]
async fn what_an_idle_worker_had_comes_back_when_it_died() {
    let mut daemon = Daemon::start_with(with(Memory::default(), &["b", "c"]));
    let mut worker = daemon.worker().await;
    for mode in ["b", "c", "d", "a"] {
        daemon.switch_to(&mut worker, mode, 1).await;
    }
    drop(worker);
    let mut second = daemon.worker().await;
    // The current one first, then the pinned ones. One that kills the worker is given up.
    second.load("a").await;
    second.expect_load("c").await;
    drop(second);
    let mut third = daemon.worker().await;
    third.expect_load("c").await;
    drop(third);
    let mut fourth = daemon.worker().await;
    fourth.load("a").await;
    fourth.load("b").await;
    daemon.until(|status| status.vram.models.len() == 2).await;
    assert_eq!((daemon.loaded().as_str(), daemon.current().as_deref()), ("a b", Some("a")));
}

#[tokio::test]
async fn a_job_comes_before_what_was_lost() {
    let mut daemon = Daemon::start_with(with(Memory::default(), &["b"]));
    let mut worker = daemon.worker().await;
    for mode in ["b", "a"] {
        daemon.switch_to(&mut worker, mode, 1).await;
    }
    let ticket = daemon.submit(generation("a")).await;
    worker.expect_generate("a").await;
    drop(worker);
    let mut second = daemon.worker().await;
    second.load("a").await;
    second.draw("a").await;
    assert_eq!(outcome(ticket).await, drawn());
    second.load("b").await;
    daemon.until(|status| status.vram.models.len() == 2).await;
    assert_eq!(daemon.current().as_deref(), Some("a"));
}

#[tokio::test]
async fn what_is_idle_leaves_and_the_mode_stays_selected() {
    let idle_unload = crate::modes::IdleUnload::After(Duration::from_millis(300));
    let mut daemon = Daemon::start_with(with(Memory { idle_unload, ..Memory::default() }, &["b"]));
    let mut worker = daemon.worker().await;
    for mode in ["b", "a"] {
        daemon.switch_to(&mut worker, mode, 1).await;
    }
    // The pinned one stays.
    worker.unload(1).await;
    daemon.until(|status| status.current_mode.is_none()).await;
    let status = daemon.handle.status();
    assert_eq!((daemon.loaded().as_str(), &*status.selected_mode), ("b", "a"));
    assert_eq!(daemon.evictions(Reason::Idle), 1);
}

#[tokio::test]
async fn what_no_mode_has_any_more_leaves_when_there_is_nothing_else_to_do() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    for mode in ["b", "a"] {
        daemon.switch_to(&mut worker, mode, 1).await;
    }
    let drawing = daemon.submit(generation("a")).await;
    let job = worker.expect_generate("a").await;
    let mut left = Modes::clone(&modes(Memory::default(), &[]));
    left.modes.remove("b");
    let removed = ModesDiff { removed: vec!["b".to_owned()], ..ModesDiff::default() };
    daemon.handle.configure(removed, Arc::new(left));
    worker.send_image(job).await;
    assert_eq!(outcome(drawing).await, drawn());
    worker.unload(1).await;
    assert_eq!((daemon.loaded().as_str(), daemon.evictions(Reason::Unwanted)), ("a", 1));
}

#[tokio::test]
async fn a_switch_that_has_waited_too_long_fails_and_the_rest_goes_on() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let first = daemon.submit(generation("a")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    let Job::ModeSwitch { mode, pipeline, asked_by, .. } = switch("b") else { unreachable!() };
    let hasty = Job::ModeSwitch { mode, pipeline, asked_by, timeout_secs: Some(1) };
    let ticket = daemon.submit(hasty).await;
    assert_eq!(daemon.handle.status().selected_mode, "b");
    let (kind, message) = failed_with(outcome(ticket).await);
    assert_eq!(kind, FailureKind::TimedOut, "{message}");
    assert_eq!(daemon.handle.status().selected_mode, "a");
    worker.send_image(job).await;
    assert_eq!(outcome(first).await, drawn());
    assert_eq!(daemon.current().as_deref(), Some("a"));
}

#[tokio::test]
async fn a_mode_is_warmed_up_by_a_step_of_its_own() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let warm_up = || Job::Load { mode: "a".to_owned(), pipeline: pipeline("a"), warm_up: true };
    let ticket = daemon.submit(warm_up()).await;
    worker.load("a").await;
    let probed = worker.expect_probe().await;
    assert_eq!(daemon.state(probed), JobState::Running { step: 0, steps: 1 });
    worker.send(FromWorker::Probed { job: probed }).await;
    assert_eq!(outcome(ticket).await, Outcome::Loaded);
    assert_eq!(daemon.handle.status().current_mode, None, "it is loaded, and not switched to");

    // It is there, and may still be cold; and what cannot draw says so.
    let ticket = daemon.submit(warm_up()).await;
    let job = worker.expect_probe().await;
    worker.send(FromWorker::Failed { job, error: bad("a"), held: None }).await;
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::UnusableModel);

    let ticket = daemon.submit(warm_up()).await;
    let job = worker.expect_probe().await;
    assert!(daemon.cancel(job).await);
    assert_eq!(worker.receive().await, ToWorker::Cancel { job });
    worker.send(FromWorker::Probed { job }).await;
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
}
