//! A record of the log is one line, whoever has a say in it.

use serde_json::json;

use crate::support::{Daemon, MODES, folder};

const FORGED: &str = "2026-11-25T00:00:00.000000Z ERROR diffused: FAKE";

#[test]
fn names_with_control_characters_are_refused() {
    let daemon = Daemon::start();
    let hostile = format!("zz\n{FORGED}");
    let mode = |key: &str, value: serde_json::Value| {
        let mut mode = json!({"model": "tiny.safetensors"});
        mode[key] = value;
        mode.to_string()
    };
    for mode in [
        mode("model", json!(hostile)),
        mode("model", json!("a\u{1b}[31m")),
        mode("vae", json!(hostile)),
        mode("vae", json!("a\u{85}")),
        mode("loras", json!([hostile])),
        mode("loras", json!([{"path": "a", "adapter_name": hostile}])),
    ] {
        let json = ("content-type", "application/json");
        let answer = daemon.send("PUT", "/api/modes/inj", &[json], mode.as_bytes());
        let problem = answer.problem(422, "invalid-request", "/api/modes/inj");
        let detail = problem["errors"][0]["detail"].as_str().unwrap();
        assert_eq!(detail, "contains a control character, which no name may", "{mode}");
    }
    let request = json!({"prompt": "x", "loras": [{"path": hostile}]});
    daemon.post("/generate", &request).problem(422, "invalid-request", "/generate");
    let request = json!({"name": "verify_checkpoint", "args": {"model": hostile}});
    daemon.post("/api/jobs/custom", &request).problem(422, "invalid-request", "/api/jobs/custom");
}

#[test]
fn no_text_begins_a_line_of_the_log_or_reaches_a_terminal() {
    let line = format!("printf 'x\\n{FORGED}\\n\\033[31mred\\r' >&2");
    let command = json!(["/bin/sh", "-c", line]);
    let modes = format!("{MODES}custom_jobs: {{forge: {{command: {command}}}}}\n");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let answer = daemon.post("/api/jobs/custom", &json!({"name": "forge"}));
    daemon.finished_job(answer.header("x-job-id"));
    let log = daemon.log();
    assert!(log.contains("FAKE"), "{log}");
    assert!(!log.lines().any(|line| line.starts_with(FORGED)), "{log}");
    assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "{log:?}");
}
