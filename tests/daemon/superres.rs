//! Images that are made larger: those that are drawn, and those that are sent.

use std::{fs, io::Cursor, ops::ControlFlow, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use diffused::{
    engine::upscale::{Upscaler, upscale},
    image::{Rgb, lanczos},
    modes::CheckpointRef,
};
use image::RgbImage;
use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, folder};

const JSON: (&str, &str) = ("content-type", "application/json");

fn net(name: &str) -> CheckpointRef {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden/upscalers");
    CheckpointRef { name: name.to_owned(), path: golden.join(format!("{name}.safetensors")) }
}

/// A daemon with an upscaler of random weights, called `esrgan/x4.safetensors`.
fn with_net() -> Daemon {
    let folder = folder(&format!("superres: {{model: esrgan/x4.safetensors}}{MODES}"));
    let nets = folder.path().join("models/esrgan");
    fs::create_dir(&nets).unwrap();
    for name in ["x4", "x2"] {
        fs::copy(net(name).path, nets.join(format!("{name}.safetensors"))).unwrap();
    }
    Daemon::start_in(folder, &[])
}

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| [(x * 9) as u8, (y * 7) as u8, (x * y) as u8].into())
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// What an answer's body shows.
#[track_caller]
fn shown(answer: &Answer) -> RgbImage {
    assert_eq!(answer.status, 200, "{}", answer.text());
    image::load_from_memory(&answer.body).unwrap().to_rgb8()
}

fn larger(of: &RgbImage, upscaler: Option<&Upscaler>, magnitude: u32) -> RgbImage {
    let image = Rgb { width: of.width(), height: of.height(), bytes: of.as_raw() };
    let made = upscale(upscaler, image, magnitude, &mut || ControlFlow::Continue(())).unwrap();
    RgbImage::from_raw(made.width, made.height, made.bytes).unwrap()
}

#[track_caller]
fn refused(answer: &Answer, path: &str) -> Vec<String> {
    let problem = answer.problem(422, "invalid-request", path);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|e| text(&e["pointer"]) + " " + &text(&e["detail"])).collect()
}

#[test]
fn a_drawn_image_is_made_larger_by_lanczos_where_no_model_is_named() {
    let daemon = Daemon::start();
    let mut body = json!({"prompt": "a fox", "seed": 7, "num_inference_steps": 1});
    let plain = daemon.post("/generate", &body);
    assert_eq!((plain.header("x-superres"), plain.header("x-superres-model")), ("0", ""));
    body["superres"] = true.into();
    let answer = daemon.post("/generate", &body);
    let image = shown(&answer);
    assert_eq!((answer.header("x-superres"), answer.header("x-superres-model")), ("1", "lanczos"));
    let of = shown(&plain);
    let of = Rgb { width: of.width(), height: of.height(), bytes: of.as_raw() };
    assert_eq!((image.dimensions(), image.as_raw()), ((128, 128), &lanczos(of, (128, 128))));
    let says = "Size: 64x64, Model: tiny, Postprocess upscale by: 2, Postprocess upscaler: Lanczos";
    assert!(String::from_utf8_lossy(&answer.body).contains(says));

    // Several, the first of them the same; and as what was asked for, whatever is accepted.
    let more = json!({"n": 2, "superres_magnitude": 2, "superres_format": "jpeg"});
    more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
    let answer = daemon.post("/generate", &body).json();
    assert_eq!(answer["superres_model"], "lanczos");
    let images = answer["images"].as_array().unwrap();
    assert_eq!((images.len(), &images[0]["media_type"]), (2, &json!("image/jpeg")));
    let first = BASE64.decode(images[0]["data"].as_str().unwrap()).unwrap();
    assert_eq!(image::load_from_memory(&first).unwrap().width(), 256);
    body["n"] = 1.into();
    let headers = [JSON, ("accept", "image/webp")];
    let one = daemon.send("POST", "/generate", &headers, body.to_string().as_bytes());
    assert_eq!(one.header("content-type"), "image/jpeg");
}

