//! Start, reload and end.

use std::{fs, process::Output};

use serde_json::{Value, json};

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
        let errors: Vec<_> = said.lines().filter(|line| line.contains("error: ")).collect();
        assert_eq!(errors, expected);
    }
}

#[test]
fn check_shows_the_line_that_is_wrong_and_speaks_json() {
    let modes = "model_root: models\ndefault_mode: a\nmodes: {a: {modle: x, model: y}}\n";
    let output = run(modes, &["check"]);
    assert_eq!(output.status.code(), Some(78));
    let expected = "\
modes.yaml:3:13: error: modes.a.modle: unknown key; did you mean 'model'?
  |
3 | modes: {a: {modle: x, model: y}}
  |             ^^^^^
modes.yaml: 1 error
";
    assert_eq!(text(&output.stdout), expected);
    let output = run(modes, &["check", "--format", "json"]);
    assert_eq!(output.status.code(), Some(78));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let diagnostic = json!({
        "severity": "error", "file": "modes.yaml", "line": 3, "column": 13,
        "pointer": "/modes/a/modle", "message": "unknown key; did you mean 'model'?",
    });
    assert_eq!(said, json!({"ok": false, "modes": null, "diagnostics": [diagnostic]}));
    let well: Value =
        serde_json::from_slice(&run(MODES, &["check", "--format", "json"]).stdout).unwrap();
    assert_eq!((&well["ok"], &well["modes"]), (&json!(true), &json!(["other", "styled", "tiny"])));
}

#[test]
fn the_schema_is_printed() {
    let output = run(MODES, &["schema"]);
    assert_eq!(text(&output.stdout), include_str!("../../modes.schema.json"));
}

#[test]
fn without_a_file_the_environment_describes_one_mode() {
    let folder = folder(MODES);
    fs::remove_file(folder.path().join("modes.yaml")).unwrap();
    let neither = command(folder.path()).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(neither.status.code(), Some(78));
    assert!(text(&neither.stderr).contains("cp modes.yaml.example modes.yaml"));

    let with = |variables: &[(&str, &str)]| {
        let mut program = command(folder.path());
        program.envs(variables.iter().copied());
        program
    };
    let model = [("MODEL_ROOT", "models"), ("MODEL", "tiny.safetensors")];
    let mut wrong = with(&model);
    let wrong =
        wrong.env("DEFAULT_STEPS", "many").args(["--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(78));
    assert_eq!(
        text(&wrong.stderr).lines().last(),
        Some(
            "environment: error: modes.default.default_steps: expected a whole number, found the text 'many'"
        )
    );

    let mut program = with(&model);
    program.envs([("DEFAULT_SIZE", "64x64"), ("DEFAULT_STEPS", "2"), ("DEFAULT_GUIDANCE", "1.5")]);
    let daemon = Daemon::spawn(program, folder, &[]);
    assert!(daemon.log().contains("cp modes.yaml.example modes.yaml"), "{}", daemon.log());
    let drawn = daemon.post("/generate", &json!({"prompt": "x"}));
    assert_eq!((drawn.status, drawn.header("x-mode")), (200, "default"));
    let job = daemon.finished_job(drawn.header("x-job-id"));
    assert_eq!((&job["request"]["steps"], &job["request"]["size"]), (&json!(2), &json!("64x64")));
    for (path, body) in
        [("/api/modes/switch", json!({"mode": "default"})), ("/api/modes/reload", json!({}))]
    {
        daemon.post(path, &body).problem(409, "conflict", path);
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
    // Nobody else shall read it.
    let modes = format!("watch: off{MODES}");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let names = || daemon.get("/api/modes").json()["modes"].as_object().unwrap().len();
    let with = |line: &str| fs::write(daemon.config_file(), format!("{modes}  {line}\n")).unwrap();

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
    let modes = format!("watch: off{MODES}");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let names = || daemon.get("/api/modes").json()["modes"].as_object().unwrap().len();
    fs::write(daemon.config_file(), format!("{modes}  more: {{model: x}}\n")).unwrap();
    daemon.signal("-HUP");
    wait_for("the fourth mode", || (names() == 4).then_some(()));
    assert_eq!(daemon.get("/api/modes/config").json()["in_force"]["by"], "signal");
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
