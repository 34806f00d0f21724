//! What can be asked of `POST /generate`: forms, images to start from, several images, LoRAs.

use std::{
    fs,
    io::{Cursor, Write},
    net::TcpStream,
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, folder, has_answer, read_to_end};

const JSON: (&str, &str) = ("content-type", "application/json");

/// A PNG of a gradient.
fn png(width: u32, height: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| [x as u8, y as u8, 128].into());
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// A PNG of a few bytes that says to be of 30000x30000 pixels.
fn bomb() -> Vec<u8> {
    let mut file = Vec::new();
    let encoder = png::Encoder::new(&mut file, 30_000, 30_000);
    encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, b"x").unwrap();
    file
}

fn accepting(daemon: &Daemon, accept: &str, body: &Value) -> Answer {
    let headers = [JSON, ("accept", accept)];
    daemon.send("POST", "/generate", &headers, body.to_string().as_bytes())
}

/// The errors of a refused request, as "pointer detail".
#[track_caller]
fn refused(answer: &Answer) -> Vec<String> {
    let problem = answer.problem(422, "invalid-request", "/generate");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|e| text(&e["pointer"]) + " " + &text(&e["detail"])).collect()
}

#[test]
fn a_form_asks_for_what_json_asks_for() {
    let daemon = Daemon::start();
    let json = json!({
        "prompt": "a fox, 狐", "negative_prompt": "", "seed": 7, "num_inference_steps": 2,
        "size": "72x64", "guidance_scale": 2.5, "scheduler": "euler_a", "eta": 0.5,
    });
    let expected = daemon.post("/generate", &json);
    assert_eq!(expected.status, 200, "{}", expected.text());
    for parts in [
        &[
            ("prompt", None, "a fox, 狐".as_bytes()),
            ("negative_prompt", None, b""),
            ("seed", None, b"7"),
            ("num_inference_steps", None, b"2"),
            ("size", None, b"72x64"),
            ("guidance_scale", None, b"2.5"),
            ("scheduler", None, b"euler_a"),
            ("eta", None, b"0.5"),
            ("mode", None, b""),
            ("loras", None, b"[]"),
            ("mask_image", Some(""), b""),
        ][..],
        &[("request", Some("request.json"), json.to_string().as_bytes())],
    ] {
        let answer = daemon.post_form("/generate", parts);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.body == expected.body, "another image");
    }
    let wrong = [("prompt", None, &b"x"[..]), ("seed", None, b"x"), ("sed", None, b"1")];
    let mut errors = refused(&daemon.post_form("/generate", &wrong));
    errors.sort();
    assert_eq!(
        errors,
        [
            "/sed unknown field; did you mean 'seed'?",
            "/seed expected a whole number, found a string"
        ]
    );
}

#[test]
fn an_image_that_cannot_be_used_is_refused_when_it_arrives() {
    let daemon = Daemon::start();
    let (png, bomb) = (png(64, 64), bomb());
    let no_image = "is not a PNG, JPEG or WebP file";
    for (name, file, says) in [
        ("init_image", &b"GIF89a"[..], no_image),
        ("init_image", &png[..png.len() / 2], "is a damaged image: "),
        ("init_image", &bomb, "is an image of 30000x30000 pixels; 16384 on a side and "),
        ("mask_image", b"%PDF-1.4", no_image),
        ("mask_image", &bomb, "is an image of 30000x30000 pixels; 16384 on a side and "),
    ] {
        let mut body = json!({"prompt": "x", "init_image": BASE64.encode(&png)});
        body[name] = format!("data:image/png;base64,{}", BASE64.encode(file)).into();
        let mut parts = vec![("prompt", None, &b"x"[..]), (name, Some("x.png"), file)];
        if name == "mask_image" {
            parts.push(("init_image", Some("x.png"), &png));
        }
        for answer in [daemon.post("/generate", &body), daemon.post_form("/generate", &parts)] {
            let errors = refused(&answer);
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].starts_with(&format!("/{name} {says}")), "{errors:?}");
        }
    }
    let small = daemon
        .post("/generate", &json!({"prompt": "x", "init_image": BASE64.encode(self::png(7, 64))}));
    assert_eq!(refused(&small), ["/init_image is 7x64; 8x8 is the least"]);
    let alone =
        daemon.post_form("/generate", &[("prompt", None, b"x"), ("mask_image", Some("x"), &png)]);
    assert_eq!(refused(&alone), ["/mask_image needs an init_image"]);
}

