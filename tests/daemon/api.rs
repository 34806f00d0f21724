//! What the API promises.

use serde_json::{Value, json};

use crate::support::{Answer, Daemon, has_answer, read_to_end, wait_for};

const JSON: (&str, &str) = ("content-type", "application/json");
const FORM: (&str, &str) = ("content-type", "multipart/form-data");
const FORM_OF_X: (&str, &str) = ("content-type", "multipart/form-data; boundary=x");

/// More steps than any test waits for.
fn long_request() -> Value {
    json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512"})
}

fn png_parameters(png: &[u8]) -> String {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    reader.finish().unwrap();
    reader.info().uncompressed_latin1_text[0].text.clone()
}

#[test]
fn an_image_comes_with_what_it_was_drawn_from() {
    let daemon = Daemon::start();
    let request = json!({
        "mode": "other", "prompt": "a fox", "negative_prompt": "blurry", "size": "64x128",
        "num_inference_steps": 3, "guidance_scale": 2.5, "seed": 7, "scheduler": "euler_a",
    });
    let answer = daemon.post("/generate", &request);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "image/png");
    assert_eq!(answer.header("x-mode"), "other");
    assert_eq!(answer.header("x-seed"), "7");
    assert_eq!(answer.header("x-superres"), "0");
    let image = image::load_from_memory(&answer.body).unwrap();
    assert_eq!((image.width(), image.height()), (64, 128));
    let parameters = png_parameters(&answer.body);
    assert!(
        parameters.starts_with(
            "a fox\nNegative prompt: blurry\nSteps: 3, Sampler: Euler a, CFG scale: 2.5, Seed: 7, \
             Size: 64x128, Model: other, Version: diffused "
        ),
        "{parameters}"
    );

    let job = daemon.get(&format!("/api/jobs/{}", answer.header("x-job-id"))).json();
    assert_eq!(job["state"], "done");
    assert_eq!(job["type"], "generation");
    assert_eq!(job["mode"], "other");
    assert_eq!(job["request"]["seed"], 7);
    assert_eq!(job["request"]["steps"], 3);
    assert!(job["finished_unix_ms"].as_u64() >= job["created_unix_ms"].as_u64());
}

#[test]
fn the_mode_fills_what_is_absent_and_a_drawn_seed_draws_the_same_again() {
    let daemon = Daemon::start();
    let first = daemon.post("/generate", &json!({"prompt": "a fox"}));
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.header("x-mode"), "tiny");
    let parameters = png_parameters(&first.body);
    assert!(parameters.contains("Steps: 4, ") && parameters.contains(", Size: 64x64, "));
    let seed: u64 = first.header("x-seed").parse().unwrap();
    assert!(seed <= u64::from(u32::MAX));
    let again = daemon.post("/generate", &json!({"prompt": "a fox", "seed": seed}));
    assert_eq!(again.body, first.body);
}

#[test]
fn the_client_chooses_the_format() {
    let daemon = Daemon::start();
    let body = json!({"prompt": "a fox", "num_inference_steps": 1}).to_string();
    for media_type in ["image/png", "image/jpeg", "image/webp"] {
        let headers = [JSON, ("accept", media_type)];
        let answer = daemon.send("POST", "/generate", &headers, body.as_bytes());
        assert_eq!(answer.header("content-type"), media_type);
        let format = image::guess_format(&answer.body).unwrap();
        assert_eq!(format.to_mime_type(), media_type);
    }
    let headers = [JSON, ("accept", "text/html")];
    daemon.send("POST", "/generate", &headers, body.as_bytes()).problem(
        406,
        "not-acceptable",
        "/generate",
    );
}

