//! Whatever becomes of the journal, no image is lost: each is served on, or is moved aside and comes
//! back with `diffused recover`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Daemon, MODES, command, folder, wait_for};

/// Enough for a journal of many pages.
const JOBS: usize = 40;
/// How many of them an older copy of the journal knows.
const OLDER: usize = 10;
const PAGE: usize = 4096;

fn submit(daemon: &Daemon, seed: usize) -> String {
    let body = json!({
        "prompt": format!("a fox, {}", "in the snow ".repeat(60)),
        "negative_prompt": "blurry",
        "seed": seed,
        "n": if seed % 20 == 3 { 2 } else { 1 },
        "num_inference_steps": 1,
        "size": if seed.is_multiple_of(2) { "64x64" } else { "72x64" },
        "mode": "tiny",
    });
    let answer = daemon.post("/api/jobs", &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn draw(daemon: &Daemon, seeds: impl Iterator<Item = usize>) -> Vec<String> {
    let ids: Vec<String> = seeds.map(|seed| submit(daemon, seed)).collect();
    for id in &ids {
        assert_eq!(daemon.finished_job(id)["state"], "done");
    }
    ids
}

fn stop(daemon: &mut Daemon) {
    daemon.signal("-TERM");
    assert!(daemon.ended().success());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => {
                fs::copy(&path, to).unwrap();
            }
        }
    }
}

/// All PNG files below a folder.
fn images_below(folder: &Path) -> Vec<PathBuf> {
    let mut images = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            images.extend(images_below(&path));
        } else if path.extension().is_some_and(|it| it == "png") {
            images.push(path);
        }
    }
    images
}

/// State folders with images in them, and what they hold.
struct Drawn {
    _folder: TempDir,
    /// The daemon was stopped: all is in the one file.
    stopped: PathBuf,
    /// The daemon was killed: most is in the log beside it.
    killed: PathBuf,
    /// The journal of [`OLDER`] jobs.
    older: PathBuf,
    /// The seed of each job.
    ids: BTreeMap<String, usize>,
    images: BTreeMap<String, Vec<u8>>,
}

impl Drawn {
    fn new() -> Self {
        let mut daemon = Daemon::start();
        let mut ids = draw(&daemon, 0..OLDER);
        stop(&mut daemon);
        let copies = tempfile::tempdir().unwrap();
        let to = |name: &str| copies.path().join(name);
        let state = daemon.path().join("state");
        fs::copy(state.join("journal.sqlite3"), to("older")).unwrap();
        daemon.start_again(&[]);
        ids.extend(draw(&daemon, OLDER..JOBS));
        daemon.kill();
        copy(&state, &to("killed"));
        assert!(to("killed/journal.sqlite3-wal").exists());
        daemon.start_again(&[]);
        stop(&mut daemon);
        copy(&state, &to("stopped"));
        assert!(!to("stopped/journal.sqlite3-wal").exists());
        let images = images_below(&state.join("results"));
        let images = images.into_iter().map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        });
        let images: BTreeMap<_, _> = images.collect();
        assert_eq!(images.len(), JOBS + JOBS / 20);
        let ids = ids.into_iter().zip(0..).collect();
        let [stopped, killed, older] = ["stopped", "killed", "older"].map(to);
        Self { _folder: copies, stopped, killed, older, ids, images }
    }

    /// Each image is somewhere below that folder, byte for byte.
    #[track_caller]
    fn assert_all_are_below(&self, state: &Path, what: &str) {
        let there = images_below(state);
        for (name, bytes) in &self.images {
            let mut same = there.iter().filter(|path| path.ends_with(name));
            let is_there = same.any(|path| fs::read(path).unwrap() == *bytes);
            assert!(is_there, "{what}: {name} is lost");
        }
    }

    #[track_caller]
    fn assert_all_are_served(&self, daemon: &Daemon, what: &str) {
        let listed = daemon.get("/api/jobs?limit=200").json();
        let listed: Vec<&str> = listed["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["id"].as_str().unwrap())
            .collect();
        for (id, seed) in &self.ids {
            assert!(listed.contains(&id.as_str()), "{what}: {id} is not listed");
            let job = daemon.get(&format!("/api/jobs/{id}")).json();
            assert_eq!(job["state"], "done", "{what}: {job}");
            let of = |field: &str| &job["request"][field];
            assert_eq!((of("seed"), of("steps")), (&json!(seed), &json!(1)), "{what}: {job}");
            assert_eq!(*of("negative_prompt"), "blurry", "{what}: {job}");
            assert!(of("prompt").as_str().unwrap().starts_with("a fox, in the snow"), "{what}");
            for index in 0..job["images"].as_u64().unwrap() {
                let answer = daemon.get(&format!("/api/jobs/{id}/image/{index}"));
                let name = format!("{id}-{index}.png");
                assert!(answer.body == self.images[&name], "{what}: {name}: {}", answer.text());
            }
        }
        let images: u64 = self
            .ids
            .keys()
            .map(|id| daemon.get(&format!("/api/jobs/{id}")).json()["images"].as_u64().unwrap())
            .sum();
        assert_eq!(images, self.images.len() as u64, "{what}");
    }
}

