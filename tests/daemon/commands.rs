//! The commands that ask a daemon that runs.

use std::{net::TcpListener, process::Output};

use serde_json::Value;

use crate::support::{Daemon, MODES, command, folder, wait_for};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ask(daemon: &Daemon, arguments: &[&str]) -> Output {
    command(daemon.path()).env("DIFFUSED_URL", &daemon.url).args(arguments).output().unwrap()
}

#[track_caller]
fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let said = text(&output.stdout);
    assert!(!said.contains('\x1b'), "{said}");
    said
}

#[track_caller]
fn refused(output: &Output) -> String {
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
    text(&output.stderr)
}

fn state_of(daemon: &Daemon, mode: &str) -> Value {
    let models: Value = serde_json::from_str(&said(&ask(daemon, &["models", "--json"]))).unwrap();
    let mut modes = models["modes"].as_array().unwrap().iter();
    modes.find(|it| it["name"] == mode).unwrap()["state"].clone()
}

#[test]
fn a_mode_is_switched_to_and_shown() {
    let daemon = Daemon::start();
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    let switched = said(&ask(&daemon, &["switch", "other", "--timeout", "60"]));
    assert!(switched.starts_with("mode 'other' is the current one ("), "{switched}");
    assert_eq!(state_of(&daemon, "other"), "active");
    let again = said(&ask(&daemon, &["switch", "other"]));
    assert_eq!(again, "mode 'other' is loaded already\n");
    let queued = said(&ask(&daemon, &["switch", "tiny", "--no-wait"]));
    assert!(queued.starts_with("mode 'tiny' is loaded when the jobs before it are done (job "));
    daemon.wait_for_status("the switch", |status| status["current_mode"] == "tiny");

    let status = said(&ask(&daemon, &["status"]));
    for part in ["device ", "mode      tiny\n", "queue     0 running, 0 waiting\n", "active", "ago"]
    {
        assert!(status.contains(part), "{part}\n{status}");
    }
    assert!(status.lines().all(|line| line.chars().count() <= 80), "{status}");
    let json: Value = serde_json::from_str(&said(&ask(&daemon, &["status", "--json"]))).unwrap();
    assert_eq!(json["current_mode"], "tiny");
    let models = said(&ask(&daemon, &["models"]));
    assert_eq!(models.lines().count(), 4, "{models}");
    assert!(models.contains("a, b:0.5"), "{models}");
}

#[test]
fn what_a_daemon_refuses_is_said() {
    let folder = folder(MODES);
    let mut program = command(folder.path());
    program.env("DIFFUSED_ADMIN_KEY", "secret");
    let daemon = Daemon::spawn(program, folder, &[]);
    let unknown = |key: &str| {
        let mut program = command(daemon.path());
        program.env("DIFFUSED_ADMIN_KEY", key).args(["switch", "tinny", "--url", &daemon.url]);
        refused(&program.output().unwrap())
    };
    let expected = "there is no mode 'tinny'; did you mean 'tiny'? (GET /api/modes lists all)\n";
    assert_eq!(unknown("secret"), expected);
    assert!(unknown("wrong").starts_with("this needs the admin key"));
    assert!(unknown("").contains("DIFFUSED_ADMIN_KEY is empty"));
    // A mode whose LoRAs are not there.
    let mut program = command(daemon.path());
    program.env("DIFFUSED_ADMIN_KEY", "secret").args(["switch", "styled", "--url", &daemon.url]);
    let why = refused(&program.output().unwrap());
    assert!(
        why.contains("a.safetensors") && !why.contains(daemon.path().to_str().unwrap()),
        "{why}"
    );
}

#[test]
fn where_no_daemon_is_one_sentence_says_so() {
    let folder = folder(MODES);
    // Free a moment ago, and nobody else's business since.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    for arguments in [&["switch", "tiny"][..], &["status"], &["models"]] {
        let output = command(folder.path()).args(arguments).args(["--url", &url]).output().unwrap();
        let why = refused(&output);
        assert!(why.starts_with(&format!("no daemon answers at {url} (")), "{why}");
        assert_eq!(why.lines().count(), 1, "{why}");
    }
    let port = address.port().to_string();
    let output = command(folder.path()).env("PORT", &port).arg("status").output().unwrap();
    assert!(
        refused(&output).starts_with(&format!("no daemon answers at http://127.0.0.1:{port} "))
    );
}

#[test]
fn modes_are_loaded_at_the_start() {
    let daemon = Daemon::start_with(&["--preload", "other,tiny"]);
    wait_for("the other mode", || (state_of(&daemon, "other") == "loaded").then_some(()));
    assert_eq!(state_of(&daemon, "tiny"), "active");

    let folder = folder(MODES);
    let mut program = command(folder.path());
    let output =
        program.env("PRELOAD", "otter").args(["--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let why = text(&output.stderr);
    assert!(why.contains("--preload: there is no mode 'otter'; did you mean 'other'?"), "{why}");
}
