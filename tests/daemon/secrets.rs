//! Environment variables: a client's text never stands for one, and the value of one that the
//! operator's file names is in no answer, error or log.

use std::{fs, os::unix::fs::symlink};

use serde_json::{Value, json};

use crate::support::{Daemon, MODES, command, folder, shipped_checkpoint, wait_for};

const SECRET: &str = "hunter2";

/// With the secret in `TOP_SECRET`, and in variables that the file may name.
fn start(modes: &str) -> Daemon {
    let folder = folder(modes);
    let mut program = command(folder.path());
    program.env("TOP_SECRET", SECRET).env("A_FILE", format!("{SECRET}.safetensors"));
    Daemon::spawn(program, folder, &[])
}

fn put(daemon: &Daemon, name: &str, mode: &Value) -> (u16, String) {
    let path = format!("/api/modes/{name}");
    let json = ("content-type", "application/json");
    let answer = daemon.send("PUT", &path, &[json], mode.to_string().as_bytes());
    (answer.status, answer.text())
}

#[track_caller]
fn assert_silent(what: &str, text: &str) {
    assert!(!text.contains(SECRET), "{what} tells: {text}");
}

#[test]
fn a_clients_text_stands_for_itself() {
    let mut daemon = start(MODES);
    let hostile = [
        "${TOP_SECRET}",
        "$${TOP_SECRET}",
        "$$${TOP_SECRET}",
        "${TOP_SECRET:-x}",
        "${NONE:-${TOP_SECRET}}",
        "${TOP_SECRET",
        "a ${TOP_SECRET}\nb: ${TOP_SECRET}\n",
        "${}",
        "$ {TOP_SECRET} #",
    ];
    let nested = json!({"list": hostile, "map": {"${TOP_SECRET}": {"$${TOP_SECRET}": hostile}}});
    for text in hostile {
        let mode = json!({"model": "tiny.safetensors", "default_size": "64x64",
                          "default_negative_prompt": text, "metadata": nested});
        let (status, answer) = put(&daemon, "leak", &mode);
        assert!([200, 201].contains(&status), "{text}: {answer}");
        let answered: Value = serde_json::from_str(&answer).unwrap();
        let check = |shown: &Value| {
            assert_eq!(shown["default_negative_prompt"], text);
            assert_eq!(shown["metadata"], nested, "{text}");
        };
        check(&answered);
        assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 200);
        check(&daemon.get("/api/modes/leak").json());
    }
    let generated = daemon.post("/generate", &json!({"prompt": "x", "mode": "leak"}));
    assert_eq!(generated.status, 200, "{}", generated.text());

    // Where a value is not free text, the answer says what is wrong with it.
    for mode in [
        json!({"model": "${TOP_SECRET}/../../x"}),
        json!({"model": "tiny.safetensors", "default_size": "${TOP_SECRET}"}),
        json!({"model": "tiny.safetensors", "default_steps": "${TOP_SECRET}"}),
        json!({"model": "tiny.safetensors", "default_scheduler": "${TOP_SECRET}"}),
        json!({"model": "tiny.safetensors", "loras": "${TOP_SECRET}"}),
        json!({"model": "tiny.safetensors", "${TOP_SECRET}": 1}),
    ] {
        let (status, answer) = put(&daemon, "bad", &mode);
        assert_eq!(status, 422, "{answer}");
        assert_silent("a refusal", &answer);
    }
    // A file of that very name is not there.
    let (status, answer) = put(&daemon, "lacking", &json!({"model": "${TOP_SECRET}"}));
    assert_eq!(status, 201, "{answer}");
    let failed = daemon.post("/generate", &json!({"prompt": "x", "mode": "lacking"}));
    assert!(failed.text().contains("${TOP_SECRET}"), "{}", failed.text());
    for path in ["/api/modes", "/api/modes/config", "/api/models", "/api/jobs"] {
        assert_silent(path, &daemon.get(path).text());
    }
    assert_silent("modes.yaml", &fs::read_to_string(daemon.config_file()).unwrap());
    assert_silent("the log", &daemon.log());
    daemon.kill();
    daemon.start_again(&[]);
    assert_eq!(daemon.get("/api/modes/leak").json()["metadata"], nested, "after a restart");
}

