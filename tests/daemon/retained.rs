//! What is kept of ended jobs: from whom, for how long by which clock, and how much of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Daemon, MODES, command_of, draw, folder, stop};

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut paths = vec![folder.to_owned()];
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        match path.is_dir() {
            true => paths.extend(below(&path)),
            false => paths.push(path),
        }
    }
    paths
}

#[test]
fn a_clock_that_jumped_between_two_daemons_expires_nothing() {
    const EIGHT_DAYS_MS: u64 = 8 * 86_400_000;
    let mut daemon = Daemon::start();
    let ids = [draw(&daemon, 1), draw(&daemon, 2)];
    // Its time is of the clock that jumped: the journal's last time is no reason to trust it.
    let newest = draw(&daemon, 4);
    stop(&mut daemon);
    // As if the clock had been set forward by eight days; jobs are kept for seven. Ids have a time.
    let state = daemon.path().join("state");
    let journal = rusqlite::Connection::open(state.join("journal.sqlite3")).unwrap();
    let ids = ids.map(|id| {
        let made_ms = u64::from_str_radix(&id[..13].replace('-', ""), 16).unwrap();
        let hex = format!("{:012x}", made_ms - EIGHT_DAYS_MS);
        let older = format!("{}-{}{}", &hex[..8], &hex[8..], &id[13..]);
        let file = |id: &str| state.join(format!("results/{id}-0.png"));
        fs::rename(file(&id), file(&older)).unwrap();
        let sql = "UPDATE jobs SET id = ?1, created_ms = created_ms - ?3, \
                   started_ms = started_ms - ?3, drawing_ms = drawing_ms - ?3, \
                   finished_ms = finished_ms - ?3 WHERE id = ?2";
        let changed = journal.execute(sql, (&older, &id, EIGHT_DAYS_MS as i64)).unwrap();
        assert_eq!(changed, 1);
        older
    });
    drop(journal);
    daemon.start_again(&[]);
    draw(&daemon, 3);
    for id in ids.iter().chain([&newest]) {
        assert_eq!(daemon.get(&format!("/api/jobs/{id}/image")).status, 200);
    }
}

#[test]
fn records_are_bounded_by_their_bytes() {
    let modes = format!(
        "jobs: {{retention: {{max_gb: 0}}}}\ncustom_jobs: {{echo: {{command: [cat]}}}}\n{MODES}"
    );
    let mut daemon = Daemon::start_in(folder(&modes), &[]);
    let text = "x".repeat(1 << 19);
    let echo = json!({"name": "echo", "args": {"text": text}});
    let ids: Vec<String> = (0..48)
        .map(|_| daemon.post("/api/jobs/custom", &echo).header("x-job-id").to_owned())
        .collect();
    let status = |daemon: &Daemon, id: &str| daemon.get(&format!("/api/jobs/{id}")).status;
    assert_eq!(daemon.finished_job(&ids[47])["state"], "done");
    assert_eq!([0, 47].map(|at| status(&daemon, &ids[at])), [404, 200]);
    let known = ids.iter().filter(|id| status(&daemon, id) == 200).count();
    assert!((2..=32).contains(&known), "{known} of half a MiB, in 16 MiB");
    stop(&mut daemon);
    daemon.start_again(&[]);
    assert_eq!(ids.iter().filter(|id| status(&daemon, id) == 200).count(), known);
}

#[test]
fn nobody_else_can_read_the_state_folder_whatever_the_umask() {
    let start = |folder: TempDir| {
        let mut program = command_of(Path::new("sh"), folder.path());
        let binary = env!("CARGO_BIN_EXE_diffused");
        program.args(["-c", "umask 000; exec \"$0\" \"$@\"", binary]);
        Daemon::spawn(program, folder, &[])
    };
    let folder = folder(MODES);
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    // Of an earlier version.
    for name in ["journal.sqlite3", "lock"] {
        fs::write(state.join(name), "").unwrap();
        fs::set_permissions(state.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::create_dir(state.join("results")).unwrap();
    let lost = state.join("results/0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11-0.png");
    fs::write(lost, "moved aside").unwrap();
    let daemon = start(folder);
    draw(&daemon, 1);
    let names = |path: &PathBuf| path.strip_prefix(&state).unwrap().display().to_string();
    let paths = below(&state);
    let there: Vec<String> = paths.iter().map(names).collect();
    for name in
        ["journal.sqlite3", "journal.sqlite3-wal", "journal.sqlite3-shm", "lock", "orphaned"]
    {
        assert!(there.contains(&name.to_owned()), "{there:?}");
    }
    for path in paths.iter().filter(|path| !path.parent().unwrap().ends_with("orphaned")) {
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, expected, "{}: {mode:o}", names(path));
    }
    let log = daemon.log();
    assert!(log.contains("'state' had mode 755: it is now 700"), "{log}");
}
