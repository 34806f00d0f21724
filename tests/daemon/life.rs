//! Start, reload and end.

use std::{fs, process::Output};

use serde_json::json;

use crate::support::{Daemon, MODES, command, folder, read_to_end, wait_for};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(modes: &str, arguments: &[&str]) -> Output {
    let folder = folder(modes);
    command(folder.path()).args(arguments).output().unwrap()
}

#[test]
fn a_wrong_configuration_ends_the_start_with_all_its_errors() {
    let modes =
        "model_root: models\ndefault_mode: tinny\nmodes:\n  tiny: {modle: x, clip_skip: 99}\n";
    for arguments in [&["--listen", "127.0.0.1:0"][..], &["serve"], &["check"]] {
        let output = run(modes, arguments);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let said = text(&output.stdout) + &text(&output.stderr);
        let expected = [
            "modes.yaml:2:15: error: default_mode: there is no mode 'tinny'; did you mean 'tiny'?",
            "modes.yaml:4:3: error: modes.tiny: required key 'model' is missing",
            "modes.yaml:4:10: error: modes.tiny.modle: unknown key; did you mean 'model'?",
            "modes.yaml:4:31: error: modes.tiny.clip_skip: 99 is not between 0 and 12",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn check_says_that_all_is_well() {
    let output = run(MODES, &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    assert!(text(&output.stdout).ends_with("modes.yaml: ok, modes: other, styled, tiny\n"));
    let missing = run(MODES, &["check", "nowhere.yaml"]);
    assert_eq!(missing.status.code(), Some(78));
    assert!(text(&missing.stdout).contains("cp modes.yaml.example nowhere.yaml"));
}

#[test]
fn wrong_arguments_end_with_2() {
    for arguments in [&["--listne", "x"][..], &["--queue-max", "0"], &["--port", "70000"]] {
        assert_eq!(run(MODES, arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(MODES, &["--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("cannot listen on {address}")));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn a_state_folder_belongs_to_one_daemon() {
    let daemon = Daemon::start();
    let state = daemon.path().join("state");
    let arguments = ["--listen", "127.0.0.1:0", "--state-dir", state.to_str().unwrap()];
    let second = run(MODES, &arguments);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another diffused (process "));
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn a_reload_changes_all_or_nothing() {
    let daemon = Daemon::start();
    let names = || daemon.get("/api/modes").json()["modes"].as_object().unwrap().len();
    let with = |line: &str| fs::write(daemon.config_file(), format!("{MODES}  {line}\n")).unwrap();

    with("more: {model: tiny.safetensors}");
    let report = daemon.post("/api/modes/reload", &json!({})).json();
    assert_eq!(report["added"], json!(["more"]), "{report}");
    assert_eq!((&report["removed"], &report["changed"]), (&json!([]), &json!([])));
    assert_eq!(names(), 4);

    with("more: {modl: tiny.safetensors}");
    let answer = daemon.post("/api/modes/reload", &json!({}));
    let problem = answer.problem(422, "invalid-configuration", "/api/modes/reload");
    assert_eq!(problem["errors"][1]["pointer"], "/modes/more/modl", "{problem}");
    let detail = problem["errors"][1]["detail"].as_str().unwrap();
    assert!(detail.starts_with("line 8, column 10: unknown key"), "{detail}");
    assert_eq!(names(), 4);
}

#[test]
fn sighup_reloads() {
    let daemon = Daemon::start();
    let names = || daemon.get("/api/modes").json()["modes"].as_object().unwrap().len();
    fs::write(daemon.config_file(), format!("{MODES}  more: {{model: x}}\n")).unwrap();
    daemon.signal("-HUP");
    wait_for("the fourth mode", || (names() == 4).then_some(()));
    fs::write(daemon.config_file(), "modes: [\n").unwrap();
    daemon.signal("-HUP");
    wait_for("the error in the log", || {
        daemon.log().contains("modes.yaml:1:8: error").then_some(())
    });
    assert_eq!(names(), 4);
}

#[test]
fn a_stop_finishes_what_runs_and_refuses_the_rest() {
    for signal in ["-TERM", "-INT"] {
        let mut daemon = Daemon::start();
        let request = json!({"prompt": "x", "num_inference_steps": 300, "size": "128x128"});
        // What runs then is a generation and not the load that the daemon starts with.
        daemon.wait_for_status("the default mode", |status| status["current_mode"].is_string());
        // One of them runs and the other waits; which one is for the network to say.
        let streams = [(); 2].map(|()| daemon.begin_post("/generate", &request));
        daemon.wait_for_status("a job to wait", |status| status["queue_size"] == 1);
        daemon.signal(signal);
        let new = daemon.post("/generate", &json!({"prompt": "x"}));
        new.problem(503, "shutting-down", "/generate");
        assert!(new.header("retry-after").parse::<u64>().is_ok());
        let mut statuses = streams.map(|stream| read_to_end(stream)[..12].to_owned());
        statuses.sort();
        assert_eq!(statuses, ["HTTP/1.1 200", "HTTP/1.1 503"]);
        assert_eq!(daemon.ended().code(), Some(0));
    }
}

#[test]
fn a_second_stop_ends_at_once() {
    let mut daemon = Daemon::start();
    let request = json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512"});
    // With the load that the daemon starts with still running, one job could wait and none run.
    daemon.wait_for_status("the default mode", |status| status["current_mode"].is_string());
    let streams = [(); 2].map(|()| daemon.begin_post("/generate", &request));
    daemon.wait_for_status("a job to wait", |status| status["queue_size"] == 1);
    daemon.signal("-TERM");
    wait_for("the first stop", || daemon.log().contains("a second signal").then_some(()));
    daemon.signal("-TERM");
    assert_eq!(daemon.ended().code(), Some(1));
    for stream in streams {
        assert!(!read_to_end(stream).contains("200 OK"));
    }
}
