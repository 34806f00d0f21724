//! Custom jobs that the configuration names a command for.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{Daemon, MODES, folder, wait_for};

/// Modes, and jobs that each run a line of shell.
fn start(jobs: &[(&str, &str)], arguments: &[&str]) -> Daemon {
    Daemon::start_in(folder(&modes(jobs)), arguments)
}

fn modes(jobs: &[(&str, &str)]) -> String {
    let mut text = format!("{MODES}custom_jobs:\n");
    for (name, line) in jobs {
        let command = json!(["/bin/sh", "-c", line]);
        text += &format!("  {name}: {{command: {command}, timeout: 60s}}\n");
    }
    text
}

fn submit(daemon: &Daemon, name: &str, args: Value) -> String {
    let answer = daemon.post("/api/jobs/custom", &json!({"name": name, "args": args}));
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("x-job-id").to_owned()
}

fn run(daemon: &Daemon, name: &str, args: Value) -> Value {
    daemon.finished_job(&submit(daemon, name, args))
}

/// Whether a process of that number runs (and is not just waiting to be reaped).
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// The numbers that a command has written there, of itself and of what it has started.
fn pids(file: &Path) -> Vec<String> {
    wait_for("the command to begin", || {
        let text = fs::read_to_string(file).ok().filter(|text| text.ends_with('\n'))?;
        Some(text.split_whitespace().map(str::to_owned).collect())
    })
}

#[test]
fn what_a_command_says_is_the_result() {
    let daemon = start(
        &[
            ("json", r#"read -r args; echo "{\"args\": $args}""#),
            ("text", "echo two; echo lines; echo aside >&2"),
            ("deaf", "exec 0<&-; echo 1"),
            ("environment", "/usr/bin/env | /usr/bin/cut -d= -f1 | /usr/bin/sort"),
            ("fails", "echo half; echo the reason >&2; exit 3"),
            ("dies", "kill -9 $$"),
            ("floods", "exec /usr/bin/yes"),
            ("whole", "/usr/bin/head -c 1048576 /dev/zero | /usr/bin/tr '\\0' x"),
        ],
        &[],
    );
    for (name, args, result) in [
        ("json", json!({"a": [1, "ü"]}), json!({"args": {"a": [1, "ü"]}})),
        ("json", Value::Null, json!({"args": null})),
        ("text", Value::Null, json!("two\nlines\n")),
        // Its arguments are more than a pipe holds.
        ("deaf", json!("x".repeat(500_000)), json!(1)),
        ("whole", Value::Null, json!("x".repeat(1 << 20))),
    ] {
        let job = run(&daemon, name, args);
        assert_eq!((&job["state"], &job["result"]), (&json!("done"), &result), "{name}");
    }
    let job = run(&daemon, "environment", Value::Null);
    let names: Vec<&str> = job["result"].as_str().unwrap().lines().collect();
    let shells_own = ["PWD", "SHLVL", "_", "OLDPWD"];
    let allowed = ["DIFFUSED_JOB_ID", "HOME", "LANG", "PATH", "TMPDIR"];
    assert!(names.contains(&"DIFFUSED_JOB_ID") && names.contains(&"PATH"), "{names:?}");
    let others: Vec<_> =
        names.iter().filter(|it| !shells_own.contains(it) && !allowed.contains(it)).collect();
    assert!(others.is_empty(), "{others:?}");

    for (name, reason) in [
        ("fails", "the command ended with exit status: 3: the reason"),
        ("dies", "the command ended with signal: 9 (SIGKILL)"),
        ("floods", "the command wrote more than 1 MiB and was ended"),
    ] {
        let job = run(&daemon, name, Value::Null);
        assert_eq!((&job["state"], &job["reason"]), (&json!("failed"), &json!(reason)), "{name}");
    }
    assert!(daemon.log().contains("the command says: aside"), "{}", daemon.log());
    let image = daemon.post("/generate", &json!({"prompt": "x"}));
    assert_eq!(image.status, 200, "{}", image.text());
}

#[test]
fn a_command_that_is_cancelled_ends_with_all_that_it_has_started() {
    let line = "trap 'echo asked > asked; exit' TERM; sleep 1000 & echo $$ $! > pids; wait";
    let daemon = start(&[("long", line), ("next", "echo 1")], &[]);
    let id = submit(&daemon, "long", Value::Null);
    let next = submit(&daemon, "next", Value::Null);
    let pids = pids(&daemon.path().join("pids"));
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| runs(pid)), "{pids:?}");
    assert_eq!(daemon.send("DELETE", &format!("/api/jobs/{id}"), &[], b"").status, 202);
    let job = daemon.finished_job(&id);
    assert_eq!(job["state"], "cancelled", "{job}");
    assert!(!pids.iter().any(|pid| runs(pid)), "{pids:?} outlived their turn");
    assert!(daemon.path().join("asked").exists(), "it was ended, and not asked to end");
    assert_eq!(daemon.finished_job(&next)["result"], 1, "the next one has its turn");
}

