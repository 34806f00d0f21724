//! Nothing outlives a custom job's command: not even what has left its session.
#![cfg(target_os = "linux")]

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::{Daemon, MODES, command_of, folder, wait_for};

/// Starts processes that leave: one in a session of its own, and one in another below that. Their
/// numbers and the shell's are in the file `pids`.
const LEAVERS: &str = "setsid sh -c 'setsid sleep 1000 & echo $! > inner; exec sleep 1000' \
    </dev/null >/dev/null 2>&1 & outer=$!; until [ -s inner ]; do sleep 0.01; done; \
    echo $$ $outer $(cat inner) > pids";

fn start(line: &str, arguments: &[&str]) -> Daemon {
    let command = json!(["/bin/sh", "-c", format!("{LEAVERS}; {line}")]);
    let modes = format!("{MODES}custom_jobs: {{leave: {{command: {command}, timeout: 5m}}}}\n");
    Daemon::start_in(folder(&modes), arguments)
}

fn submit(daemon: &Daemon) -> String {
    let answer = daemon.post("/api/jobs/custom", &json!({"name": "leave"}));
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("x-job-id").to_owned()
}

/// The numbers of the shell and of those that it has started.
fn pids(folder: &Path) -> Vec<String> {
    let pids: Vec<String> = wait_for("the command to begin", || {
        let text = fs::read_to_string(folder.join("pids")).ok().filter(|it| it.ends_with('\n'))?;
        Some(text.split_whitespace().map(str::to_owned).collect())
    });
    assert_eq!(pids.len(), 3, "{pids:?}");
    pids
}

fn is_running(pid: &String) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

#[test]
fn at_its_own_end() {
    let daemon = start("echo 7", &[]);
    let job = daemon.finished_job(&submit(&daemon));
    assert_eq!((&job["state"], &job["result"]), (&json!("done"), &json!(7)), "{job}");
    let pids = pids(daemon.path());
    assert!(!pids.iter().any(is_running), "{pids:?}");
}

#[test]
fn when_it_is_cancelled() {
    let daemon = start("wait", &[]);
    let id = submit(&daemon);
    let pids = pids(daemon.path());
    assert!(pids.iter().all(is_running), "{pids:?}");
    assert_eq!(daemon.send("DELETE", &format!("/api/jobs/{id}"), &[], b"").status, 202);
    let job = daemon.finished_job(&id);
    assert_eq!((&job["state"], &job["result"]), (&json!("cancelled"), &Value::Null), "{job}");
    assert!(!pids.iter().any(is_running), "{pids:?}");
}

#[test]
fn when_the_daemon_ends() {
    let mut daemon = start("wait", &["--drain-timeout", "0"]);
    submit(&daemon);
    let pids = pids(daemon.path());
    daemon.signal("-TERM");
    assert!(daemon.ended().success());
    assert!(!pids.iter().any(is_running), "{pids:?}");
}

#[test]
fn when_the_daemon_is_killed() {
    let mut daemon = start("trap '' TERM; wait", &[]);
    submit(&daemon);
    let pids = pids(daemon.path());
    daemon.kill();
    wait_for("its processes to end", || (!pids.iter().any(is_running)).then_some(()));
}

#[test]
fn when_its_supervisor_is_killed() {
    let command = json!(["/bin/sh", "-c", "echo $$ $PPID > pids; exec sleep 1000"]);
    let modes = format!("{MODES}custom_jobs: {{leave: {{command: {command}, timeout: 5m}}}}\n");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let id = submit(&daemon);
    let pids = wait_for("the command to begin", || {
        let text = fs::read_to_string(daemon.path().join("pids")).ok()?;
        text.ends_with('\n').then_some(text)
    });
    let (command, supervisor) = pids.trim().split_once(' ').unwrap();
    let killed = Command::new("kill").args(["-9", supervisor]).status().unwrap();
    assert!(killed.success());
    assert_eq!(daemon.finished_job(&id)["state"], "failed");
    wait_for("the command to end", || (!is_running(&command.to_owned())).then_some(()));
}

#[test]
fn commands_and_workers_start_although_the_daemons_program_was_replaced() {
    let modes = format!("{MODES}custom_jobs: {{seven: {{command: [/bin/echo, '7']}}}}\n");
    let folder = folder(&modes);
    // In a folder beside, where a link to the program can be: a copy takes long.
    let program = Path::new(env!("CARGO_BIN_EXE_diffused"));
    let beside = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let installed = beside.path().join("diffused");
    fs::hard_link(program, &installed).unwrap();
    let daemon = Daemon::spawn(command_of(&installed, folder.path()), folder, &[]);
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    fs::remove_file(&installed).unwrap();
    fs::write(&installed, "another version").unwrap();
    let answer = daemon.post("/api/jobs/custom", &json!({"name": "seven"}));
    assert_eq!(answer.status, 202, "{}", answer.text());
    let job = daemon.finished_job(answer.header("x-job-id"));
    assert_eq!((&job["state"], &job["result"]), (&json!("done"), &json!(7)), "{job}");
    let worker = daemon.worker();
    assert_eq!(worker.status("Name"), "diffused");
    worker.kill();
    let image = daemon.post("/generate", &json!({"prompt": "x", "num_inference_steps": 1}));
    assert_eq!(image.status, 200, "{}", image.text());
}
