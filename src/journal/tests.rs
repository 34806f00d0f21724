mod damage;

use std::{collections::HashSet, fs, io::Read, path::Path, sync::Arc};

use serde_json::json;

use super::{
    Ending, Journal, JournalError, Opened, Receipt, Record, Remembered, Results, store::Store,
};
use crate::{
    job::{Job, JobId, JobState, Terms},
    modes::{CheckpointRef, Dimensions, PipelineSpec, SchedulerId},
    queue::Entry,
    request::{EncodedImage, GenerateRequest, Source},
    worker::protocol::{DrawnImages, DrawnReport},
};

fn entry() -> Entry {
    let checkpoint = CheckpointRef { name: "a".to_owned(), path: "/m/a".into() };
    let source =
        Source { image: EncodedImage(vec![1, 2, 3].into()), mask: None, denoise_strength: 0.5 };
    let request = GenerateRequest {
        n: 2,
        seed: 7,
        source: Some(source),
        ..GenerateRequest::of("a", "a red fox")
    };
    let terms = Terms { durable: true, priority: 3, tags: vec!["t".into()], ..Terms::default() };
    let job = Job::Generation { request, pipeline: PipelineSpec::of(checkpoint) };
    Entry { id: JobId::new(), job, terms, arrived_ms: 1000 }
}

fn accepted(entry: &Entry) -> Record {
    Record::Accepted(Box::new(entry.clone()))
}

fn images() -> DrawnImages {
    let report = DrawnReport {
        size: Dimensions { width: 8, height: 8 },
        images: 2,
        prompt_truncated: None,
        skipped_loras: vec![],
        scheduler: Some(SchedulerId::Ddim),
        encode_ms: 1,
        denoise_ms: 2,
        decode_ms: 3,
        peak_bytes: 4,
        steps: 5,
        superres: None,
    };
    DrawnImages { rgb: (0..2 * 192).map(|i| i as u8).collect(), report }
}

fn ending(state: JobState) -> Ending {
    Ending {
        state,
        finished_unix_ms: 1 << 42, // after the ids were made
        drawing_unix_ms: Some(2500),
        result: None,
        report: None,
        image_bytes: 0,
    }
}

fn ended(entry: &Entry, ending: Ending, images: Option<DrawnImages>) -> Record {
    let mut entry = Box::new(entry.clone());
    entry.job.forget_inputs();
    Record::Ended { entry, ending: Box::new(ending), images: images.map(Arc::new) }
}

fn open(folder: &Path) -> Opened<u32> {
    Journal::open(folder).unwrap()
}

/// Appends these, closes the journal, and says which were written.
fn write(opened: Opened<u32>, records: impl IntoIterator<Item = Record>) -> Vec<u32> {
    let Opened { journal, mut receipts, .. } = opened;
    records.into_iter().zip(0..).for_each(|(record, token)| journal.append(record, token));
    journal.close();
    let mut written = Vec::new();
    while let Ok(receipt) = receipts.try_recv() {
        match receipt {
            Receipt::Written { token, .. } => written.push(token),
            Receipt::Refused(_) | Receipt::Recovered => {}
        }
    }
    written.sort_unstable();
    written
}

#[test]
fn what_was_written_is_remembered_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let jobs: Vec<Entry> = (0..5).map(|_| entry()).collect();
    let failed = JobState::Failed { reason: "so".to_owned() };
    let custom = Ending { result: Some(json!({"x": 1})), ..ending(JobState::Done) };
    let begun =
        |at: usize, attempts, at_unix_ms| Record::Begun { id: jobs[at].id, attempts, at_unix_ms };
    let written = write(
        open(folder.path()),
        jobs.iter().rev().map(accepted).chain([
            begun(0, 1, 2000),
            begun(0, 2, 2500),
            begun(1, 1, 2000),
            Record::PutBack { id: jobs[1].id, attempts: 0 },
            ended(&jobs[2], ending(failed), None),
            ended(&jobs[3], custom.clone(), None),
            Record::Notified(jobs[3].id),
            Record::Forgotten(vec![jobs[4].id]),
            Record::Mark,
        ]),
    );
    assert_eq!(written, (0..14).collect::<Vec<_>>());
    let remembered = open(folder.path()).remembered;
    let ids: Vec<JobId> = remembered.iter().map(|job| job.entry.id).collect();
    assert_eq!(ids, [3, 2, 1, 0].map(|at| jobs[at].id), "as they were accepted");
    let [done, failed, put_back, running] = &remembered[..] else { panic!("{remembered:?}") };
    assert_eq!(running.entry, jobs[0], "whole, images and terms");
    let attempts = |job: &Remembered| (job.attempts, job.started_unix_ms);
    assert_eq!(attempts(running), (2, Some(2000)));
    assert_eq!(running.ending, None);
    assert_eq!((put_back.attempts, &put_back.ending), (0, &None));
    assert_eq!(done.ending, Some(custom));
    assert!(done.notified && !failed.notified);
    let reason = |job: &Remembered| job.ending.clone().map(|ending| ending.state);
    assert_eq!(reason(failed), Some(JobState::Failed { reason: "so".to_owned() }));
    let Job::Generation { request, .. } = &failed.entry.job else { panic!() };
    assert_eq!(request.source.as_ref().unwrap().bytes(), 0, "what it drew over is not kept");
}

