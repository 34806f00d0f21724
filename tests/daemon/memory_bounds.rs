//! What requests and answers may take of the daemon's memory, however many there are and whether
//! their clients stay. The daemon's peak is compared with bounds that are several times exceeded
//! where each request takes what it likes.

#![cfg(target_os = "linux")]

use std::{
    fs,
    io::{Cursor, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    loras::write_lora,
    places::given_out,
    support::{Answer, DEADLINE, Daemon, MODES, folder, has_answer, wait_for},
};

const MIB: usize = 1 << 20;

/// The most that the daemon has had in memory since [`forget_peak`], in MiB.
pub fn peak(daemon: &Daemon) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib = line.trim().strip_suffix(" kB").unwrap();
    kib.parse::<usize>().unwrap() >> 10
}

pub fn forget_peak(daemon: &Daemon) {
    fs::write(format!("/proc/{}/clear_refs", daemon.id()), "5").unwrap();
}

/// Begins a request on a connection of its own; dropping that is hanging up.
pub fn begin(daemon: &Daemon, head: &str, body: &[u8]) -> TcpStream {
    let address = daemon.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!("{head}\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream
}

pub fn status_of(mut stream: TcpStream) -> u16 {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[9..12]).parse().unwrap()
}

fn form(path: &str, parts: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, bytes) in parts {
        let disposition = format!("content-disposition: form-data; name=\"{name}\"");
        body.extend(format!("--x-x\r\n{disposition}; filename=\"x\"\r\n\r\n").bytes());
        body.extend(*bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--x-x--\r\n");
    let head = format!(
        "POST {path} HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=x-x\r\ncontent-length: {}",
        body.len()
    );
    (head, body)
}

/// An image that an encoder can do little about.
pub fn noise(side: u32) -> image::RgbImage {
    let mut state = 1_u32;
    image::RgbImage::from_fn(side, side, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [_, r, g, b] = state.to_be_bytes();
        [r, g, b].into()
    })
}

pub fn file(image: &image::RgbImage, format: image::ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, format).unwrap();
    file.into_inner()
}

fn small_png() -> Vec<u8> {
    file(&noise(8), image::ImageFormat::Png)
}

/// A PNG of nothing, four channels of 16 bits.
fn deep_png(side: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side, side);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Sixteen);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0; 8 * (side * side) as usize]).unwrap();
    writer.finish().unwrap();
    file
}

/// An image that is made larger, as a client does it that waits; behind all that is in work.
#[track_caller]
fn make_larger(daemon: &Daemon) {
    let answer = daemon.post_form("/superres", &[("image", Some("x"), &small_png())]);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn who_hangs_up_gives_back_no_memory_that_is_in_use() {
    let daemon = Daemon::start();
    make_larger(&daemon);
    let deep = deep_png(2896); // 64 MiB of pixels
    // A JPEG is decoded as a whole.
    let flat = file(&image::RgbImage::new(2896, 2896), image::ImageFormat::Jpeg);
    for (path, parts) in [
        ("/superres", vec![("image", &flat[..]), ("superres_magnitude", b"1")]),
        ("/generate", vec![("init_image", &deep[..]), ("prompt", b"x"), ("size", b"64x64")]),
    ] {
        let (head, body) = form(path, &parts);
        forget_peak(&daemon);
        for _ in 0..40 {
            let before = given_out(&daemon, "work");
            let stream = begin(&daemon, &head, &body);
            // Whoever hangs up earlier has nothing decoded.
            let begun = || (given_out(&daemon, "work") > before).then_some(());
            wait_for("the image to be decoded", begun);
            drop(stream);
        }
        make_larger(&daemon);
        wait_for("the queue to be empty", || {
            let waiting = daemon.get("/api/jobs?state=queued,loading,running").json();
            (waiting["jobs"] == json!([])).then_some(())
        });
        let peak = peak(&daemon);
        assert!(peak < 300, "{path}: {peak} MiB");
    }
}

#[test]
fn kept_images_are_sent_piece_by_piece_and_converted_in_turn() {
    let daemon = Daemon::start();
    let parts = [
        ("image", Some("x"), &file(&noise(512), image::ImageFormat::Png)[..]),
        ("superres_magnitude", None, b"3"),
    ];
    let mut body = Vec::new();
    for (name, _, bytes) in parts {
        body.extend(
            format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n").bytes(),
        );
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--x--\r\n");
    let headers =
        [("content-type", "multipart/form-data; boundary=x"), ("prefer", "respond-async")];
    let job = daemon.send("POST", "/superres", &headers, &body).json();
    let id = job["id"].as_str().unwrap().to_owned();
    assert_eq!(daemon.finished_job(&id)["state"], "done");
    let image = format!("/api/jobs/{id}/image");

    // 4096x4096, 48 MiB of pixels.
    forget_peak(&daemon);
    let readers: Vec<_> =
        (0..30).map(|_| begin(&daemon, &format!("GET {image} HTTP/1.1"), b"")).collect();
    readers.iter().for_each(|it| wait_for("an answer", || has_answer(it).then_some(())));
    let with_readers = peak(&daemon);
    assert!(with_readers < 250, "{with_readers} MiB for slow readers");
    // Each of them has its file, once it reads.
    let mut answer = Vec::new();
    readers.into_iter().next().unwrap().read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let (head, body) = (String::from_utf8_lossy(&answer[..head]), &answer[head + 4..]);
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    assert!(body.ends_with(b"IEND\xaeB`\x82") && body.len() > 10 * MIB, "{}", body.len());

    let convert =
        |format: &str| begin(&daemon, &format!("GET {image}?format={format} HTTP/1.1"), b"");
    for format in ["webp", "jpeg"] {
        for _ in 0..8 {
            let before = given_out(&daemon, "work");
            let stream = convert(format);
            let begun = || (given_out(&daemon, "work") > before).then_some(());
            wait_for("the conversion to begin", begun);
            drop(stream);
        }
    }
    let patient: Vec<_> = (0..6).map(|_| convert("jpeg")).collect();
    make_larger(&daemon);
    // On a slow machine some of them wait for too long.
    let statuses: Vec<u16> = patient.into_iter().map(status_of).collect();
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&200), "{statuses:?}");
    let converting = peak(&daemon);
    assert!(converting < 500, "{converting} MiB for conversions");
}