/// The numbers of SplitMix64 (Steele, Lea & Flood, 2014), as bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 20_261_128_u64;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Overwrites parts of a file.
fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn execute(journal: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(journal).unwrap();
    connection.execute_batch(sql).unwrap();
}

type Damage = fn(&Drawn, &Path);

/// What becomes of a journal, whether its daemon was killed, and whether some images are unknown to
/// the journal afterwards; `None` where that is chance.
const DAMAGES: [(&str, bool, Option<bool>, Damage); 18] = [
    ("removed", false, Some(true), |_, journal| fs::remove_file(journal).unwrap()),
    ("removed, its log left", true, Some(true), |_, journal| fs::remove_file(journal).unwrap()),
    ("emptied", false, Some(true), |_, journal| fs::write(journal, "").unwrap()),
    ("emptied, its log left", true, Some(true), |_, journal| fs::write(journal, "").unwrap()),
    ("replaced by text", false, Some(true), |_, journal| {
        fs::write(journal, "no database\n".repeat(1000)).unwrap();
    }),
    ("its header garbled", false, Some(true), |_, journal| {
        change(journal, |bytes| bytes[..100].copy_from_slice(&noise(100)));
    }),
    ("its version garbled", false, Some(false), |_, journal| {
        change(journal, |bytes| bytes[60..64].copy_from_slice(&[0x7f; 4]));
    }),
    ("cut within a page", false, Some(true), |_, journal| {
        change(journal, |bytes| bytes.truncate(PAGE + 1000));
    }),
    ("cut in half", false, Some(true), |_, journal| {
        change(journal, |bytes| bytes.truncate(bytes.len() / 2 / PAGE * PAGE));
    }),
    ("every third page zeroed", false, Some(true), |_, journal| {
        change(journal, |bytes| {
            bytes.chunks_mut(PAGE).skip(4).step_by(3).for_each(|it| it.fill(0))
        });
    }),
    ("200 bytes of noise in each page", false, None, |_, journal| {
        change(journal, |bytes| {
            for (page, noise) in bytes.chunks_mut(PAGE).zip(noise(1 << 20).chunks(200)).skip(1) {
                page[1000..1200].copy_from_slice(noise);
            }
        });
    }),
    ("its last half noise", false, Some(true), |_, journal| {
        change(journal, |bytes| {
            let (middle, length) = (bytes.len() / 2, bytes.len());
            bytes[middle..].copy_from_slice(&noise(length - middle));
        });
    }),
    ("its log removed", true, Some(true), |_, journal| {
        fs::remove_file(journal.with_extension("sqlite3-wal")).unwrap();
    }),
    ("its log noise", true, Some(true), |_, journal| {
        change(&journal.with_extension("sqlite3-wal"), |bytes| *bytes = noise(bytes.len()));
    }),
    ("its shared memory noise", true, Some(false), |_, journal| {
        change(&journal.with_extension("sqlite3-shm"), |bytes| *bytes = noise(bytes.len()));
    }),
    ("an older copy", false, Some(true), |drawn, journal| {
        fs::copy(&drawn.older, journal).unwrap();
    }),
    ("three rows garbled", false, Some(false), |_, journal| {
        execute(
            journal,
            "UPDATE jobs SET job = '{\"type\": \"fut', terms = '' WHERE seq IN (3, 4, 9)",
        );
    }),
    ("another program's database", false, Some(true), |_, journal| {
        fs::remove_file(journal).unwrap();
        execute(journal, "CREATE TABLE jobs (name TEXT)");
    }),
];

fn recover(folder: &Path) -> Output {
    command(folder).arg("recover").output().unwrap()
}