#[test]
fn images_are_files_with_their_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let job = entry();
    let done = Ending { report: Some(images().report), ..ending(JobState::Done) };
    write(open(folder.path()), [accepted(&job), ended(&job, done, Some(images()))]);
    let Opened { remembered, results, journal, .. } = open(folder.path());
    let bytes = remembered[0].ending.as_ref().unwrap().image_bytes;
    let results = results.unwrap();
    let read = |at| {
        let mut bytes = Vec::new();
        results.file(job.id, at).unwrap().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let files: Vec<Vec<u8>> = (0..2).map(read).collect();
    assert_eq!(files.iter().map(Vec::len).sum::<usize>() as u64, bytes);
    assert!(results.file(job.id, 2).unwrap().is_none());
    for (at, file) in files.iter().enumerate() {
        let seed = format!("Seed: {}", 7 + at);
        assert!(file.windows(seed.len()).any(|it| it == seed.as_bytes()));
        let rgb = crate::image::decode_as_it_is(file).unwrap().bytes;
        assert_eq!(rgb, images().each().nth(at).unwrap());
    }
    journal.append(Record::ImagesForgotten(vec![job.id]), 0);
    journal.close();
    assert!(results.file(job.id, 0).unwrap().is_none());
    assert_eq!(open(folder.path()).remembered[0].ending.as_ref().unwrap().image_bytes, 0);
}

#[test]
fn files_of_no_job_are_set_aside_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let results = Results::open(folder.path()).unwrap();
    let (known, unknown) = (entry(), entry());
    results.save(&known, &images()).unwrap();
    let mine = folder.path().join("results/my notes-1.png");
    let half = folder.path().join(format!("results/{}-0.tmp", known.id));
    [&mine, &half].iter().for_each(|path| fs::write(path, "x").unwrap());
    let only_known = HashSet::from([known.id]);
    let moved = || results.set_aside_all_but(&only_known).unwrap().len();
    let mut other = images();
    other.rgb[0] ^= 1;
    for (images, expected) in [(images(), 2), (images(), 0), (other, 1)] {
        results.save(&unknown, &images).unwrap();
        assert_eq!(moved(), expected, "each is set aside once");
        assert_eq!(moved(), 0);
    }
    results.remove_unfinished().unwrap();
    assert!(results.file(known.id, 1).unwrap().is_some());
    assert!(results.file(unknown.id, 0).unwrap().is_none());
    assert!(results.file(unknown.id, 1).unwrap().is_some(), "its copy is set aside");
    assert!(mine.exists() && !half.exists());
    let names = fs::read_dir(results.orphaned_folder()).unwrap();
    let mut names: Vec<_> =
        names.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    let id = unknown.id;
    let expected = ["-0.2.png", "-0.png", "-1.png"].map(|end| format!("{id}{end}"));
    assert_eq!(names, expected);
    assert_eq!(results.orphaned().unwrap().len(), 2, "those that have their names");
}

#[test]
fn a_kill_before_the_files_are_deleted_leaves_a_tombstone_and_nothing_else_deletes_them() {
    let folder = tempfile::tempdir().unwrap();
    let (forgotten, kept) = (entry(), entry());
    let done = |job: &Entry| ended(job, ending(JobState::Done), Some(images()));
    write(
        open(folder.path()),
        [accepted(&forgotten), accepted(&kept), done(&forgotten), done(&kept)],
    );
    // As the writer does, up to where it is killed.
    let (mut store, _) = Store::open(&folder.path().join("journal.sqlite3")).unwrap();
    store.write([&Record::Forgotten(vec![forgotten.id])]).unwrap();
    drop(store);
    let results = open(folder.path()).results.unwrap();
    assert!(results.file(forgotten.id, 0).unwrap().is_none());
    assert!(results.file(kept.id, 0).unwrap().is_some());
    assert_eq!(results.orphaned().unwrap(), [], "it was deleted");
    // The tombstone has served: an image of that name that comes later is not deleted.
    results.save(&forgotten, &images()).unwrap();
    let results = open(folder.path()).results.unwrap();
    assert_eq!(results.orphaned().unwrap().len(), 2);
}

