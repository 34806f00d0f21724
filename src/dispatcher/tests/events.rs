//! What is told of the jobs while they are done.

use super::*;

/// The events so far, as the number of the job in that list and its state.
async fn next(events: &mut Events, jobs: &[JobId]) -> (usize, String) {
    match within(events.next()).await.expect("an event") {
        Event::Changed(change) => {
            let job = jobs.iter().position(|id| *id == change.job);
            let state = match &change.state {
                JobState::Loading { percent } => format!("loading {percent}"),
                JobState::Running { step, steps } => format!("running {step}/{steps}"),
                JobState::Failed { reason } => format!("failed: {reason}"),
                state => state.name().to_owned(),
            };
            (job.unwrap_or(usize::MAX), state)
        }
        missed => panic!("{missed:?}"),
    }
}

async fn expect(events: &mut Events, jobs: &[JobId], expected: &[(usize, &str)]) {
    for (job, state) in expected {
        assert_eq!(next(events, jobs).await, (*job, (*state).to_owned()));
    }
}

#[tokio::test]
async fn a_generation_is_told_with_its_switch() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let mut events = daemon.handle.events(None);
    let ticket = daemon.submit(generation("a")).await;
    let switch = worker.expect_load("a").await;
    worker.send(FromWorker::Loading { job: switch, fraction: 1.0 }).await;
    worker.send_loaded(switch).await;
    let job = worker.expect_generate("a").await;
    worker.send(FromWorker::Step { job, step: STEPS, steps: STEPS }).await;
    worker.send_image(job).await;
    assert_eq!(outcome(ticket).await, drawn());
    let expected = [
        (0, "queued"),
        (1, "queued"),
        (0, "loading 0"),
        (0, "loading 100"),
        (0, "done"),
        // That it has its pipeline is found out at once.
        (1, "loading 0"),
        (1, "running 0/4"),
        (1, "running 4/4"),
        (1, "done"),
    ];
    expect(&mut events, &[switch, job], &expected).await;

    // Those of the one job alone, from its first one.
    let mut all = daemon.handle.events(Some(EventId { daemon: 0, number: 0 }));
    let Some(Event::Missed { from: 0, to }) = within(all.next()).await else { panic!() };
    let mut of_job = daemon.handle.job_events(job, Some(to)).unwrap();
    let mut states = Vec::new();
    while let Some(Event::Changed(change)) = within(of_job.next()).await {
        assert_eq!((change.job, change.kind.name()), (job, "generation"));
        assert_eq!(change.mode.as_deref(), Some("a"));
        states.push(change.state.name());
    }
    assert_eq!(states, ["queued", "loading", "running", "running", "done"]);
}

#[tokio::test]
async fn a_failed_load_is_told_with_its_reason() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let mut events = daemon.handle.events(None);
    let ticket = daemon.submit(generation("b")).await;
    let id = ticket.id();
    let switch = worker.expect_prepare("b").await;
    worker.send(FromWorker::Failed { job: switch, error: bad("b"), held: None }).await;
    failed_with(outcome(ticket).await);
    let expected = [
        (0, "queued"),
        (1, "queued"),
        (0, "loading 0"),
        (1, "failed: b is bad"),
        (0, "failed: b is bad"),
    ];
    expect(&mut events, &[switch, id], &expected).await;
}

#[tokio::test]
async fn cancelled_jobs_are_told_and_retries_too() {
    let mut daemon = Daemon::start();
    let mut first = daemon.worker().await;
    let mut events = daemon.handle.events(None);
    let running = daemon.submit(generation("a")).await;
    first.load("a").await;
    let id = first.expect_generate("a").await;
    let waiting = daemon.submit(generation("a")).await;
    let jobs = [id, waiting.id()];
    drop(waiting);
    drop(first);
    let mut second = daemon.worker().await;
    second.load("a").await;
    second.expect_generate("a").await;
    assert!(daemon.cancel(id).await);
    assert_eq!(second.receive().await, ToWorker::Cancel { job: id });
    second.send(FromWorker::Cancelled { job: id }).await;
    assert_eq!(outcome(running).await, Outcome::Cancelled);
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != "cancelled") {
        let (job, state) = next(&mut events, &jobs).await;
        match job {
            0 => told.push(state),
            1 => assert!(["queued", "cancelled"].contains(&state.as_str()), "{state}"),
            _ => {} // the switch
        }
    }
    let expected = ["queued", "loading 0", "running 0/4", "loading 0", "running 0/4", "cancelled"];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn the_events_end_with_the_dispatcher() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let running = daemon.submit(generation("a")).await;
    let waiting = daemon.submit(generation("b")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    let jobs = [job, waiting.id()];
    let mut events = daemon.handle.events(None);
    let draining = tokio::spawn(daemon.shutdown.drain());
    failed_with(outcome(waiting).await);
    worker.send_image(job).await;
    assert_eq!(outcome(running).await, drawn());
    let mut told = Vec::new();
    let mut last = None;
    while let Some(event) = within(events.next()).await {
        let Event::Changed(change) = event else { panic!("{event:?}") };
        last = Some(change.state.name());
        told.push(jobs.iter().position(|id| *id == change.job));
    }
    within(draining).await.unwrap();
    assert!(told.contains(&Some(1)), "{told:?}");
    assert_eq!((told.last(), last), (Some(&Some(0)), Some("done")));
}
