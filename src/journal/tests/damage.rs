//! A damaged journal is replaced so that no moment of it costs a job, and images that the journal
//! does not know, or not as finished, are never overwritten.

use std::path::PathBuf;

use rusqlite::Connection;

use super::*;
use crate::journal::{
    damage::{BUILDING, REBUILT, with_ending},
    migrations::MIGRATIONS,
    opening,
    recover::{recover, recover_in},
};

const NEVER: &str = "PRAGMA user_version = 2000000000";

/// A journal whose version is damaged, half of its jobs and the damage in its log.
struct Damaged {
    folder: tempfile::TempDir,
    journal: PathBuf,
    ids: Vec<JobId>,
}

impl Damaged {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (live, journal) = (folder.path().join("live"), folder.path().join("journal.sqlite3"));
        let jobs: Vec<Entry> = (0..20).map(|_| entry()).collect();
        let records: Vec<Record> = jobs.iter().map(accepted).collect();
        let (mut store, _) = Store::open(&live).unwrap();
        store.write(&records[..10]).unwrap();
        drop(store);
        let (mut store, _) = Store::open(&live).unwrap();
        store.write(&records[10..]).unwrap();
        Connection::open(&live).unwrap().execute_batch(NEVER).unwrap();
        for ending in ["", "-wal"] {
            fs::copy(with_ending(&live, ending), with_ending(&journal, ending)).unwrap();
        }
        Self { folder, journal, ids: jobs.iter().map(|job| job.id).collect() }
    }

    fn file(&self, ending: &str) -> PathBuf {
        with_ending(&self.journal, ending)
    }

    #[track_caller]
    fn assert_all_are_known(&self, what: &str) {
        for _ in 0..2 {
            let (_, contents) = Store::open(&self.journal).unwrap();
            let known: Vec<JobId> = contents.remembered.iter().map(|job| job.entry.id).collect();
            assert_eq!(known, self.ids, "{what}");
        }
        for ending in [BUILDING, REBUILT] {
            assert!(!self.file(ending).exists(), "{what}");
        }
    }
}

#[test]
fn no_kill_while_a_damaged_journal_is_replaced_costs_a_job() {
    type Step = fn(&Damaged, &[u8]);
    let steps: [(&str, Step); 5] = [
        ("half built", |damaged, rebuilt| {
            fs::write(damaged.file(BUILDING), &rebuilt[..rebuilt.len() / 2]).unwrap();
            fs::write(damaged.file(".building-wal"), "half a log").unwrap();
        }),
        ("built", |damaged, rebuilt| {
            fs::remove_file(damaged.file(".building-wal")).unwrap();
            fs::write(damaged.file(BUILDING), rebuilt).unwrap();
            fs::rename(damaged.file(BUILDING), damaged.file(REBUILT)).unwrap();
        }),
        ("the file set aside", |damaged, _| {
            fs::rename(&damaged.journal, damaged.file(".damaged-1")).unwrap();
        }),
        ("its log set aside", |damaged, _| {
            fs::rename(damaged.file("-wal"), damaged.file(".damaged-1-wal")).unwrap();
        }),
        ("swapped", |damaged, _| fs::rename(damaged.file(REBUILT), &damaged.journal).unwrap()),
    ];
    for killed_after in 0..=steps.len() {
        let damaged = Damaged::new();
        let other = damaged.folder.path().join("other");
        for ending in ["", "-wal"] {
            fs::copy(damaged.file(ending), with_ending(&other, ending)).unwrap();
        }
        drop(Store::open(&other).unwrap());
        let rebuilt = fs::read(&other).unwrap();
        let mut what = "nothing done";
        for (step, act) in &steps[..killed_after] {
            what = step;
            act(&damaged, &rebuilt);
        }
        damaged.assert_all_are_known(what);
        let kept = fs::read_dir(damaged.folder.path()).unwrap();
        let kept: Vec<String> =
            kept.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let is_kept = |is_log| {
            kept.iter().any(|name| {
                name.starts_with("journal.sqlite3.damaged-") && name.ends_with("-wal") == is_log
            })
        };
        assert!(is_kept(false) && is_kept(true), "{what}: {kept:?}");
    }
}