#[test]
fn every_error_is_a_problem() {
    let daemon = Daemon::start();
    let form = ("content-type", "application/x-www-form-urlencoded");
    let generate = "/generate";
    for (method, path, headers, body, status, kind) in [
        ("GET", "/nothing", &[][..], &b""[..], 404, "not-found"),
        ("GET", generate, &[], b"", 405, "method-not-allowed"),
        ("DELETE", "/api/modes", &[], b"", 405, "method-not-allowed"),
        ("POST", generate, &[form], b"prompt=x", 415, "unsupported-media-type"),
        ("POST", generate, &[], b"{}", 415, "unsupported-media-type"),
        ("POST", generate, &[FORM], b"x", 400, "malformed-request"),
        ("POST", generate, &[FORM_OF_X], b"--x\r\n", 400, "malformed-request"),
        ("POST", generate, &[FORM_OF_X], b"--x--\r\n", 422, "invalid-request"),
        ("POST", "/api/modes/switch", &[FORM_OF_X], b"--x--", 415, "unsupported-media-type"),
        ("POST", generate, &[JSON], b"", 400, "malformed-request"),
        ("POST", generate, &[JSON], b"{\"prompt\": ", 400, "malformed-request"),
        ("POST", generate, &[JSON], b"{\"prompt\": \"\xff\"}", 400, "malformed-request"),
        ("POST", generate, &[JSON], b"[]", 422, "invalid-request"),
        ("POST", generate, &[JSON], b"{\"prompt\": 1}", 422, "invalid-request"),
        (
            "POST",
            generate,
            &[JSON],
            b"{\"prompt\": \"\", \"mode\": \"tinny\"}",
            404,
            "unknown-mode",
        ),
        ("POST", "/api/modes/switch", &[JSON], b"{\"mode\": \"tinny\"}", 404, "unknown-mode"),
        ("POST", "/api/modes/switch", &[JSON], b"{\"mod\": 1}", 422, "invalid-request"),
        ("POST", "/api/jobs/custom", &[JSON], b"{\"name\": \"x\"}", 404, "unknown-handler"),
        ("POST", "/api/jobs/custom", &[JSON], b"{}", 422, "invalid-request"),
        ("GET", "/api/jobs/x", &[], b"", 404, "unknown-job"),
        ("GET", "/api/jobs/01a1fadf-c49a-707d-ba3d-f7bd743cf026", &[], b"", 404, "unknown-job"),
    ] {
        let answer = daemon.send(method, path, headers, body);
        let problem = answer.problem(status, kind, path);
        let has_errors = problem["errors"].as_array().is_some_and(|errors| !errors.is_empty());
        assert_eq!(has_errors, status == 422, "{problem}");
    }
}

#[test]
fn a_problem_tells_what_was_meant() {
    let daemon = Daemon::start();
    let answer = daemon.post("/generate", &json!({"promt": "x", "size": "500x500"}));
    let problem = answer.problem(422, "invalid-request", "/generate");
    let unknown = json!({"pointer": "/promt", "detail": "unknown field; did you mean 'prompt'?"});
    let errors = problem["errors"].as_array().unwrap();
    assert!(errors.contains(&unknown), "{problem}");
    let mut pointers: Vec<_> = errors.iter().map(|e| e["pointer"].as_str().unwrap()).collect();
    pointers.sort_unstable();
    assert_eq!(pointers, ["/prompt", "/promt", "/size"]);

    let detail = |answer: Answer| answer.json()["detail"].as_str().unwrap().to_owned();
    let unknown = daemon.post("/generate", &json!({"prompt": "x", "mode": "tinny"}));
    assert!(detail(unknown).starts_with("there is no mode 'tinny'; did you mean 'tiny'?"));
}

#[test]
fn a_body_has_a_limit() {
    let daemon = Daemon::start();
    let body = |bytes: usize| format!("{{\"prompt\": 1, \"x\": \"{}\"}}", "x".repeat(bytes));
    let post = |path, bytes| daemon.send("POST", path, &[JSON], body(bytes).as_bytes());
    let (custom, generate) = ("/api/jobs/custom", "/generate");
    post(custom, 1_000_000).problem(422, "invalid-request", custom);
    post(custom, 1 << 20).problem(413, "body-too-large", custom);
    post(generate, 63 << 20).problem(422, "invalid-request", generate);
    post(generate, 64 << 20).problem(413, "body-too-large", generate);
    let part =
        [b"--x\r\ncontent-disposition: form-data; name=prompt\r\n\r\n", &vec![b'x'; 64 << 20][..]];
    let form = ("content-type", "multipart/form-data; boundary=x");
    let answer = daemon.send("POST", generate, &[form], &part.concat());
    answer.problem(413, "body-too-large", generate);
}

#[test]
fn the_modes_are_shown_as_they_are_declared() {
    let daemon = Daemon::start();
    let list = daemon.get("/api/modes").json();
    let styled = json!({
        "model": "tiny.safetensors", "vae": null, "prediction": null, "on_lora_error": "fail",
        "loras": [
            {"path": "a.safetensors", "strength": 1.0, "adapter_name": null},
            {"path": "b.safetensors", "strength": 0.5, "adapter_name": null},
        ],
        "default_size": "512x512", "default_steps": 4, "default_guidance": 1.0,
        "default_scheduler": null, "default_negative_prompt": null, "clip_skip": 0,
        "guidance_rescale": 0.0, "timestep_spacing": null, "long_prompts": "cut",
        "prompt_syntax": "plain", "pinned": false, "preload": false, "timeout": null, "metadata": {},
    });
    assert_eq!((&list["default_mode"], &list["max_pixels"]), (&json!("tiny"), &json!(4194304)));
    assert_eq!(list["modes"]["styled"], styled);
    assert_eq!(list["modes"]["tiny"]["metadata"], json!({"description": "small"}));
    assert_eq!(list["modes"].as_object().unwrap().len(), 3);
}