#[test]
fn a_damaged_file_is_put_aside_and_read_as_far_as_possible() {
    type Damage = fn(&mut Vec<u8>);
    const PAGE: usize = 4096;
    // Not a database at all; with a hole in its middle; without its end.
    let damages: [(Damage, std::ops::Range<usize>); 3] = [
        (|file| *file = b"not a database, not even an empty one".repeat(200), 0..1),
        (
            |file| {
                let (from, to) = (file.len() / 3 / PAGE * PAGE, file.len() / 2 / PAGE * PAGE);
                file[from..to].fill(0xff);
            },
            100..200,
        ),
        (|file| file.truncate(file.len() / 2 / PAGE * PAGE), 50..150),
    ];
    for (damage, still_known) in damages {
        let folder = tempfile::tempdir().unwrap();
        let many: Vec<Record> = (0..200).map(|_| accepted(&entry())).collect();
        write(open(folder.path()), many);
        let path = folder.path().join("journal.sqlite3");
        let mut damaged = fs::read(&path).unwrap();
        damage(&mut damaged);
        fs::write(&path, &damaged).unwrap();
        let job = entry();
        let opened = open(folder.path());
        let known = opened.remembered.len();
        assert!(still_known.contains(&known), "{known} of 200 are known");
        assert!(opened.remembered.is_sorted_by_key(|job| job.entry.id));
        assert_eq!(write(opened, [accepted(&job)]), [0], "a new one is begun");
        let names = fs::read_dir(folder.path()).unwrap();
        let names = names.map(|file| file.unwrap().path());
        let aside: Vec<_> =
            names.filter(|path| path.to_str().unwrap().contains(".damaged-")).collect();
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert_eq!(fs::read(&aside[0]).unwrap(), damaged, "as it was");
        let again = open(folder.path()).remembered;
        assert_eq!((again.len(), again[known].entry.id), (known + 1, job.id));
    }
}

#[test]
fn a_newer_journal_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    write(open(folder.path()), [accepted(&entry())]);
    let path = folder.path().join("journal.sqlite3");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let Err(error) = Journal::<u32>::open(folder.path()) else { panic!() };
    assert!(matches!(error, JournalError::Newer { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("newer diffused"), "{error}");
}

#[test]
fn a_job_that_cannot_be_read_is_left_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = [entry(), entry()];
    write(open(folder.path()), jobs.iter().map(accepted));
    let path = folder.path().join("journal.sqlite3");
    let connection = rusqlite::Connection::open(&path).unwrap();
    let id = jobs[0].id.to_string();
    connection
        .execute("UPDATE jobs SET job = '{\"type\":\"future\"}' WHERE id = ?1", [id])
        .unwrap();
    let remembered = open(folder.path()).remembered;
    assert_eq!(remembered.iter().map(|job| job.entry.id).collect::<Vec<_>>(), [jobs[1].id]);
    let count: u32 =
        connection.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 2);
}

#[test]
fn all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let job = entry();
    let (mut store, _) = Store::open(&folder.path().join("j")).unwrap();
    let twice = [accepted(&job), accepted(&job)];
    assert!(store.write(&twice).is_err(), "an id is there once");
    drop(store);
    let (mut store, contents) = Store::open(&folder.path().join("j")).unwrap();
    assert_eq!(contents.remembered, []);
    store.write([&accepted(&job)]).unwrap();
}

#[test]
fn one_bad_record_takes_no_other_along() {
    let folder = tempfile::tempdir().unwrap();
    let (job, other) = (entry(), entry());
    let written = write(
        open(folder.path()),
        [accepted(&job), accepted(&job), accepted(&other), Record::Mark],
    );
    assert_eq!(written, [0, 2, 3]);
    assert_eq!(open(folder.path()).remembered.len(), 2);
}

#[test]
fn a_journal_that_is_off_says_yes_at_once() {
    let Opened { journal, mut receipts, remembered, .. } = Journal::off();
    journal.append(accepted(&entry()), 5);
    assert!(matches!(receipts.try_recv(), Ok(Receipt::Written { token: 5, image_bytes: 0 })));
    assert!(remembered.is_empty() && !journal.is_on());
    journal.close();
}