fn recovered(folder: &Path) -> String {
    let output = recover(folder);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn no_damage_of_the_journal_costs_an_image() {
    let drawn = Drawn::new();
    for (what, is_killed, loses, damage) in DAMAGES {
        let folder = folder(MODES);
        let state = folder.path().join("state");
        copy(if is_killed { &drawn.killed } else { &drawn.stopped }, &state);
        damage(&drawn, &state.join("journal.sqlite3"));
        let mut daemon = Daemon::start_in(folder, &[]);
        let [later]: [String; 1] = draw(&daemon, 99..100).try_into().unwrap();
        drawn.assert_all_are_below(&state, what);
        let has_lost = state.join("orphaned").exists();
        let log = daemon.log();
        assert_eq!(has_lost, loses.unwrap_or(has_lost), "{what}: {log}");
        for text in ["state/orphaned'", "'diffused recover --state-dir state'"] {
            assert_eq!(log.contains(text), has_lost, "{what}: {log}");
        }
        stop(&mut daemon);

        let said = recovered(daemon.path());
        drawn.assert_all_are_below(&state, what);
        assert!(!has_lost || said.starts_with("recovered "), "{what}: {said}");
        assert!(recovered(daemon.path()).starts_with("nothing to recover"), "{what}: again");
        daemon.start_again(&[]);
        drawn.assert_all_are_served(&daemon, what);
        assert_eq!(daemon.get(&format!("/api/jobs/{later}/image")).status, 200, "{what}");
    }
}

#[test]
fn a_folder_in_the_journals_place_is_named_and_nothing_is_touched() {
    let mut daemon = Daemon::start();
    let [id]: [String; 1] = draw(&daemon, 0..1).try_into().unwrap();
    stop(&mut daemon);
    let state = daemon.path().join("state");
    let [journal, away] = ["journal.sqlite3", "away"].map(|name| state.join(name));
    fs::rename(&journal, &away).unwrap();
    fs::create_dir(&journal).unwrap();
    let output = command(daemon.path()).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{why}");
    assert!(why.contains("journal.sqlite3' cannot be used: it is a folder"), "{why}");
    fs::remove_dir(&journal).unwrap();
    fs::rename(&away, &journal).unwrap();
    daemon.start_again(&[]);
    assert_eq!(daemon.get(&format!("/api/jobs/{id}/image")).status, 200);
}

#[test]
fn recovering_waits_for_nobody_and_says_what_it_leaves() {
    let mut daemon = Daemon::start();
    let why = recover(daemon.path());
    assert_eq!(why.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&why.stderr).contains("uses the state folder"), "{why:?}");
    let [id]: [String; 1] = draw(&daemon, 0..1).try_into().unwrap();
    stop(&mut daemon);
    let state = daemon.path().join("state");
    fs::create_dir(state.join("orphaned")).unwrap();
    let copied = state.join(format!("orphaned/{id}-1.png"));
    fs::copy(state.join(format!("results/{id}-0.png")), &copied).unwrap();
    let unknown = state.join("orphaned/0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11-0.png");
    fs::write(&unknown, "no PNG").unwrap();
    let said = recovered(daemon.path());
    for part in [
        "nothing was recovered",
        "2 files left in place:",
        "-1.png': its job is in the journal, done and without such an image",
        "-0.png': it is not a PNG file",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(copied.exists() && unknown.exists());
    let output = command(daemon.path()).args(["recover", "--state-dir", "none"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("there is no folder 'none'"));
    assert!(!daemon.path().join("none").exists());
}

#[test]
fn a_journal_that_breaks_in_service_refuses_jobs_and_costs_no_image() {
    let mut daemon = Daemon::start();
    let ids = draw(&daemon, 0..3);
    let long =
        json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512", "mode": "tiny"});
    let running = daemon.post("/api/jobs", &long).json()["id"].as_str().unwrap().to_owned();
    wait_for("the drawing", || {
        (daemon.get(&format!("/api/jobs/{running}")).json()["state"] == "running").then_some(())
    });
    let journal = daemon.path().join("state/journal.sqlite3");
    let damage = "PRAGMA writable_schema = ON; \
                  UPDATE sqlite_schema SET sql = 'noise' WHERE name = 'jobs'; \
                  PRAGMA schema_version = 1000";
    execute(&journal, damage);
    let delete = daemon.send("DELETE", &format!("/api/jobs/{running}"), &[], &[]);
    assert!([200, 202].contains(&delete.status), "{}", delete.text());
    daemon.wait_for_status("the journal to fail", |status| status["storage_fails"] == true);
    assert_eq!(daemon.get("/health/ready").status, 503);
    daemon.post("/api/jobs", &long).problem(503, "not-written", "/api/jobs");
    let log = daemon.log();
    assert!(log.contains("the journal cannot be written: malformed database schema"), "{log}");
    let all_are_served = |daemon: &Daemon| {
        for id in &ids {
            let answer = daemon.get(&format!("/api/jobs/{id}/image"));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    all_are_served(&daemon);
    daemon.kill();
    daemon.start_again(&[]);
    draw(&daemon, 5..6);
    stop(&mut daemon);
    assert!(recovered(daemon.path()).starts_with("recovered 3 images of 3 jobs"));
    daemon.start_again(&[]);
    all_are_served(&daemon);
}