#[test]
fn an_image_has_at_most_the_pixels_that_are_allowed() {
    let modes = MODES.replace("default_mode: tiny", "default_mode: tiny\nmax_pixels: 262144");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let more = "is more than the 262144 pixels that are allowed";
    let source = BASE64.encode(png(640, 512));
    for (body, expected) in [
        (json!({"size": "512x520"}), format!("/size 512x520 {more}")),
        (
            json!({"init_image": source}),
            format!("/init_image 640x512 {more}; name a smaller 'size'"),
        ),
    ] {
        let mut body = body;
        body["prompt"] = "x".into();
        assert_eq!(refused(&daemon.post("/generate", &body)), [expected]);
    }
}

#[test]
fn an_image_can_be_had_in_json() {
    let daemon = Daemon::start();
    let body = json!({"prompt": "a fox", "seed": 7, "num_inference_steps": 1});
    let image = daemon.post("/generate", &body);
    let answer = accepting(&daemon, "application/json", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!((answer.header("x-seed"), answer.header("x-mode")), ("7", "tiny"));
    let expected = json!({
        "mode": "tiny", "job_id": answer.header("x-job-id"),
        "images": [{"seed": 7, "media_type": "image/png", "data": BASE64.encode(&image.body)}],
        "prompt_truncated": null, "skipped_loras": [],
    });
    assert_eq!(answer.json(), expected);
    let webp = accepting(&daemon, "application/json, image/webp;q=0.5", &body).json();
    assert_eq!(webp["images"][0]["media_type"], "image/webp");
}

#[test]
fn several_images_are_not_sent_as_one() {
    let daemon = Daemon::start();
    let body = json!({"prompt": "a fox", "n": 2});
    let answer = accepting(&daemon, "image/png", &body);
    let problem = answer.problem(406, "not-acceptable", "/generate");
    let says =
        "2 images are sent as application/json: accept that, or ask for one image with 'n': 1";
    assert_eq!(problem["detail"], says);
    let many = daemon.post("/generate", &json!({"prompt": "x", "n": 8, "size": "2048x2048"}));
    assert_eq!(refused(&many), ["/n 8 images of 2048x2048 are too many at once; 4 are the most"]);
}

#[test]
fn several_images_are_those_of_the_seeds_that_follow() {
    let daemon = Daemon::start();
    let asked = |seed: u64| json!({"prompt": "a fox", "seed": seed, "num_inference_steps": 2});
    let mut body = asked(7);
    body["n"] = 3.into();
    let answer = daemon.post("/generate", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let images = answer.json()["images"].as_array().unwrap().clone();
    let seeds: Vec<_> = images.iter().map(|image| image["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [7, 8, 9]);
    for image in images {
        let alone = daemon.post("/generate", &asked(image["seed"].as_u64().unwrap()));
        assert_eq!(image["data"], BASE64.encode(&alone.body), "seed {}", image["seed"]);
    }
}

#[test]
fn an_image_is_drawn_over_another() {
    let daemon = Daemon::start();
    let (source, mask) = (png(75, 66), png(8, 8));
    let body = json!({
        "prompt": "a fox", "seed": 7, "denoise_strength": 0.5, "init_image": BASE64.encode(&source),
        "mask_image": format!("data:image/png;base64,{}", BASE64.encode(&mask)),
    });
    let drawn = daemon.post("/generate", &body);
    assert_eq!(drawn.status, 200, "{}", drawn.text());
    let image = image::load_from_memory(&drawn.body).unwrap();
    assert_eq!((image.width(), image.height()), (72, 64));
    assert!(String::from_utf8_lossy(&drawn.body).contains("Denoising strength: 0.5"));
    let same = daemon.post_form(
        "/generate",
        &[
            ("prompt", None, b"a fox"),
            ("seed", None, b"7"),
            ("denoise_strength", None, b"0.5"),
            ("init_image", Some("source.png"), &source),
            ("mask_image", Some("mask.png"), &mask),
        ],
    );
    assert!(same.body == drawn.body, "another image from a form: {}", same.status);
    let job = daemon.get(&format!("/api/jobs/{}", drawn.header("x-job-id"))).json();
    assert_eq!(job["request"]["source"], json!({"denoise_strength": 0.5, "mask": true}), "{job}");
}

#[test]
fn what_the_text_encoder_did_not_see_is_said() {
    let daemon = Daemon::start();
    let prompt = "a fox ".repeat(36) + "in the snöw, 狐";
    let body = json!({"prompt": prompt, "num_inference_steps": 1});
    let answer = daemon.post("/generate", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    // As the tokenizer writes it.
    assert_eq!(answer.header("x-prompt-truncated"), "%C3%B6w%20%2C%20%E7%8B%90");
    let json = accepting(&daemon, "application/json", &body).json();
    assert_eq!(json["prompt_truncated"], "öw , 狐");
    let seen = daemon.post("/generate", &json!({"prompt": "a fox", "num_inference_steps": 1}));
    assert_eq!(seen.header("x-prompt-truncated"), "");
}

#[test]
fn what_the_model_cannot_do_is_an_invalid_request() {
    let daemon = Daemon::start();
    let answer = daemon.post("/generate", &json!({"prompt": "x", "clip_skip": 12}));
    let errors = refused(&answer);
    assert!(errors[0].starts_with("/clip_skip clip_skip 12 leaves nothing"), "{errors:?}");
    assert_ne!(answer.header("x-job-id"), "");
    assert_eq!(daemon.post("/generate", &json!({"prompt": "x"})).status, 200);
}

#[test]
fn a_lora_that_is_not_below_lora_root_is_not_there() {
    let folder = folder(&format!("lora_root: loras{MODES}"));
    let loras = folder.path().join("loras");
    fs::create_dir_all(loras.join("styles")).unwrap();
    for file in ["ink.safetensors", "styles/oil.safetensors", "oil.safetensors"] {
        fs::write(loras.join(file), "").unwrap();
    }
    let daemon = Daemon::start_in(folder, &[]);
    let outside = "must stay inside its root folder: '..' is not allowed";
    for (prompt, loras, expected) in [
        ("x", json!([{"path": "../models/tiny.safetensors"}]), format!("/loras/0/path {outside}")),
        (
            "x",
            json!([{"path": "/etc/passwd"}]),
            "/loras/0/path must be relative to its root folder, not an absolute path".into(),
        ),
        (
            "x",
            json!([{"path": "ink.safetensor"}]),
            "/loras/0/path there is no LoRA file 'ink.safetensor'; did you mean 'ink.safetensors'?"
                .into(),
        ),
        ("x", json!([{"name": "tiny"}]), "/loras/0/name there is no LoRA 'tiny'".into()),
        (
            "x <lora:inc:0.5>",
            json!([]),
            "/prompt there is no LoRA 'inc'; did you mean 'ink'?".into(),
        ),
        (
            "<lora:oil>",
            json!([]),
            "/prompt 'oil' is the name of several LoRAs: name one of them by its path \
             (oil.safetensors, styles/oil.safetensors)"
                .into(),
        ),
    ] {
        let answer = daemon.post("/generate", &json!({"prompt": prompt, "loras": loras}));
        assert!(!answer.text().contains(daemon.path().to_str().unwrap()), "{}", answer.text());
        assert_eq!(refused(&answer), [expected]);
    }
}

#[test]
fn large_bodies_wait_for_room_and_small_ones_do_not() {
    let daemon = Daemon::start();
    let address = daemon.url.strip_prefix("http://").unwrap();
    // Says that it brings so many MiB, and brings nothing yet.
    let announce = |mib: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!(
            "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            mib << 20
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let holders: Vec<_> = (0..8).map(|_| announce(64)).collect();
    // They have come before these.
    let small = || daemon.post("/generate", &json!({"prompt": "x", "num_inference_steps": 1}));
    assert_eq!(small().status, 200);
    let mut large = announce(2);
    large
        .write_all(format!("{{\"prompt\": \"x\"}}{}", " ".repeat((2 << 20) - 15)).as_bytes())
        .unwrap();
    // Time enough, had it been read.
    (0..20).for_each(|_| assert_eq!(small().status, 200));
    assert!(!has_answer(&large));
    drop(holders);
    let answer = read_to_end(large);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{:.200}", answer);
}
