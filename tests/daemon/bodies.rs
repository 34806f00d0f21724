//! What of a request's body is refused before, or without, understanding it.

use std::{
    io::{Cursor, Read, Write},
    net::TcpStream,
};

use serde_json::json;

use crate::support::{DEADLINE, Daemon};

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_asked_for() {
    let daemon = Daemon::start();
    let address = daemon.url.strip_prefix("http://").unwrap();
    for (path, content_type, length) in [
        ("/generate", "application/json", 70 << 20),
        ("/superres", "multipart/form-data; boundary=x", 70 << 20),
        ("/api/jobs/custom", "application/json", 2 << 20),
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: \
             {content_type}\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer); // a reset is an end, too
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{path}: {answer}");
    }
}

#[test]
fn a_compressed_body_is_refused() {
    let daemon = Daemon::start();
    for (path, content_type) in [
        ("/generate", "application/json"),
        ("/generate", "multipart/form-data; boundary=x"),
        ("/api/jobs/custom", "application/json"),
    ] {
        let headers = [("content-type", content_type), ("content-encoding", "gzip")];
        let answer = daemon.send("POST", path, &headers, b"\x1f\x8b");
        let problem = answer.problem(415, "unsupported-media-type", path);
        assert!(problem["detail"].as_str().unwrap().contains("gzip"), "{problem}");
    }
    let headers = [("content-type", "application/json"), ("content-encoding", "identity")];
    let answer = daemon.send("POST", "/generate", &headers, br#"{"prompt": "x"}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let daemon = Daemon::start();
    for (path, body, key) in [
        ("/generate", r#"{"prompt": "x", "n": 1, "prompt": "y"}"#, "prompt"),
        ("/generate", r#"{"prompt": "x", "loras": [{"name": "a", "name": "b"}]}"#, "name"),
        ("/api/jobs/custom", r#"{"name": "unload_all", "name": "warm_up"}"#, "name"),
    ] {
        let headers = [("content-type", "application/json")];
        let answer = daemon.send("POST", path, &headers, body.as_bytes());
        let problem = answer.problem(400, "malformed-request", path);
        let says = format!("the body is not JSON: the key \"{key}\" is there twice");
        assert!(problem["detail"].as_str().unwrap().starts_with(&says), "{problem}");
    }
}

#[test]
fn a_jpeg_that_was_cut_short_is_refused() {
    let daemon = Daemon::start();
    let image = image::RgbImage::from_fn(64, 64, |x, y| [x as u8, y as u8, (x * y) as u8].into());
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, image::ImageFormat::Jpeg).unwrap();
    let whole = file.into_inner();
    let (half, almost) = (&whole[..whole.len() / 2], &whole[..whole.len() - 1]);
    let trailing = [&whole[..], b"trailing"].concat();
    let prompt = ("prompt", None, &b"x"[..]);
    let says = "is a damaged image: the file ends before the image does";
    for (image, is_whole) in [(half, false), (almost, false), (&whole, true), (&trailing, true)] {
        for (path, name, parts) in [
            ("/superres", "image", &[("image", Some("x"), image)][..]),
            ("/generate", "init_image", &[prompt, ("init_image", Some("x"), image)]),
            (
                "/generate",
                "mask_image",
                &[prompt, ("init_image", Some("x"), &whole), ("mask_image", Some("x"), image)],
            ),
        ] {
            let answer = daemon.post_form(path, parts);
            if is_whole {
                assert_eq!(answer.status, 200, "{}", answer.text());
                continue;
            }
            let problem = answer.problem(422, "invalid-request", path);
            let error = json!({"pointer": format!("/{name}"), "detail": says});
            assert_eq!(problem["errors"], json!([error]));
        }
    }
}
