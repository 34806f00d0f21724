//! `modes.yaml` edited while the daemon runs.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, folder, wait_for};

mod memory;

/// The modes of [`MODES`], one of them changed.
fn with(old: &str, new: &str) -> String {
    assert!(MODES.contains(old), "{old}");
    MODES.replace(old, new)
}

impl Daemon {
    fn edit(&self, text: &str) {
        fs::write(self.config_file(), text).unwrap();
    }

    fn configuration(&self) -> Value {
        self.get("/api/modes/config").json()
    }

    fn default_steps(&self, mode: &str) -> Value {
        self.get("/api/modes").json()["modes"][mode]["default_steps"].clone()
    }

    fn loads(&self) -> u64 {
        self.get("/api/models/status").json()["loads"].as_u64().unwrap()
    }

    /// One value of `/metrics`.
    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    fn draw(&self, mode: &str) {
        let answer = self.post("/generate", &json!({"prompt": "x", "mode": mode}));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[test]
fn an_edit_is_in_force_by_itself_and_a_bad_one_changes_nothing() {
    let daemon = Daemon::start();
    let started = daemon.configuration();
    assert_eq!(started["in_force"]["by"], "start", "{started}");
    assert_eq!((&started["watch"], &started["rejected"]), (&json!("auto"), &Value::Null));

    daemon.edit(&with("default_steps: 2", "default_steps: 3"));
    wait_for("the edit", || (daemon.default_steps("other") == 3).then_some(()));
    let edited = daemon.configuration()["in_force"].clone();
    assert_eq!(edited["by"], "file");
    assert_ne!(edited["revision"], started["in_force"]["revision"]);

    daemon.edit(&with("default_steps: 2", "default_steps: 0, clip_skp: 1"));
    let rejected = wait_for("the refusal", || {
        Some(daemon.configuration()["rejected"].clone()).filter(|it| !it.is_null())
    });
    let details: Vec<_> = rejected["errors"].as_array().unwrap().iter().collect();
    assert_eq!(details[0]["pointer"], "/modes/other/default_steps", "{rejected}");
    assert_eq!((&details[0]["line"], &details[0]["column"]), (&json!(6), &json!(73)), "{rejected}");
    assert_eq!(details[1]["pointer"], "/modes/other/clip_skp", "{rejected}");
    assert_eq!(rejected["by"], "file");
    assert_eq!(daemon.configuration()["in_force"], edited);
    assert_eq!(daemon.default_steps("other"), 3);

    let count = |by: &str, outcome: &str| {
        daemon
            .metric(&format!("diffused_config_reloads_total{{by=\"{by}\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((count("file", "applied"), count("file", "rejected")), (1, 1));
    // The same over the API; and once more what is in force already.
    assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 422);
    daemon.edit(&with("default_steps: 2", "default_steps: 4"));
    wait_for("the edit", || (daemon.default_steps("other") == 4).then_some(()));
    assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 200);
    assert_eq!((count("api", "rejected"), count("api", "unchanged")), (1, 1));
    assert_eq!(count("file", "applied"), 2);
}

#[test]
fn whatever_happens_to_the_file_the_daemon_draws_on() {
    let daemon = Daemon::start();
    let file = daemon.config_file();
    let bomb: String = (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |text, i| {
        text + &format!("a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1)
    });
    let mut refused = None;
    let mut expect_refusal = |what: &str| {
        refused = Some(wait_for(what, || {
            let rejected = daemon.configuration()["rejected"].clone();
            (!rejected.is_null() && Some(&rejected) != refused.as_ref()).then_some(rejected)
        }));
        daemon.draw("tiny");
    };
    for (what, bytes) in [
        ("an empty file", Vec::new()),
        ("half of a file", MODES.as_bytes()[..MODES.len() / 2].to_vec()),
        ("a huge file", vec![b'#'; 100 << 20]),
        ("a bomb", bomb.into_bytes()),
        ("bytes that are no text", vec![0xff; 100]),
    ] {
        fs::write(&file, bytes).unwrap();
        expect_refusal(what);
    }
    fs::remove_file(&file).unwrap();
    expect_refusal("no file");
    fs::create_dir(&file).unwrap();
    expect_refusal("a folder in its place");
    fs::remove_dir(&file).unwrap();
    symlink("nowhere", &file).unwrap();
    fs::remove_file(&file).unwrap();
    daemon.edit(&with("default_steps: 2", "default_steps: 9"));
    wait_for("the edit", || (daemon.default_steps("other") == 9).then_some(()));
    assert_eq!(daemon.loads(), 1);
}

#[test]
fn what_did_not_change_stays_loaded_and_what_did_is_loaded_again_behind_the_work() {
    let daemon = Daemon::start();
    daemon.draw("tiny");
    assert_eq!(daemon.loads(), 1);
    let reload = |text: &str| {
        daemon.edit(text);
        daemon.post("/api/modes/reload", &json!({}));
    };
    // Another mode, this one's defaults, and a comment.
    for text in [
        with("model: other.safetensors", "model: tiny.safetensors"),
        with("default_size: 64x64", "default_size: 64x128"),
        format!("# hello\n{MODES}"),
    ] {
        reload(&text);
        daemon.draw("tiny");
        assert_eq!(daemon.loads(), 1, "{text}");
    }
    // Its checkpoint: what is accepted before is drawn as it was accepted, then it is loaded.
    let request = json!({"prompt": "x", "mode": "tiny", "num_inference_steps": 200});
    let before = daemon.begin_post("/generate", &request);
    wait_for("the job to run", || (daemon.metric("diffused_jobs_running") == 1).then_some(()));
    reload(&with("tiny: {model: tiny.safetensors", "tiny: {model: other.safetensors"));
    daemon.wait_for_status("the reload to wait or to be done", |status| {
        status["queue_size"] == 1 || status["loads"] == 2
    });
    assert!(crate::support::read_to_end(before).starts_with("HTTP/1.1 200"));
    daemon.wait_for_status("the reload", |status| status["loads"] == 2);
    assert_eq!(daemon.get("/api/vram").json()["models"][0]["model_path"], "other.safetensors");
    daemon.draw("tiny");
    assert_eq!(daemon.loads(), 2);
}

#[test]
fn a_mode_that_is_removed_gives_way_to_the_default_one() {
    let daemon = Daemon::start();
    let switch = daemon.post("/api/modes/switch", &json!({"mode": "other"}));
    daemon.finished_job(switch.header("x-job-id"));
    let lines: Vec<_> = MODES.lines().filter(|line| !line.contains("other:")).collect();
    daemon.edit(&lines.join("\n"));
    daemon.wait_for_status("the default mode", |status| {
        status["current_mode"] == "tiny" && status["selected_mode"] == "tiny"
    });
    assert_eq!(daemon.post("/generate", &json!({"prompt": "x"})).header("x-mode"), "tiny");
    let gone = daemon.post("/generate", &json!({"prompt": "x", "mode": "other"}));
    gone.problem(404, "unknown-mode", "/generate");
}

#[test]
fn a_replaced_checkpoint_is_noticed_by_a_reload_and_not_before() {
    let daemon = Daemon::start();
    let draw = || daemon.post("/generate", &json!({"prompt": "x", "seed": 1})).body;
    let before = draw();
    let models = daemon.path().join("models");
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/demo.safetensors");
    fs::copy(demo, models.join("new")).unwrap();
    fs::rename(models.join("new"), models.join("tiny.safetensors")).unwrap();
    assert!(draw() == before);
    let report = daemon.post("/api/modes/reload", &json!({})).json();
    assert_eq!(report["to_reload"], json!(["styled", "tiny"]), "{report}");
    let after = draw();
    assert!(after != before);
    daemon.wait_for_status("two loads", |status| status["loads"] == 2);
    // Nothing was replaced since.
    let report = daemon.post("/api/modes/reload", &json!({})).json();
    assert_eq!(report["to_reload"], json!([]), "{report}");
    assert!(draw() == after);
}

/// Steps and guidance belong together, so that a mixture of two states of the file is seen.
fn numbered(number: u32) -> String {
    let (steps, guidance) = (20 + number % 5, number);
    let mode = format!("default_steps: {steps}, default_guidance: 0.{guidance:03}");
    format!(
        "model_root: models\ndefault_mode: tiny\nmodes:\n  \
         tiny: {{model: tiny.safetensors, default_size: 64x64, {mode}}}\n  \
         spare{number}: {{model: other.safetensors}}\n"
    )
}

#[test]
fn a_storm_of_edits_harms_no_job_and_ends_with_the_last_one() {
    const EDITS: u32 = 500;
    const IMAGES: u32 = 50;
    let daemon = Daemon::start_in(folder(&numbered(0)), &[]);
    let (next, images) = (AtomicU32::new(1), AtomicU32::new(0));
    // Every third is no YAML, every seventh not what it should be; by turns in place and renamed.
    let write = |writer: u32| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= EDITS {
                return;
            }
            let text = match (number % 3, number % 7) {
                (0, _) => numbered(number).replace("modes:", "modes: ["),
                (_, 0) => numbered(number).replace("default_steps", "defaultsteps"),
                _ => numbered(number),
            };
            if number % 2 == 0 {
                daemon.edit(&text);
            } else {
                let new = daemon.path().join(format!("new{writer}"));
                fs::write(&new, text).unwrap();
                fs::rename(new, daemon.config_file()).unwrap();
            }
            while number / (EDITS / IMAGES) > images.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    };
    let drawn: Vec<Value> = thread::scope(|scope| {
        let write = &write;
        let writers = [0, 1].map(|writer| scope.spawn(move || write(writer)));
        let draw = || {
            let answer = daemon.post("/generate", &json!({"prompt": "x"}));
            assert_eq!(answer.status, 200, "{}", answer.text());
            images.fetch_add(1, Ordering::Relaxed);
            daemon.finished_job(answer.header("x-job-id"))
        };
        let drawn = (0..IMAGES).map(|_| draw()).collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        drawn
    });
    for job in &drawn {
        let request = &job["request"];
        let guidance = request["guidance_scale"].as_f64().unwrap();
        let number = (guidance * 1000.0).round() as u64;
        assert_eq!(request["steps"], 20 + number % 5, "{job}");
    }
    daemon.edit(&numbered(EDITS));
    wait_for("the last edit", || {
        let modes = daemon.get("/api/modes").json();
        modes["modes"].get(format!("spare{EDITS}")).map(|_| ())
    });
    // One after the other, and none of them twice.
    let log = daemon.log();
    let revision = |line: &str| {
        let line = line.contains("configuration reloaded").then_some(line)?;
        Some(line.split("revision=\"").nth(1)?.split('"').next()?.to_owned())
    };
    let revisions: Vec<String> = log.lines().filter_map(revision).collect();
    assert!(!revisions.is_empty());
    assert!(revisions.windows(2).all(|pair| pair[0] != pair[1]), "{revisions:?}");
    let last = daemon.configuration()["in_force"]["revision"].clone();
    assert_eq!(last, **revisions.last().unwrap());
}

impl Daemon {
    fn change(&self, method: &str, name: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.send(method, &format!("/api/modes/{name}"), &headers, body.to_string().as_bytes())
    }

    fn text(&self) -> String {
        fs::read_to_string(self.config_file()).unwrap()
    }
}

#[test]
fn modes_are_changed_over_the_api_and_the_file_keeps_its_other_lines() {
    let commented = with("modes:\n", "modes: # ours\n  # The small one.\n");
    let daemon = Daemon::start_in(folder(&commented), &[]);
    let mode = json!({"model": "tiny.safetensors", "default_size": "64x64", "default_steps": 2});
    let created = daemon.change("POST", "new", &[], &mode);
    assert_eq!(created.status, 201, "{}", created.text());
    assert_eq!(created.json()["default_steps"], 2);
    let block =
        "  new:\n    model: tiny.safetensors\n    default_size: \"64x64\"\n    default_steps: 2\n";
    assert_eq!(daemon.text(), commented.clone() + block);
    daemon.draw("new");
    let again = daemon.change("POST", "new", &[], &mode);
    again.problem(409, "conflict", "/api/modes/new");

    // Who has not seen that, is told.
    let seen = [("if-match", created.header("etag"))];
    let replaced = daemon.change("PUT", "new", &seen, &json!({"model": "other.safetensors"}));
    assert_eq!(replaced.status, 200, "{}", replaced.text());
    let late = daemon.change("PUT", "new", &seen, &mode);
    late.problem(412, "precondition-failed", "/api/modes/new");
    let revision = daemon.get("/api/modes/new").header("etag").to_owned();
    assert_eq!(revision, replaced.header("etag"));
    assert_eq!(
        revision,
        format!("\"{}\"", daemon.configuration()["in_force"]["revision"].as_str().unwrap())
    );

    let before = daemon.text();
    let wrong =
        daemon.change("PUT", "new", &[], &json!({"model": "x", "default_steps": 0, "stps": 1}));
    let problem = wrong.problem(422, "invalid-request", "/api/modes/new");
    let pointers: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|e| &e["pointer"]).collect();
    assert_eq!(pointers, ["/default_steps", "/stps"], "{problem}");
    for name in ["a%20b", "x%3A%20%7B%7D%0A", "%C3%BC"] {
        assert_eq!(daemon.change("PUT", name, &[], &mode).status, 422, "{name}");
    }
    assert_eq!(daemon.change("DELETE", "tiny", &[], &Value::Null).status, 422);
    assert_eq!(daemon.text(), before);

    assert_eq!(daemon.change("DELETE", "new", &[], &Value::Null).status, 204);
    assert_eq!(daemon.text(), commented);
    let gone = daemon.change("DELETE", "new", &[], &Value::Null);
    gone.problem(404, "unknown-mode", "/api/modes/new");
    // A file that is broken, or not written in lines, is left alone.
    daemon.edit("modes: [");
    daemon.change("PUT", "new", &[], &mode).problem(409, "conflict", "/api/modes/new");
    let in_braces = "model_root: models\ndefault_mode: a\nmodes: {a: {model: tiny.safetensors}}\n";
    daemon.edit(in_braces);
    daemon.change("PUT", "new", &[], &mode).problem(409, "conflict", "/api/modes/new");
    assert_eq!(daemon.text(), in_braces);
}

#[test]
fn who_changes_modes_needs_the_admin_key_where_one_is_set() {
    let folder = folder(MODES);
    let key = folder.path().join("key");
    fs::write(&key, "sesame\n").unwrap();
    let daemon = Daemon::start_in(folder, &["--admin-key-file", key.to_str().unwrap()]);
    let mode = json!({"model": "tiny.safetensors"});
    for headers in [&[][..], &[("x-admin-key", "sesam")], &[("x-admin-key", "")]] {
        for method in ["POST", "PUT", "DELETE"] {
            let refused = daemon.change(method, "other", headers, &mode);
            refused.problem(401, "admin-key-needed", "/api/modes/other");
        }
    }
    assert_eq!(daemon.text(), MODES);
    assert_eq!(daemon.change("PUT", "new", &[("x-admin-key", "sesame")], &mode).status, 201);
    assert_eq!(daemon.get("/api/modes/new").status, 200);
}

#[test]
fn the_inventory_lists_what_is_on_disk() {
    let daemon = Daemon::start();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let models = daemon.path().join("models");
    fs::copy(root.join("models/demo/demo.safetensors"), models.join("demo.safetensors")).unwrap();
    fs::copy(root.join("loras/demo-outline.safetensors"), models.join("a.safetensors")).unwrap();
    fs::write(models.join("broken.safetensors"), "x").unwrap();
    let inventory = daemon.get("/api/inventory").json();
    let seen = |list: &str| -> Vec<Value> {
        let files = inventory[list].as_array().unwrap().iter();
        let facts =
            |file: &Value| json!([file["name"], file["family"], file["precision"], file["modes"]]);
        files.map(facts).collect()
    };
    assert_eq!(
        seen("checkpoints"),
        [
            json!(["demo.safetensors", "SD1.x", "fp16", []]),
            json!(["other.safetensors", "SD1.x", "fp16", ["other"]]),
            json!(["tiny.safetensors", "SD1.x", "fp16", ["styled", "tiny"]]),
        ]
    );
    assert_eq!(seen("loras").len(), 1);
    assert_eq!(
        (&seen("loras")[0][0], &seen("loras")[0][3]),
        (&json!("a.safetensors"), &json!(["styled"]))
    );
    assert_eq!(inventory["others"][0]["name"], "broken.safetensors");
    assert!(inventory["others"][0]["problem"].is_string());
    let size = fs::metadata(root.join("models/demo/demo.safetensors")).unwrap().len();
    assert_eq!(inventory["checkpoints"][0]["bytes"], size);
}