#[test]
fn the_operators_variables_work_and_are_shown_as_they_are_written() {
    let modes = format!(
        "{MODES}  file: {{model: '${{A_FILE}}', default_size: 64x64, default_steps: 1}}\n  \
         gone: {{model: 'x/${{TOP_SECRET}}', loras: ['${{A_FILE}}']}}\nwebhooks: {{secret: '${{TOP_SECRET}}'}}\n"
    );
    // Nothing lists the folder that the model is in, so that its name is nowhere else.
    let folder = folder(&modes);
    let hidden = tempfile::tempdir().unwrap();
    symlink(shipped_checkpoint(), hidden.path().join("x.safetensors")).unwrap();
    let mut program = command(folder.path());
    let link = folder.path().join("models").join(SECRET);
    symlink(hidden.path().join("x.safetensors"), link).unwrap();
    program.env("TOP_SECRET", SECRET).env("A_FILE", SECRET);
    let daemon = Daemon::spawn(program, folder, &[]);

    let image = daemon.post("/generate", &json!({"prompt": "x", "mode": "file"}));
    assert_eq!(image.status, 200, "{}", image.text());
    assert_silent("an image's text", &String::from_utf8_lossy(&image.body));
    let failed = daemon.post("/generate", &json!({"prompt": "x", "mode": "gone"}));
    assert_ne!(failed.status, 200);
    assert_silent("a failure", &failed.text());
    let shown = daemon.get("/api/modes/file").json();
    assert_eq!(shown["model"], "${A_FILE}");
    let broken = "  bad: {model: tiny.safetensors, default_size: '${TOP_SECRET}', default_steps: '${TOP_SECRET}', \
                  default_scheduler: '${TOP_SECRET}', default_negative_prompt: '${TOP_SECRET}', \
                  metadata: {a: '${TOP_SECRET}'}, loras: '${TOP_SECRET}'}\n\
                  http: {hosts: ['${TOP_SECRET}/x'], origins: ['${TOP_SECRET}']}\n";
    fs::write(daemon.config_file(), modes.replace("webhooks", &format!("{broken}webhooks")))
        .unwrap();
    let reloaded = daemon.post("/api/modes/reload", &json!({}));
    assert_eq!(reloaded.status, 422);
    assert_eq!(reloaded.json()["errors"].as_array().unwrap().len(), 8, "{}", reloaded.text());
    assert!(reloaded.text().contains("${TOP_SECRET}"), "{}", reloaded.text());
    assert_silent("a reload", &reloaded.text());
    let edited = daemon.send("DELETE", "/api/modes/gone", &[], b"");
    assert_eq!(edited.status, 409);
    assert_silent("an edit", &edited.text());
    for path in [
        "/api/modes",
        "/api/modes/config",
        "/api/models",
        "/api/models/available",
        "/api/models/status",
        "/api/vram",
        "/api/inventory",
        "/api/jobs",
        "/metrics",
        "/health",
    ] {
        assert_silent(path, &daemon.get(path).text());
    }
    wait_for("the refusal in the log", || daemon.log().contains("not reloaded").then_some(()));
    // (Where a file cannot be read, the log names its path on the disk, for the operator.)
    let log = daemon.log();
    let of_file: Vec<_> = log.lines().filter(|line| line.contains("modes.yaml")).collect();
    assert!(of_file.len() >= 6, "{log}");
    assert_silent("the log", &of_file.join("\n"));
    for format in ["text", "json"] {
        let mut check = command(daemon.path());
        check.env("TOP_SECRET", SECRET).env("A_FILE", SECRET);
        let said = check.args(["check", "--format", format]).output().unwrap();
        assert_eq!(said.status.code(), Some(78));
        let said = [said.stdout, said.stderr].concat();
        assert_silent("diffused check", &String::from_utf8_lossy(&said));
    }
}

/// That a file is there is no secret; that it is the variable's value is one.
#[test]
fn the_inventory_does_not_tell_which_file_a_variable_names() {
    let file = "model: '${A_FILE}', default_size: 64x64, default_steps: 1";
    let folder = folder(&format!("{MODES}  file: {{{file}}}\n"));
    let name = format!("{SECRET}.safetensors");
    symlink(shipped_checkpoint(), folder.path().join("models").join(&name)).unwrap();
    let mut program = command(folder.path());
    program.env("A_FILE", &name);
    let daemon = Daemon::spawn(program, folder, &[]);
    let inventory = daemon.get("/api/inventory").json();
    let lists = ["checkpoints", "loras", "others"].map(|list| inventory[list].as_array().unwrap());
    let listed = lists.into_iter().flatten().find(|file| file["name"] == name.as_str());
    assert_eq!(listed.unwrap()["modes"], json!([]));
}
