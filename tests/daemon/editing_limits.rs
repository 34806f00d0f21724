//! What the API writes into modes.yaml is what the program reads.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, folder};

fn put(daemon: &Daemon, name: &str, metadata: Value) -> Answer {
    let mode = json!({"model": "tiny.safetensors", "metadata": metadata}).to_string();
    let json = ("content-type", "application/json");
    daemon.send("PUT", &format!("/api/modes/{name}"), &[json], mode.as_bytes())
}

fn delete(daemon: &Daemon, name: &str) -> u16 {
    daemon.send("DELETE", &format!("/api/modes/{name}"), &[], b"").status
}

/// That modes can be taken out and put in, and that the next daemon starts.
#[track_caller]
fn assert_usable(daemon: &mut Daemon) {
    assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 200);
    assert_eq!(delete(daemon, "other"), 204);
    assert_eq!(put(daemon, "other", json!({})).status, 201);
    daemon.kill();
    daemon.start_again(&[]);
    assert_eq!(daemon.get("/api/modes/other").status, 200);
}

#[test]
fn a_mode_has_a_largest_size() {
    let mut daemon = Daemon::start();
    let before = fs::read_to_string(daemon.config_file()).unwrap();
    let refused = put(&daemon, "large", json!({"x": "y".repeat(65 << 10)}));
    let problem = refused.problem(413, "body-too-large", "/api/modes/large");
    assert_eq!(problem["detail"], "the mode would take more than 64 KiB of modes.yaml");
    assert_eq!(fs::read_to_string(daemon.config_file()).unwrap(), before);
    assert_eq!(put(&daemon, "large", json!({"x": "y".repeat(60 << 10)})).status, 201);
    assert_usable(&mut daemon);
}

#[test]
fn the_file_never_becomes_larger_than_one_that_is_read() {
    let comment = "#".repeat((8 << 20) - MODES.len() - 10_000);
    let mut daemon = Daemon::start_in(folder(&format!("{MODES}{comment}\n")), &[]);
    let mut written = 0;
    let refused = loop {
        let answer = put(&daemon, &format!("m{written}"), json!({"x": "y".repeat(2000)}));
        if answer.status != 201 {
            break answer;
        }
        written += 1;
    };
    let problem = refused.problem(413, "body-too-large", &format!("/api/modes/m{written}"));
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("modes.yaml would be too large: it is larger than the limit of 8 MiB"),
        "{detail}"
    );
    assert!(written > 2, "{written}");
    assert_eq!(delete(&daemon, "m0"), 204);
    assert_eq!(put(&daemon, "m0", json!({"x": "y".repeat(2000)})).status, 201);
    assert_usable(&mut daemon);
}

#[test]
fn nor_does_it_hold_more_than_one_that_is_read() {
    let mut daemon = Daemon::start();
    let numbers = vec![1; 9_000];
    let mut written = 0;
    let refused = loop {
        let answer = put(&daemon, &format!("m{written}"), json!({"x": numbers}));
        if answer.status != 201 {
            break answer;
        }
        written += 1;
    };
    let problem = refused.problem(413, "body-too-large", &format!("/api/modes/m{written}"));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("modes.yaml would be too large: it exceeds"), "{detail}");
    assert!(written > 1, "{written}");
    assert_usable(&mut daemon);
}

/// In a folder that others may write to, somebody has put links where a temporary file would be.
#[test]
fn a_link_in_the_way_is_not_written_through() {
    let daemon = Daemon::start();
    fs::set_permissions(daemon.config_file(), fs::Permissions::from_mode(0o640)).unwrap();
    let victim = daemon.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let trap = daemon.path().join(format!(".modes.yaml.{}.new", daemon.id()));
    symlink(&victim, &trap).unwrap();
    assert_eq!(put(&daemon, "new", json!({})).status, 201);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(!daemon.config_file().is_symlink());
    let mode = fs::metadata(daemon.config_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let left = fs::read_dir(daemon.path()).unwrap().flatten();
    let left: Vec<_> =
        left.map(|it| it.file_name()).filter(|it| *it != *trap.file_name().unwrap()).collect();
    assert!(!left.iter().any(|it| it.to_string_lossy().ends_with(".new")), "{left:?}");
}
