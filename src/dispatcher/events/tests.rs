use std::time::Duration;

use tokio::time::timeout;

use super::{
    log::{KEPT, PROGRESS_INTERVAL},
    *,
};
use crate::{
    dispatcher::{
        Outcome,
        job_events::JobEvents,
        table::{Ended, SharedJobs},
    },
    job::Terms,
    queue::Entry,
};

fn custom() -> Job {
    Job::Custom { name: "test".to_owned(), args: Default::default() }
}

fn step(step: u32) -> JobState {
    JobState::Running { step, steps: 20 }
}

fn percent(percent: u8) -> JobState {
    JobState::Loading { percent }
}

fn id(number: u64) -> EventId {
    EventId { daemon: 7, number }
}

/// A log of that many jobs that were queued.
fn log(jobs: usize) -> Log {
    let mut log = Log::new(id(0).daemon);
    for _ in 0..jobs {
        assert!(log.record(JobId::new(), &custom(), &JobState::Queued, Instant::now()));
    }
    log
}

/// The numbers of all that a reader is told who comes from there; those that it missed as a range.
fn told(log: &Log, mut after: Option<u64>) -> (Option<(u64, u64)>, Vec<u64>) {
    let (mut gap, mut numbers) = (None, Vec::new());
    while let Some(event) = log.next(after) {
        after = Some(match event {
            Event::Changed(change) => {
                numbers.push(change.id.number);
                change.id.number
            }
            Event::Missed { from, to } => {
                assert!(gap.replace((from, to.number)).is_none(), "it is said once");
                to.number
            }
        });
    }
    (gap, numbers)
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(20), future).await.expect("an answer within 20 s")
}

#[test]
fn an_id_is_read_as_it_is_written() {
    let written = EventId { daemon: 1_767_225_600_000, number: 17 };
    assert_eq!(written.to_string(), "1767225600000-17");
    assert_eq!("1767225600000-17".parse(), Ok(written));
    for wrong in ["", "17", "-", "1-", "-1", "1-2-3", "a-b", "1--2", "99999999999999999999-1"] {
        assert_eq!(wrong.parse::<EventId>(), Err(NoEventId), "{wrong}");
    }
}

#[test]
fn whoever_resumes_gets_exactly_the_rest() {
    let log = log(5);
    for after in 0..=5 {
        let rest: Vec<u64> = (after + 1..=5).collect();
        assert_eq!(told(&log, log.place(id(after))), (None, rest), "{after}");
    }
}

#[test]
fn what_is_gone_is_said() {
    let log = log(KEPT + 10);
    let last = log.last().number;
    let kept: Vec<u64> = (11..=last).collect();
    assert_eq!(told(&log, log.place(id(10))), (None, kept.clone()));
    assert_eq!(told(&log, log.place(id(9))), (Some((10, 10)), kept.clone()));
    assert_eq!(told(&log, log.place(id(3))), (Some((4, 10)), kept.clone()));
    // An id of another daemon, and one that this one has not given yet.
    for stranger in [EventId { daemon: 6, number: 12 }, id(last + 1)] {
        assert_eq!(told(&log, log.place(stranger)), (Some((0, 10)), kept.clone()), "{stranger}");
    }
    assert_eq!(told(&super::Log::new(7), None), (Some((0, 0)), vec![]), "even if nothing was yet");
}

#[test]
fn progress_is_thinned_and_nothing_else() {
    let began = Instant::now();
    let (job, other) = (JobId::new(), JobId::new());
    let mut log = Log::new(7);
    let ms = Duration::from_millis;
    let failed = JobState::Failed { reason: "x".to_owned() };
    for (at, id, state, is_news) in [
        (0, job, JobState::Queued, true),
        (0, job, percent(0), true),
        (1, job, percent(0), false), // the same once more
        (50, job, percent(40), false),
        (99, job, percent(60), false),
        (100, job, percent(61), true),
        (120, job, percent(80), false),
        (150, job, percent(100), true), // the goal
        (151, job, step(0), true),
        (160, job, step(1), false),
        (170, other, JobState::Queued, true),
        (170, other, step(0), true), // each job for itself
        (251, job, step(9), true),
        (252, job, step(10), false),
        (253, job, percent(0), true), // the worker died: another kind
        (254, job, step(0), true),
        (400, job, step(5), true),
        (401, job, step(2), true), // begun anew
        (402, job, step(20), true),
        (403, job, failed, true),
    ] {
        let recorded = log.record(id, &custom(), &state, began + ms(at));
        assert_eq!(recorded, is_news, "{state:?} at {at} ms");
    }
    assert_eq!(told(&log, Some(0)).1.len() as u64, log.last().number, "no number is skipped");

    let mut log = Log::new(7);
    let per_second = Duration::from_secs(1).as_millis() / PROGRESS_INTERVAL.as_millis();
    let steps = |step| JobState::Running { step, steps: u32::MAX };
    for at in 0..1000 {
        log.record(job, &custom(), &steps(at), began + ms(at.into()));
    }
    assert_eq!(u128::from(log.last().number), per_second);
}