/// An image in JSON is sent in base64, which is made while it is sent.
#[test]
fn an_image_in_json_is_the_image() {
    use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
    let daemon = Daemon::start();
    let ask = |accept: &str| {
        let body = json!({"prompt": "a \"<file>\"", "seed": 1, "num_inference_steps": 1});
        let headers = [("content-type", "application/json"), ("accept", accept)];
        daemon.send("POST", "/generate", &headers, body.to_string().as_bytes())
    };
    let (image, in_json) = (ask("image/png"), ask("application/json"));
    assert_eq!(image.header("content-length"), image.body.len().to_string());
    assert_eq!(in_json.header("content-length"), in_json.body.len().to_string());
    let data = in_json.json()["images"][0]["data"].as_str().unwrap().to_owned();
    assert!(BASE64.decode(data).unwrap() == image.body);
}

#[test]
fn text_and_profiles_in_images_inflate_to_nothing() {
    let daemon = Daemon::start();
    let bomb = vec![b'A'; 100 * MIB];
    let write = |write: &dyn Fn(&mut png::Info)| {
        let mut info = png::Info::with_size(8, 8);
        (info.color_type, info.bit_depth) = (png::ColorType::Rgb, png::BitDepth::Eight);
        write(&mut info);
        let mut file = Vec::new();
        let encoder = png::Encoder::with_info(&mut file, info).unwrap();
        encoder.write_header().unwrap().write_image_data(&[0; 3 * 64]).unwrap();
        file
    };
    let text = String::from_utf8(bomb.clone()).unwrap();
    let mut chunk = png::text_metadata::ITXtChunk::new("parameters", text.clone());
    chunk.compress_text().unwrap();
    chunk.compressed = true;
    let itxt = write(&|info| info.utf8_text.push(chunk.clone()));
    let ztxt = png::text_metadata::ZTXtChunk::new("parameters", text);
    let ztxt = write(&|info| info.compressed_latin1_text.push(ztxt.clone()));
    let iccp = write(&|info| info.icc_profile = Some(bomb.clone().into()));
    make_larger(&daemon);
    forget_peak(&daemon);
    for (what, bomb) in [("iTXt", itxt), ("zTXt", ztxt), ("iCCP", iccp)] {
        assert!(bomb.len() < MIB, "{what}: {}", bomb.len());
        for (path, name) in [("/superres", "image"), ("/generate", "init_image")] {
            let parts = [
                (name, Some("x"), &bomb[..]),
                ("prompt", None, &b"x"[..]),
                ("num_inference_steps", None, b"2"),
            ];
            let parts = if path == "/superres" { &parts[..1] } else { &parts[..] };
            let answer = daemon.post_form(path, parts);
            assert_eq!(answer.status, 200, "{what} {path}: {}", answer.text());
        }
    }
    let peak = peak(&daemon);
    assert!(peak < 80, "{peak} MiB");
}

#[test]
fn large_bodies_take_a_bounded_amount_of_memory() {
    let daemon = Daemon::start();
    forget_peak(&daemon);
    let head = format!(
        "POST /generate HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}",
        64 * MIB
    );
    // Nobody of them comes to an end: a quarter is there, or does not get in.
    let uploads: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = begin(&daemon, &head, b"");
            stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            let _ = stream.write_all(&vec![b' '; 16 * MIB]);
            stream
        })
        .collect();
    // A small one needs no place.
    let small = || daemon.post("/generate", &json!({"prompt": "x", "num_inference_steps": 1}));
    assert_eq!(small().status, 200);
    let peak = peak(&daemon);
    assert!(peak < 250, "{peak} MiB");
    for mut stream in uploads {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer); // a reset is an end, too
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.get(9..12).unwrap_or_default();
        assert!(["408", "503", ""].contains(&status), "{answer}");
    }
    let long = json!({"prompt": "x", "num_inference_steps": 1, "tags": ["x".repeat(MIB)]});
    assert_eq!(daemon.post("/generate", &long).status, 422, "it is read again");
}

