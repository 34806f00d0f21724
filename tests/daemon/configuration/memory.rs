//! What may stay loaded, by the file and over the API.

use super::*;

/// The modes of [`MODES`], and that section; only who asks for it has the file read again.
fn with_memory(section: &str) -> String {
    format!("{MODES}watch: off\nmemory: {section}\n")
}

#[test]
fn it_is_shown_as_the_file_says_it() {
    let daemon = Daemon::start_in(folder(&with_memory("")), &[]);
    let shown = || daemon.configuration()["memory"].clone();
    let default = json!({
        "max_models": null, "max_request_pipelines": 4, "limit_gb": null, "eviction": "lru", "idle_unload": "off",
        "verify": false, "lora_cache": {"max_files": 32, "max_gb": 4.0}, "host_cache_gb": 0.0,
    });
    assert_eq!(shown(), default);

    let section = "{max_models: 2, max_request_pipelines: 3, limit_gb: 20.1, eviction: fifo, idle_unload: 90s, \
                   lora_cache: {max_gb: 0.5}, host_cache_gb: 2}";
    daemon.edit(&with_memory(section));
    let report = daemon.post("/api/modes/reload", &json!({})).json();
    assert_eq!(report["settings"], json!(["memory"]), "{report}");
    assert_eq!(report["changed"], json!([]), "{report}");
    let set = json!({
        "max_models": 2, "max_request_pipelines": 3, "limit_gb": 20.1, "eviction": "fifo", "idle_unload": "90s",
        "verify": false, "lora_cache": {"max_files": 32, "max_gb": 0.5}, "host_cache_gb": 2.0,
    });
    assert_eq!(shown(), set);
}

#[test]
fn a_mode_is_pinned_and_preloaded_over_the_api() {
    let daemon = Daemon::start();
    let mode = json!({"model": "other.safetensors", "preload": true, "pinned": true});
    let put = daemon.change("PUT", "other", &[], &mode);
    assert_eq!(put.status, 200, "{}", put.text());
    let put = put.json();
    assert_eq!((&put["pinned"], &put["preload"]), (&json!(true), &json!(true)), "{put}");
    let block = "  other:\n    model: other.safetensors\n    pinned: true\n    preload: true\n";
    assert!(daemon.text().contains(block), "{}", daemon.text());

    let wrong = json!({"model": "x", "preload": "yes", "pinned": 1});
    let problem = daemon.change("POST", "new", &[], &wrong);
    let problem = problem.problem(422, "invalid-request", "/api/modes/new");
    let pointers: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|e| &e["pointer"]).collect();
    assert_eq!(pointers, ["/pinned", "/preload"], "{problem}");
}

#[test]
fn more_pinned_modes_than_there_is_room_for_are_warned_of() {
    let daemon = Daemon::start_in(folder(&with_memory("{max_models: 1}")), &[]);
    let told = || -> Vec<String> {
        let warnings = daemon.configuration()["warnings"].clone();
        let of_memory = |it: &&Value| it["pointer"] == "/memory/max_models";
        let warnings = warnings.as_array().unwrap().iter().filter(of_memory);
        warnings.map(|it| it["detail"].as_str().unwrap().to_owned()).collect()
    };
    let pin = |name: &str, model: &str| {
        let put = daemon.change("PUT", name, &[], &json!({"model": model, "pinned": true}));
        assert!(put.status < 300, "{}", put.text());
    };
    pin("tiny", "tiny.safetensors");
    pin("again", "tiny.safetensors");
    assert_eq!(told(), [""; 0]);
    pin("other", "other.safetensors");
    assert_eq!(told(), ["1 is fewer than the 2 models of the modes with 'pinned': again, other"]);
}