#[tokio::test]
async fn a_slow_reader_delays_nobody_and_is_told_what_it_missed() {
    let log = SharedLog::default();
    let queued = || log.record(JobId::new(), &custom(), &JobState::Queued);
    let (mut slow, mut quick) = (log.follow(None), log.follow(None));
    queued();
    let first = within(slow.next()).await;
    for number in 1..=KEPT as u64 + 5 {
        let Some(Event::Changed(change)) = within(quick.next()).await else { panic!("{number}") };
        assert_eq!(change.id.number, number);
        queued();
    }
    let Some(Event::Changed(change)) = first else { panic!("{first:?}") };
    assert_eq!(change.id.number, 1);
    // Of KEPT + 6 events the first six are gone, one of which it had.
    let to = EventId { number: 6, ..change.id };
    assert_eq!(within(slow.next()).await, Some(Event::Missed { from: 2, to }));
    let Some(Event::Changed(next)) = within(slow.next()).await else { panic!() };
    assert_eq!(next.id.number, 7);
}

#[tokio::test]
async fn readers_are_woken_and_end_behind_the_last_event() {
    let log = SharedLog::default();
    let end = log.ends_with_this();
    let mut events = log.follow(None);
    let reader = tokio::spawn(async move {
        let mut count = 0;
        while let Some(event) = events.next().await {
            assert!(matches!(event, Event::Changed(_)));
            count += 1;
        }
        count
    });
    for _ in 0..100 {
        log.record(JobId::new(), &custom(), &JobState::Queued);
        tokio::task::yield_now().await;
    }
    drop(end);
    assert_eq!(within(reader).await.unwrap(), 100);
    assert_eq!(within(log.follow(None).next()).await, None, "who comes later ends, too");
}

fn submitted(jobs: &SharedJobs) -> JobId {
    let entry = Entry { id: JobId::new(), job: custom(), terms: Terms::default(), arrived_ms: 0 };
    jobs.insert(entry.clone());
    entry.id
}

/// The states that are told of a job that has ended.
async fn states(jobs: &SharedJobs, id: JobId, after: Option<EventId>) -> Vec<&'static str> {
    let mut events = JobEvents::of(jobs, id, after).expect("a known job");
    let mut states = Vec::new();
    while let Some(event) = within(events.next()).await {
        states.push(match event {
            Event::Changed(change) => {
                assert_eq!(change.job, id);
                change.state.name()
            }
            Event::Missed { .. } => "missed",
        });
    }
    states
}

#[tokio::test]
async fn the_events_of_a_job_begin_with_the_present_and_end_with_it() {
    let jobs = SharedJobs::default();
    let id = submitted(&jobs);
    let queued = jobs.present(id).unwrap().id;
    let mut events = JobEvents::of(&jobs, id, None).unwrap();
    submitted(&jobs);
    jobs.begin(id, percent(0));
    let loading = jobs.present(id).unwrap().id;
    cancel(&jobs, id);
    let end = jobs.present(id).unwrap().id;
    let mut told = Vec::new();
    while let Some(event) = within(events.next()).await {
        let Event::Changed(change) = event else { panic!("{event:?}") };
        told.push((change.id.number, change.state.name()));
    }
    assert_eq!(told, [(1, "queued"), (3, "loading"), (4, "cancelled")]);

    assert_eq!(states(&jobs, id, None).await, ["cancelled"]);
    assert_eq!(states(&jobs, id, Some(queued)).await, ["loading", "cancelled"]);
    assert_eq!(states(&jobs, id, Some(loading)).await, ["cancelled"]);
    assert!(JobEvents::of(&jobs, id, Some(end)).unwrap().is_over());
    assert!(JobEvents::of(&jobs, JobId::new(), None).is_none());
    let elsewhere = EventId { daemon: 1, ..end };
    assert_eq!(states(&jobs, id, Some(elsewhere)).await, ["missed", "cancelled"]);
}

#[tokio::test]
async fn a_reader_of_one_job_that_missed_its_end_is_told_of_it() {
    let jobs = SharedJobs::default();
    let id = submitted(&jobs);
    let mut slow = JobEvents::of(&jobs, id, None).unwrap();
    let forgotten = submitted(&jobs);
    let mut too_slow = JobEvents::of(&jobs, forgotten, None).unwrap();
    cancel(&jobs, forgotten);
    // Long ones are remembered longer than their events.
    for _ in 0..KEPT {
        let other = submitted(&jobs);
        cancel(&jobs, other);
    }
    cancel(&jobs, id);
    let mut told = Vec::new();
    while let Some(event) = within(slow.next()).await {
        told.push(matches!(event, Event::Changed(_)));
    }
    assert_eq!(told, [true, false, true], "queued, missed, cancelled");
    assert!(matches!(within(too_slow.next()).await, Some(Event::Changed(_))));
    assert!(matches!(within(too_slow.next()).await, Some(Event::Missed { .. })));
    assert_eq!(within(too_slow.next()).await, None, "nobody knows the job any more");
}

fn cancel(jobs: &SharedJobs, id: JobId) {
    let at = crate::dispatcher::limits::Now { unix_ms: 0, steady_ms: 0 };
    jobs.finish(id, Ended { outcome: &Outcome::Cancelled, at, image_bytes: 0 });
}