#[test]
fn idle_uploads_keep_no_other_out() {
    let daemon = Daemon::start();
    let head =
        "POST /generate HTTP/1.1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked";
    let idle: Vec<_> = (0..8).map(|_| begin(&daemon, head, b"1\r\n{\r\n")).collect();
    let mut image = file(&noise(64), image::ImageFormat::Jpeg);
    image.extend(vec![0; 4 * MIB]); // trailing bytes are ignored
    let parts = [
        ("init_image", Some("x"), &image[..]),
        ("prompt", None, b"x"),
        ("num_inference_steps", None, b"2"),
    ];
    let answer = daemon.post_form("/generate", &parts);
    assert_eq!(answer.status, 200, "{}", answer.text());
    // They are told that they are too slow, long before two minutes have passed.
    for stream in idle {
        assert_eq!(status_of(stream), 408);
    }
}

#[test]
fn arguments_of_custom_jobs_take_a_bounded_amount_of_memory() {
    let modes = format!("{MODES}custom_jobs: {{job: {{command: [cat]}}}}\n");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    assert_eq!(daemon.post("/api/queue/pause", &json!({})).status, 200);
    forget_peak(&daemon);

    let lists = format!("{{\"name\": \"job\", \"args\": [{}[]]}}", "[],".repeat(340_000));
    let headers = [("content-type", "application/json")];
    let problem = daemon.send("POST", "/api/jobs/custom", &headers, lists.as_bytes());
    let problem = problem.problem(400, "malformed-request", "/api/jobs/custom");
    assert!(problem["detail"].as_str().unwrap().contains("more than 10000 values"), "{problem}");

    let long = json!({"name": "job", "args": "x".repeat(MIB - 100)});
    let answers: Vec<Answer> = (0..40).map(|_| daemon.post("/api/jobs/custom", &long)).collect();
    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    assert!((30..=33).contains(&accepted), "{accepted}");
    let refused = answers.last().unwrap();
    let problem = refused.problem(429, "queue-full", "/api/jobs/custom");
    assert_eq!(
        problem["detail"],
        "the arguments of waiting custom jobs take 32 MiB already; try again later"
    );
    assert!(refused.header("retry-after").parse::<u32>().unwrap() > 0);
    // Others may still wait.
    let short = daemon.post("/api/jobs/custom", &json!({"name": "unload_all"}));
    assert_eq!(short.status, 202, "{}", short.text());
    let peak = peak(&daemon);
    assert!(peak < 200, "{peak} MiB");

    assert_eq!(daemon.post("/api/queue/clear", &json!({})).status, 200);
    assert_eq!(daemon.post("/api/jobs/custom", &long).status, 202, "there is room again");
}

#[test]
fn a_page_of_jobs_ends_before_it_is_large() {
    let command = json!(["/bin/sh", "-c", "head -c 900000 /dev/zero | tr '\\0' x"]);
    let modes = format!("{MODES}custom_jobs: {{job: {{command: {command}}}}}\n");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let ids: Vec<String> = (0..7)
        .map(|_| {
            let job = daemon.post("/api/jobs/custom", &json!({"name": "job"})).json();
            let id = job["id"].as_str().unwrap().to_owned();
            assert_eq!(daemon.finished_job(&id)["state"], "done");
            id
        })
        .collect();
    let mut listed = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = daemon.get(&format!("/api/jobs?limit=200{cursor}"));
        assert!(page.body.len() < 5 * MIB, "{}", page.body.len());
        let page = page.json();
        let jobs = page["jobs"].as_array().unwrap();
        let custom = jobs.iter().filter(|job| job["type"] == "custom");
        listed.extend(custom.map(|job| job["id"].as_str().unwrap().to_owned()));
        let Value::String(next) = &page["next_cursor"] else { break };
        cursor = format!("&cursor={next}");
    }
    listed.reverse();
    assert_eq!(listed, ids);
}

#[test]
fn pipelines_of_requests_loras_are_few() {
    let folder = folder(&format!("lora_root: loras{MODES}"));
    let loras = folder.path().join("loras");
    fs::create_dir(&loras).unwrap();
    let module = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    write_lora(&loras.join("ink.safetensors"), 32, &[module]);
    let daemon = Daemon::start_in(folder, &[]);
    let draw = |strength: f32| {
        let lora = json!({"name": "ink", "strength": strength});
        let body = json!({"prompt": "x", "num_inference_steps": 1, "loras": [lora]});
        let answer = daemon.post("/generate", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let loaded = || daemon.get("/api/vram").json()["models"].as_array().unwrap().len();
    (1..=8).for_each(|at| draw(0.1 * at as f32));
    assert_eq!(loaded(), 1 + 4, "the mode's own, and the four that were used last");

    let text = fs::read_to_string(daemon.config_file()).unwrap();
    fs::write(daemon.config_file(), format!("{text}memory: {{max_request_pipelines: 2}}\n"))
        .unwrap();
    assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 200);
    draw(0.95);
    assert_eq!(loaded(), 1 + 2);
}
