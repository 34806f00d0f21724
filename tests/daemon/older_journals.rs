//! Journals from an earlier time: of an earlier version of the program, and a copy that knows less.

use std::fs;

use rusqlite::Connection;

use crate::support::{Daemon, draw, stop};

/// Makes a job one that waits.
const WAITS: &str = "UPDATE jobs SET state = 'queued', attempts = 0, started_ms = NULL, \
    drawing_ms = NULL, finished_ms = NULL, report = NULL, image_bytes = 0 WHERE id = ?1";

const VERSION_1: &str = "
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL DEFAULT 'queued',
        attempts INTEGER NOT NULL DEFAULT 0,
        created_ms INTEGER NOT NULL,
        started_ms INTEGER,
        drawing_ms INTEGER,
        finished_ms INTEGER,
        job TEXT NOT NULL,
        terms TEXT NOT NULL,
        reason TEXT,
        result TEXT,
        report TEXT,
        image_bytes INTEGER NOT NULL DEFAULT 0,
        notified INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    PRAGMA user_version = 1;
";

#[test]
fn a_journal_of_version_1_goes_on() {
    let mut daemon = Daemon::start();
    let ids = [draw(&daemon, 1), draw(&daemon, 2)];
    stop(&mut daemon);
    let state = daemon.path().join("state");
    let [journal, newer] = ["journal.sqlite3", "newer"].map(|name| state.join(name));
    let image = |id: &str| state.join(format!("results/{id}-0.png"));
    let drawn = ids.each_ref().map(|id| fs::read(image(id)).unwrap());
    fs::rename(&journal, &newer).unwrap();
    let connection = Connection::open(&journal).unwrap();
    connection.execute_batch(VERSION_1).unwrap();
    connection.execute("ATTACH ?1 AS newer", [newer.to_str().unwrap()]).unwrap();
    connection.execute("INSERT INTO jobs SELECT * FROM newer.jobs", []).unwrap();
    assert_eq!(connection.execute(WAITS, [&ids[1]]).unwrap(), 1);
    drop(connection);
    fs::remove_file(image(&ids[1])).unwrap();

    daemon.start_again(&[]);
    let log = daemon.log();
    assert!(!log.contains("ERROR"), "{log}");
    for (id, drawn) in ids.iter().zip(drawn) {
        assert_eq!(daemon.finished_job(id)["state"], "done");
        assert!(daemon.get(&format!("/api/jobs/{id}/image")).body == drawn, "the same image");
    }
    let later = draw(&daemon, 3);
    stop(&mut daemon);
    daemon.start_again(&[]);
    assert_eq!(daemon.get(&format!("/api/jobs/{later}/image")).status, 200);
}

#[test]
fn an_older_copy_in_which_a_job_waits_overwrites_and_deletes_none_of_its_images() {
    let mut daemon = Daemon::start();
    let ids = [draw(&daemon, 1), draw(&daemon, 2)];
    stop(&mut daemon);
    let state = daemon.path().join("state");
    let image = |folder: &str, id: &str| state.join(format!("{folder}/{id}-0.png"));
    // One that will not be drawn again.
    let [first, other] = ids.each_ref().map(|id| fs::read(image("results", id)).unwrap());
    fs::write(image("results", &ids[0]), &other).unwrap();
    let connection = Connection::open(state.join("journal.sqlite3")).unwrap();
    assert_eq!(connection.execute(WAITS, [&ids[0]]).unwrap(), 1);
    drop(connection);

    daemon.start_again(&[]);
    assert_eq!(daemon.finished_job(&ids[0])["state"], "done");
    let log = daemon.log();
    assert!(log.contains("1 images of jobs that have not ended are now in"), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
    let aside = fs::read(image("orphaned", &ids[0])).unwrap();
    assert!(aside == other, "the image of the newer journal");
    assert!(daemon.get(&format!("/api/jobs/{}/image", ids[0])).body == first, "drawn again");
    assert!(daemon.get(&format!("/api/jobs/{}/image", ids[1])).body == other);
    daemon.kill();
    daemon.start_again(&[]);
    assert_eq!(fs::read_dir(state.join("orphaned")).unwrap().count(), 1);
}
