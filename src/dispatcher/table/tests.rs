use super::*;
use crate::{
    job::Terms,
    modes::{Dimensions, SchedulerId, Time},
    worker::protocol::{DrawnImages, DrawnReport},
};

fn custom() -> Entry {
    let job = Job::Custom { name: "test".to_owned(), args: Default::default() };
    Entry { id: JobId::new(), job, terms: Terms::default(), arrived_ms: 0 }
}

fn at(ms: u64) -> Now {
    Now { unix_ms: ms, steady_ms: ms }
}

fn ended(outcome: &Outcome, at_ms: u64, image_bytes: u64) -> Ended<'_> {
    Ended { outcome, at: at(at_ms), image_bytes }
}

fn durable() -> Entry {
    Entry { terms: Terms { durable: true, ..Terms::default() }, ..custom() }
}

fn drawn(bytes: usize) -> Outcome {
    let report = DrawnReport {
        size: Dimensions { width: 8, height: 8 },
        images: 1,
        prompt_truncated: None,
        skipped_loras: vec![],
        scheduler: Some(SchedulerId::Ddim),
        encode_ms: 0,
        denoise_ms: 0,
        decode_ms: 0,
        peak_bytes: 0,
        steps: 1,
        superres: None,
    };
    Outcome::Images(Arc::new(DrawnImages { rgb: vec![0; bytes], report }))
}

fn finish(jobs: &SharedJobs, entry: Entry, outcome: &Outcome, at: u64, on_disk: u64) -> JobId {
    let id = entry.id;
    jobs.insert(entry);
    jobs.finish(id, ended(outcome, at, on_disk));
    id
}

#[test]
fn only_the_last_answered_jobs_are_remembered() {
    let jobs = SharedJobs::default();
    let waiting = custom();
    jobs.insert(waiting.clone());
    let kept = finish(&jobs, durable(), &Outcome::Cancelled, 0, 0);
    let finished: Vec<JobId> = (0..ANSWERED_KEPT + 2)
        .map(|_| finish(&jobs, custom(), &Outcome::Cancelled, 0, 0))
        .collect();
    let known: Vec<bool> = finished.iter().map(|id| jobs.get(*id).is_some()).collect();
    assert_eq!(known.iter().position(|known| *known), Some(2));
    assert!(known[2..].iter().all(|known| *known));
    assert!(jobs.get(waiting.id).is_some(), "one that waits is never forgotten");
    assert!(jobs.get(kept).is_some(), "a durable one is not pushed out by others");
}

#[test]
fn images_in_memory_are_kept_within_bounds() {
    let jobs = SharedJobs::default();
    let most = 512 << 20;
    let answered = finish(&jobs, custom(), &drawn(10), 0, 0);
    let kept: Vec<JobId> =
        [10, most - 15, 10].map(|bytes| finish(&jobs, durable(), &drawn(bytes), 0, 0)).into();
    assert!(jobs.images(answered).is_none(), "nobody has asked for it to be kept");
    let there = |id: &JobId| (jobs.get(*id).unwrap().images, jobs.images(*id).is_some());
    let there: Vec<_> = kept.iter().map(there).collect();
    assert_eq!(there, [(0, false), (1, true), (1, true)], "the oldest goes");
}

#[test]
fn retention_is_by_age_count_and_bytes() {
    const IMAGE: u64 = 1 << 20;
    let jobs = SharedJobs::default();
    let ids: Vec<JobId> =
        (0..6).map(|at| finish(&jobs, durable(), &drawn(1), 1000 * at, IMAGE)).collect();
    let retention =
        |secs, max_jobs, max_bytes| Retention { max_age: Time::of_secs(secs), max_jobs, max_bytes };
    let all = retention(100, 6, 7 * IMAGE);
    assert_eq!(jobs.next_expiry_in_ms(at(10_000), &all), Some(90_000));
    assert_eq!(jobs.expire(at(99_999), &all), Expired::default());
    let expired =
        |jobs: &[JobId], images: &[JobId]| Expired { jobs: jobs.to_vec(), images: images.to_vec() };
    assert_eq!(jobs.expire(at(100_000), &all), expired(&ids[..1], &[]), "age");
    let four = retention(100, 4, 7 * IMAGE);
    assert_eq!(jobs.expire(at(0), &four), expired(&ids[1..2], &[]), "count");
    let bytes = retention(100, 4, 4 * IMAGE);
    assert_eq!(jobs.expire(at(0), &bytes), expired(&[], &ids[2..3]), "images and records");
    assert!(jobs.images(ids[2]).is_none());
    assert_eq!(jobs.get(ids[2]).unwrap().images, 0, "the job is still known");
    assert!(matches!(jobs.images(ids[3]), Some(Place::Disk)));
    assert_eq!(jobs.expire(at(0), &retention(100, 0, 0)), expired(&ids[2..], &[]));
    assert_eq!(jobs.next_expiry_in_ms(at(0), &all), None);
}

#[test]
fn jobs_are_listed_from_the_newest_on() {
    let jobs = SharedJobs::default();
    let ids: Vec<JobId> = (0..5)
        .map(|_| {
            let entry = custom();
            jobs.insert(entry.clone());
            entry.id
        })
        .collect();
    jobs.finish(ids[1], ended(&Outcome::Cancelled, 0, 0));
    let list = |before, limit, state: Option<JobState>| -> Vec<JobId> {
        let wanted = |view: &JobView| state.as_ref().is_none_or(|state| view.state == *state);
        let (views, has_more) = jobs.list(before, (limit, u64::MAX), wanted);
        assert_eq!(has_more, views.len() == 2 && before.is_none());
        views.iter().map(|view| view.id).collect()
    };
    assert_eq!(list(None, 2, None), [ids[4], ids[3]]);
    assert_eq!(list(Some(ids[3]), 9, None), [ids[2], ids[1], ids[0]]);
    assert_eq!(list(Some(ids[3]), 9, Some(JobState::Queued)), [ids[2], ids[0]]);
    assert_eq!(list(Some(ids[0]), 9, None), []);
}

#[test]
fn results_take_a_bounded_amount_of_memory_in_the_table_and_in_a_list() {
    let jobs = SharedJobs::default();
    let outcome = Outcome::Custom("x".repeat(10 << 20).into());
    let ids: Vec<JobId> = (0..8).map(|_| finish(&jobs, durable(), &outcome, 0, 0)).collect();
    let has_result = |id: &JobId| jobs.get(*id).unwrap().result.is_some();
    let kept: Vec<bool> = ids.iter().map(has_result).collect();
    assert_eq!(kept, [false, false, true, true, true, true, true, true]);

    let listed = |before, bytes| {
        let (views, has_more) = jobs.list(before, (200, bytes), |_| true);
        (views.len(), has_more)
    };
    assert_eq!(listed(None, u64::MAX), (8, false));
    assert_eq!(listed(None, 25 << 20), (2, true));
    assert_eq!(listed(None, 1 << 20), (1, true), "at least one");
    assert_eq!(listed(Some(ids[3]), 15 << 20), (3, false));
}

#[test]
fn a_second_attempt_keeps_the_first_ones_start() {
    let jobs = SharedJobs::default();
    let entry = custom();
    jobs.insert(entry.clone());
    jobs.begin(entry.id, JobState::Loading { percent: 0 });
    let started = jobs.get(entry.id).unwrap().started_unix_ms;
    assert!(started.is_some());
    jobs.begin(entry.id, JobState::Loading { percent: 0 });
    let view = jobs.get(entry.id).unwrap();
    assert_eq!((view.attempts, view.started_unix_ms), (2, started));
}