#[test]
fn a_named_network_makes_images_larger() {
    let daemon = with_net();
    let upscaler = Upscaler::load(&net("x4")).unwrap();
    let of = picture(21, 10);
    for magnitude in [1, 2, 3] {
        let magnitude_text = magnitude.to_string();
        let file = png(&of);
        let parts = [
            ("image", Some("a.png"), &file[..]),
            ("superres_magnitude", None, magnitude_text.as_bytes()),
        ];
        let form = daemon.post_form("/superres", &parts);
        let expected = larger(&of, Some(&upscaler), magnitude);
        assert_eq!(expected.dimensions(), (21 << magnitude, 10 << magnitude));
        assert!(shown(&form) == expected, "another image, magnitude {magnitude}");
        let body = json!({"image": BASE64.encode(&file), "superres_magnitude": magnitude});
        let json = daemon.post("/superres", &body);
        assert!(json.body == form.body, "another image from JSON");
        let told = [json.header("x-superres"), json.header("x-superres-model")];
        assert_eq!(told, ["1", "esrgan/x4.safetensors"]);
        let job = daemon.get(&format!("/api/jobs/{}", json.header("x-job-id"))).json();
        let superres = json!({"magnitude": magnitude, "model": "esrgan/x4.safetensors"});
        assert_eq!((&job["type"], &job["superres"]), (&json!("upscale"), &superres), "{job}");
        assert!(job["superres_ms"].is_u64() && !job.to_string().contains("/models/"), "{job}");
    }
    // One that is drawn.
    let mut body = json!({"prompt": "a fox", "seed": 7, "num_inference_steps": 1});
    let plain = shown(&daemon.post("/generate", &body));
    body["superres"] = true.into();
    body["superres_magnitude"] = 2.into();
    let answer = daemon.post("/generate", &body);
    assert!(shown(&answer) == larger(&plain, Some(&upscaler), 2), "another image");
    assert_eq!(answer.header("x-superres-model"), "esrgan/x4.safetensors");
    let job = daemon.get(&format!("/api/jobs/{}", answer.header("x-job-id"))).text();
    assert!(job.contains("esrgan/x4") && !job.contains(daemon.path().to_str().unwrap()), "{job}");
    let inventory = daemon.get("/api/inventory").text();
    assert!(inventory.contains(r#""kind":"upscaler""#), "{inventory}");
}

#[test]
fn another_network_is_in_force_when_it_is_named() {
    let daemon = with_net();
    let of = picture(12, 8);
    let body = json!({"image": BASE64.encode(png(&of)), "superres_magnitude": 2});
    for (line, name, upscaler) in [
        ("superres: esrgan/x2.safetensors", "esrgan/x2.safetensors", Some("x2")),
        ("", "lanczos", None),
    ] {
        fs::write(daemon.config_file(), format!("{line}{MODES}")).unwrap();
        let changes = daemon.post("/api/modes/reload", &json!({})).text();
        assert!(changes.contains("superres"), "{changes}");
        let answer = daemon.post("/superres", &body);
        assert_eq!(answer.header("x-superres-model"), name);
        let upscaler = upscaler.map(|name| Upscaler::load(&net(name)).unwrap());
        assert!(shown(&answer) == larger(&of, upscaler.as_ref(), 2), "{name}: another image");
    }
    // A file in its place is another network.
    let text = format!("superres: esrgan/x2.safetensors{MODES}");
    fs::write(daemon.config_file(), text).unwrap();
    daemon.post("/api/modes/reload", &json!({}));
    let file = daemon.path().join("models/esrgan/x2.safetensors");
    for name in ["x2", "x4"] {
        let new = daemon.path().join("new");
        fs::copy(net(name).path, &new).unwrap();
        fs::rename(new, &file).unwrap();
        let upscaler = Upscaler::load(&net(name)).unwrap();
        let answer = daemon.post("/superres", &body);
        assert!(shown(&answer) == larger(&of, Some(&upscaler), 2), "{name}: another image");
    }
}

#[test]
fn it_can_be_fetched_later_as_what_was_asked_for() {
    let daemon = with_net();
    let body = json!({"image": BASE64.encode(png(&picture(12, 8))), "superres_format": "webp"});
    let headers = [JSON, ("prefer", "respond-async"), ("idempotency-key", "one")];
    let send = || daemon.send("POST", "/superres", &headers, body.to_string().as_bytes());
    let accepted = send();
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    assert_eq!(accepted.header("preference-applied"), "respond-async");
    assert_eq!(send().json()["id"], accepted.json()["id"], "the same job");
    let custom = json!({"name": "upscale", "args": body});
    let custom = daemon.post("/api/jobs/custom", &custom);
    assert_eq!(custom.status, 202, "{}", custom.text());
    for id in [accepted.header("x-job-id"), custom.header("x-job-id")] {
        let job = daemon.finished_job(id);
        assert_eq!((&job["state"], &job["images"]), (&json!("done"), &json!(1)), "{job}");
        let image = daemon.get(&format!("/api/jobs/{id}/image"));
        assert_eq!(image.header("content-type"), "image/webp");
        assert_eq!(image.header("x-superres-model"), "esrgan/x4.safetensors");
        assert_eq!(shown(&image).dimensions(), (24, 16));
        let png = daemon.get(&format!("/api/jobs/{id}/image/0?format=png"));
        assert_eq!(png.header("content-type"), "image/png");
        assert_eq!(daemon.get(&format!("/api/jobs/{id}/image/1")).status, 404);
    }
}

#[test]
fn what_an_image_says_of_itself_is_kept() {
    let daemon = Daemon::start();
    let body = json!({"prompt": "a fox, 狐", "seed": 7, "num_inference_steps": 1});
    let drawn = daemon.post("/generate", &body);
    let larger = daemon.post_form("/superres", &[("image", Some("a.png"), &drawn.body)]);
    let text = String::from_utf8_lossy(&larger.body).into_owned();
    for part in [
        "a fox, 狐\nSteps: 1, ",
        "Size: 64x64, Model: tiny, ",
        ", Postprocess upscale by: 2, Postprocess upscaler: Lanczos",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn what_cannot_be_made_larger_is_refused_by_its_field() {
    let daemon = Daemon::start();
    let drawing = |more: Value| {
        let mut body = json!({"prompt": "x"});
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        refused(&daemon.post("/generate", &body), "/generate")
    };
    let needs = |name: &str| format!("/{name} needs 'superres': true");
    assert_eq!(drawing(json!({"superres_magnitude": 2})), [needs("superres_magnitude")]);
    let off = json!({"superres": false, "superres_format": "png", "superres_magnitude": null});
    assert_eq!(drawing(off), [needs("superres_format")]);
    let wrong = json!({"superres": true, "superres_magnitude": 0, "superres_quality": 101});
    assert_eq!(
        drawing(wrong),
        [
            "/superres_magnitude 0 is not a whole number from 1 to 3",
            "/superres_quality 101 is not a whole number from 1 to 100",
        ]
    );
    let large = json!({"superres": true, "superres_magnitude": 3, "size": "1024x512", "n": 2});
    let says =
        "/superres_magnitude makes 2 images of 8192x4096 of 1024x512; 33554432 pixels are the most";
    assert_eq!(drawing(large), [says]);
    assert_eq!(
        drawing(json!({"superres": 1})),
        ["/superres expected true or false, found a number"]
    );

    let sent = |body: Value| refused(&daemon.post("/superres", &body), "/superres");
    assert_eq!(sent(json!({})), ["/image is required"]);
    let no_image = json!({"image": BASE64.encode("GIF89a")});
    assert_eq!(sent(no_image), ["/image is not a PNG, JPEG or WebP file"]);
    let file = BASE64.encode(png(&picture(2049, 2048)));
    let makes = |width: u32, height: u32| {
        format!("makes an image of {width}x{height} of 2049x2048; 33554432 pixels are the most")
    };
    let body = json!({"image": file, "superres_magnitude": 2});
    assert_eq!(sent(body), [format!("/superres_magnitude {}", makes(8196, 8192))]);
    let file = BASE64.encode(png(&picture(4096, 2049)));
    let says = "/image makes an image of 8192x4098 of 4096x2049; 33554432 pixels are the most";
    assert_eq!(sent(json!({"image": file})), [says]);
    let custom = json!({"name": "upscale", "args": {"superres_magnitude": 9}});
    let errors = refused(&daemon.post("/api/jobs/custom", &custom), "/api/jobs/custom");
    let magnitude = "/args/superres_magnitude 9 is not a whole number from 1 to 3";
    assert_eq!(errors, [magnitude, "/args/image is required"]);
}

#[test]
fn a_file_that_is_no_upscaler_costs_its_own_job_alone() {
    let daemon = Daemon::start_in(folder(&format!("superres: tiny.safetensors{MODES}")), &[]);
    let mut body = json!({"prompt": "x", "num_inference_steps": 1, "superres": true});
    let answer = daemon.post("/generate", &body);
    let problem = answer.problem(500, "model-unusable", "/generate");
    let says = "tiny.safetensors: holds no upscaler that is known here; an RRDBNet (ESRGAN, Real-ESRGAN) is expected";
    assert_eq!(problem["detail"], says);
    let sent = json!({"image": BASE64.encode(png(&picture(8, 8)))});
    let problem = daemon.post("/superres", &sent).problem(500, "model-unusable", "/superres");
    assert_eq!(problem["detail"], says);
    body["superres"] = false.into();
    assert_eq!(daemon.post("/generate", &body).status, 200);
}

#[test]
fn it_is_cancelled_between_two_tiles_and_gives_its_memory_back() {
    let daemon = with_net();
    // A few hundred tiles.
    let body = json!({"image": BASE64.encode(png(&picture(2000, 2000)))});
    let headers = [JSON, ("prefer", "respond-async")];
    let accepted = daemon.send("POST", "/superres", &headers, body.to_string().as_bytes());
    let path = format!("/api/jobs/{}", accepted.header("x-job-id"));
    crate::support::wait_for("a tile", || {
        let job = daemon.get(&path).json();
        assert_ne!(job["state"], "done", "{job}");
        (job["step"].as_u64() > Some(0)).then_some(())
    });
    assert!(daemon.get(&path).json()["steps"].as_u64() > Some(100));
    let cancelled = daemon.send("DELETE", &path, &[], b"");
    assert!([200, 202].contains(&cancelled.status), "{}", cancelled.text());
    assert_eq!(daemon.finished_job(accepted.header("x-job-id"))["state"], "cancelled");

    let weights = || daemon.get("/api/vram").json()["weights_gb"].as_f64().unwrap();
    let with_upscaler = weights();
    let all = json!({"all": true, "wait": true});
    assert_eq!(daemon.post("/api/models/unload", &all).status, 200);
    assert!(with_upscaler > 0.0 && weights() == 0.0, "{with_upscaler} {}", weights());
    // And it comes back.
    let small = json!({"image": BASE64.encode(png(&picture(8, 8)))});
    let answer = daemon.post("/superres", &small);
    assert_eq!(answer.header("x-superres-model"), "esrgan/x4.safetensors");
}