#[test]
fn a_command_that_takes_too_long_or_will_not_end_is_ended() {
    // In one: its time is over, and it does not listen.
    let line = "trap '' TERM; sleep 1000 & echo $$ $! > pids; echo stuck >&2; wait; wait";
    let modes = modes(&[("deaf", line)]).replace("timeout: 60s", "timeout: 1s");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let id = submit(&daemon, "deaf", Value::Null);
    let pids = pids(&daemon.path().join("pids"));
    let job = daemon.finished_job(&id);
    assert_eq!(job["reason"], "the command took longer than its timeout, 1s, and was ended: stuck");
    assert!(!pids.iter().any(|pid| runs(pid)), "{pids:?} outlived their turn");
}

#[test]
fn a_shutdown_ends_the_command_that_runs() {
    let line = "trap 'echo asked > asked; exit' TERM; sleep 1000 & echo $$ $! > pids; wait";
    let mut daemon = start(&[("long", line)], &["--drain-timeout", "0"]);
    submit(&daemon, "long", Value::Null);
    let pids = pids(&daemon.path().join("pids"));
    daemon.signal("-TERM");
    assert!(daemon.ended().success());
    assert!(!pids.iter().any(|pid| runs(pid)), "{pids:?} outlived the daemon");
    assert!(daemon.path().join("asked").exists(), "it was ended, and not asked to end");
}

#[test]
fn a_second_signal_ends_the_command_at_once() {
    let mut daemon =
        start(&[("long", "trap '' TERM; sleep 1000 & echo $$ $! > pids; wait; wait")], &[]);
    submit(&daemon, "long", Value::Null);
    let pids = pids(&daemon.path().join("pids"));
    daemon.signal("-TERM");
    wait_for("the first one to be seen", || daemon.log().contains("a second signal").then_some(()));
    daemon.signal("-TERM");
    assert!(!daemon.ended().success());
    // Nobody waits for them; the kernel is asked, and may take a moment.
    wait_for("its processes to end", || (!pids.iter().any(|pid| runs(pid))).then_some(()));
}

#[test]
fn only_what_the_file_names_is_run_when_its_turn_comes() {
    let daemon = start(&[("job", "echo 1"), ("gone", "echo 1")], &[]);
    let pause = daemon.post("/api/queue/pause", &json!({}));
    assert_eq!(pause.status, 200, "{}", pause.text());
    let job = submit(&daemon, "job", Value::Null);
    let gone = submit(&daemon, "gone", Value::Null);
    fs::write(daemon.config_file(), modes(&[("job", "echo 2"), ("new", "echo 3")])).unwrap();
    let reload = daemon.post("/api/modes/reload", &json!({}));
    assert_eq!(reload.status, 200, "{}", reload.text());
    daemon.post("/api/queue/resume", &json!({}));
    assert_eq!(daemon.finished_job(&job)["result"], 2);
    let gone = daemon.finished_job(&gone);
    assert_eq!(gone["reason"], "there is no custom job 'gone' any more", "{gone}");
    assert_eq!(run(&daemon, "new", Value::Null)["result"], 3);
    let unknown = daemon.post("/api/jobs/custom", &json!({"name": "gone"}));
    unknown.problem(404, "unknown-handler", "/api/jobs/custom");
}

#[test]
fn a_program_that_is_not_there_fails_its_job() {
    let text = format!("{MODES}custom_jobs: {{job: {{command: [./nowhere]}}}}\n");
    let daemon = Daemon::start_in(folder(&text), &[]);
    let job = run(&daemon, "job", Value::Null);
    assert_eq!(job["reason"], "the command cannot be started: entity not found", "{job}");
    let listed = daemon.get("/api/jobs/custom").json();
    let named = |name: &str| {
        let jobs = listed["custom_jobs"].as_array().unwrap();
        jobs.iter().find(|job| job["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(named("job"), json!({"name": "job", "origin": "configured", "description": ""}));
    assert_eq!(named("warm_up")["origin"], "built_in", "{listed}");
}