#[test]
fn a_switch_is_queued_and_requests_without_a_mode_follow_it() {
    let daemon = Daemon::start();
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    let answer = daemon.post("/api/modes/switch", &json!({"mode": "other"}));
    assert_eq!(answer.status, 202, "{}", answer.text());
    let switch = answer.json();
    assert_eq!(
        (&switch["status"], &switch["from_mode"], &switch["to_mode"]),
        (&json!("queued"), &json!("tiny"), &json!("other"))
    );
    let id = answer.header("x-job-id");
    assert_eq!(answer.header("location"), format!("/api/jobs/{id}"));
    let job = daemon.finished_job(id);
    assert_eq!((&job["state"], &job["type"]), (&json!("done"), &json!("mode_switch")), "{job}");

    let status = daemon.get("/api/models/status").json();
    assert_eq!((&status["current_mode"], &status["queue_size"]), (&json!("other"), &json!(0)));
    let again = daemon.post("/api/modes/switch", &json!({"mode": "other"}));
    assert_eq!((again.status, &again.json()["status"]), (200, &json!("already_loaded")));
    let drawn = daemon.post("/generate", &json!({"prompt": "x"}));
    assert_eq!(drawn.header("x-mode"), "other");
}

#[test]
fn memory_is_shown_of_the_host_where_there_is_no_gpu() {
    let daemon = Daemon::start();
    assert_eq!(daemon.post("/generate", &json!({"prompt": "x"})).status, 200);
    let vram = daemon.get("/api/vram").json();
    assert!(vram["device"].is_string(), "{vram}");
    for member in ["total_gb", "used_gb", "available_gb", "usage_percent", "worker_resident_gb"] {
        assert!(vram[member].as_f64().is_some_and(|value| value >= 0.0), "{vram}");
    }
    assert_eq!(vram["models_loaded"], vram["models"].as_array().unwrap().len());
}

#[test]
fn no_answer_names_a_path_on_disk() {
    let daemon = Daemon::start();
    let switch = daemon.post("/api/modes/switch", &json!({"mode": "other"}));
    let job = format!("/api/jobs/{}", switch.header("x-job-id"));
    daemon.finished_job(switch.header("x-job-id"));
    let mut answers = vec![switch, daemon.post("/api/modes/reload", &json!({}))];
    let paths = ["/", "/api/modes", "/api/models/status", "/api/vram", "/health", "/metrics", &job];
    answers.extend(paths.map(|path| daemon.get(path)));
    std::fs::remove_file(daemon.path().join("models/tiny.safetensors")).unwrap();
    answers.push(daemon.post("/api/modes/reload", &json!({})));
    std::fs::remove_file(daemon.config_file()).unwrap();
    answers.push(daemon.post("/api/modes/reload", &json!({})));
    std::fs::write(daemon.path().join("models/broken.safetensors"), "x").unwrap();
    answers.extend(["/api/modes/config", "/api/inventory"].map(|path| daemon.get(path)));
    let folder = daemon.path().to_str().unwrap();
    for answer in answers {
        assert!(!answer.text().contains(folder), "{}", answer.text());
    }
}

#[test]
fn the_document_lists_what_is_there() {
    let daemon = Daemon::start();
    let document = daemon.get("/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 31);
    // One answer never ends; `events` asks for it.
    for (path, methods) in paths.iter().filter(|(path, _)| *path != "/api/events") {
        for method in methods.as_object().unwrap().keys() {
            let answer = daemon.send(&method.to_uppercase(), path, &[], b"");
            let kind = if answer.status >= 400 { answer.json()["type"].clone() } else { json!("") };
            assert_ne!(kind, "not-found", "{method} {path}");
            assert_ne!(kind, "method-not-allowed", "{method} {path}");
        }
    }
    let responses = &document["paths"]["/generate"]["post"]["responses"];
    assert!(responses["429"]["content"]["application/problem+json"].is_object());
    assert!(
        document["components"]["schemas"]["GenerateRequest"]["properties"]["prompt"].is_object()
    );
    assert!(daemon.get("/").text().contains("/openapi.json"));
    assert_eq!(daemon.get("/health").json()["status"], "ok");
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let daemon = Daemon::start_with(&["--queue-max", "1"]);
    // One runs and one waits; neither answers before its thousand steps are done.
    let mut streams: Vec<_> =
        (0..4).map(|_| daemon.begin_post("/generate", &long_request())).collect();
    let answered = wait_for("a refusal", || streams.iter().position(has_answer));
    let refused = read_to_end(streams.swap_remove(answered));
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("retry-after: ") && refused.contains("queue-full"), "{refused}");
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn hanging_up_cancels_a_job_that_waits_and_one_that_runs() {
    let daemon = Daemon::start();
    let size = |size: u64| move |status: &Value| status["queue_size"] == size;
    let streams = [(); 2].map(|()| daemon.begin_post("/generate", &long_request()));
    daemon.wait_for_status("one job to wait", size(1));
    let [first, second] = streams; // one runs and one waits; which one is for the network to say
    drop(first);
    daemon.wait_for_status("no job to wait", size(0));
    drop(second);
    // Drawn only when both have made way.
    let answer = daemon.post("/generate", &json!({"prompt": "x", "num_inference_steps": 1}));
    assert_eq!(answer.status, 200, "{}", answer.text());
}