#[test]
fn a_new_journal_that_cannot_be_built_leaves_the_damaged_one_as_it_is() {
    let damaged = Damaged::new();
    let read = || ["", "-wal"].map(|ending| fs::read(damaged.file(ending)).unwrap());
    let before = read();
    let obstacle = damaged.file(BUILDING);
    fs::create_dir(&obstacle).unwrap();
    for _ in 0..2 {
        assert!(Store::open(&damaged.journal).is_err());
        assert!(read() == before, "not a byte changed");
    }
    fs::remove_dir(&obstacle).unwrap();
    damaged.assert_all_are_known("there is room again");
}

#[test]
fn a_journal_that_somebody_has_restored_counts_and_not_the_rebuilt_one() {
    let damaged = Damaged::new();
    drop(Store::open(&damaged.journal).unwrap());
    let (mut other, _) = Store::open(&damaged.file(REBUILT)).unwrap();
    other.write(&[accepted(&entry())]).unwrap();
    drop(other);
    damaged.assert_all_are_known("restored");
}

#[test]
fn a_row_that_the_table_does_not_allow_is_left_out_alone() {
    let damaged = Damaged::new();
    drop(Store::open(&damaged.journal).unwrap());
    let sql = format!(
        "ALTER TABLE jobs RENAME TO strict; {}; INSERT INTO jobs SELECT * FROM strict; \
         UPDATE jobs SET reason = x'00ff' WHERE seq = 3; {NEVER}",
        MIGRATIONS[0].replace("STRICT", "").trim_end().trim_end_matches(';')
    );
    Connection::open(&damaged.journal).unwrap().execute_batch(&sql).unwrap();
    let (_, contents) = Store::open(&damaged.journal).unwrap();
    let known: Vec<JobId> = contents.remembered.iter().map(|job| job.entry.id).collect();
    assert_eq!(known, [&damaged.ids[..2], &damaged.ids[3..]].concat());
}

#[test]
fn a_table_of_another_program_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("j");
    Connection::open(&journal).unwrap().execute_batch("CREATE TABLE jobs (name TEXT)").unwrap();
    let (_, contents) = Store::open(&journal).unwrap();
    assert_eq!(contents.remembered, []);
}

#[test]
fn an_image_of_a_job_that_waits_is_set_aside_once_and_goes_when_the_job_has_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let job = entry();
    write(open(folder.path()), [accepted(&job)]);
    // Each daemon is killed between the image and the row that says so.
    for _ in 0..3 {
        let results = open(folder.path()).results.unwrap();
        results.save(&job, &images()).unwrap();
    }
    let opened = open(folder.path());
    let results = opened.results.clone().unwrap();
    let aside = results.orphaned().unwrap();
    let bytes: Vec<Vec<u8>> = aside.iter().map(|image| fs::read(&image.path).unwrap()).collect();
    assert_eq!(fs::read_dir(results.orphaned_folder()).unwrap().count(), 2, "one copy of each");
    assert_eq!(bytes.len(), 2);
    // It is done again, with the same images.
    let done = Ending { report: Some(images().report), ..ending(JobState::Done) };
    write(opened, [ended(&job, done, Some(images()))]);
    let recovery = recover(folder.path(), 0).unwrap();
    assert_eq!((recovery.jobs, recovery.left.len()), (0, 0));
    assert_eq!(results.orphaned().unwrap(), []);
    let there = results.images().unwrap();
    let there: Vec<Vec<u8>> = there.iter().map(|image| fs::read(&image.path).unwrap()).collect();
    assert_eq!(there, bytes);
}

#[test]
fn images_that_could_not_be_set_aside_are_recovered_in_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let [lost, known] = [entry(), entry()];
    let done = Ending { report: Some(images().report), ..ending(JobState::Done) };
    write(open(folder.path()), [accepted(&known), ended(&known, done, Some(images()))]);
    let files = opening::open(folder.path()).unwrap();
    files.results.save(&lost, &images()).unwrap();
    let recovery = recover_in(files, folder.path(), 1 << 42).unwrap();
    assert_eq!((recovery.jobs, recovery.images, recovery.left.len()), (1, 2, 0));
    let opened = open(folder.path());
    assert_eq!(opened.remembered.len(), 2);
    assert!(opened.remembered.iter().all(|job| job.ending.is_some()));
    assert!(opened.results.unwrap().file(lost.id, 1).unwrap().is_some());
}
