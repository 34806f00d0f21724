//! What a web page may do to a daemon on the same machine, and what an admin key guards.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use crate::support::{Answer, DEADLINE, Daemon, MODES, command, folder, read_to_end, wait_for};

const LISTS: &str = "http: {hosts: [studio.lan], origins: ['https://studio.example.com']}\n";
const STUDIO: (&str, &str) = ("origin", "https://studio.example.com");
const EVIL: (&str, &str) = ("origin", "https://evil.example");
const CROSS_SITE: (&str, &str) = ("sec-fetch-site", "cross-site");
const JSON: (&str, &str) = ("content-type", "application/json");

/// Sends these very bytes and reads the answer.
fn raw(daemon: &Daemon, request: &str) -> String {
    let mut stream = TcpStream::connect(daemon.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    read_to_end(stream)
}

fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// The headers of every answer.
fn assert_guarded(answer: &str) {
    let head = answer.to_ascii_lowercase();
    for header in ["x-content-type-options: nosniff", "cross-origin-resource-policy: same-origin"] {
        assert!(head.contains(header), "{answer}");
    }
    assert!(!head.contains("access-control-"), "{answer}");
}

#[test]
fn only_names_of_this_daemon_are_answered() {
    let daemon = Daemon::start_in(folder(&format!("{MODES}{LISTS}")), &[]);
    for (host, expected) in [
        ("localhost:4200", 200),
        ("127.0.0.1", 200),
        ("[::1]:4200", 200),
        ("10.0.0.7:4200", 200),
        ("Studio.LAN", 200),
        ("evil.example:4200", 421),
        ("studio.lan.evil.example", 421),
        ("a b", 400),
        ("", 400),
    ] {
        // As a page sees it that has rebound its own name: everything is of its own origin.
        for request in ["GET /api/jobs", "GET /nothing", "PUT /generate", "POST /api/queue/pause"] {
            let page = format!("origin: http://{host}\r\nsec-fetch-site: same-origin\r\n");
            let page = if request.starts_with("GET") { "" } else { page.as_str() };
            let answer = raw(
                &daemon,
                &format!("{request} HTTP/1.1\r\nhost: {host}\r\n{page}connection: close\r\n\r\n"),
            );
            assert_guarded(&answer);
            match expected {
                200 => assert!(![400, 403, 421].contains(&status(&answer)), "{request}: {answer}"),
                _ => assert_eq!(status(&answer), expected, "{request} of {host}: {answer}"),
            }
            if expected == 421 {
                let helps = answer.contains("unknown-host") && answer.contains("http.hosts in");
                assert!(helps, "{answer}");
            }
        }
    }
    let close = "connection: close\r\n\r\n";
    for (request, expected) in [
        (format!("GET /health HTTP/1.1\r\n{close}"), 400),
        (format!("GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n{close}"), 400),
        (format!("GET http://evil.example/ HTTP/1.1\r\nhost: localhost\r\n{close}"), 421),
        (format!("GET http://localhost/health HTTP/1.1\r\nhost: localhost\r\n{close}"), 200),
        ("GET /health HTTP/1.0\r\n\r\n".to_owned(), 200), // HAProxy's plain check
        ("GET /api/jobs HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /api/jobs HTTP/1.0\r\nhost: localhost\r\n\r\n".to_owned(), 200),
    ] {
        let answer = raw(&daemon, &request);
        assert_eq!(status(&answer), expected, "{request}{answer}");
    }
}

/// The forms and bodiless posts that a browser sends for any page without asking first.
fn without_preflight(daemon: &Daemon, headers: &[(&str, &str)]) -> Vec<Answer> {
    let part = "--x\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\nx\r\n--x--\r\n";
    let form = ("content-type", "multipart/form-data; boundary=x");
    let with_form = [headers, &[form]].concat();
    let mut answers = Vec::new();
    for path in ["/generate", "/superres", "/api/jobs"] {
        answers.push(daemon.send("POST", path, &with_form, part.as_bytes()));
    }
    for path in ["/api/queue/pause", "/api/queue/resume", "/api/queue/clear", "/api/modes/reload"] {
        answers.push(daemon.send("POST", path, headers, b""));
    }
    answers
}

#[test]
fn a_foreign_page_changes_nothing_and_reads_no_answer() {
    let daemon = Daemon::start();
    let (null, same_site) = (("origin", "null"), ("sec-fetch-site", "same-site"));
    let foreign = [
        &[EVIL, CROSS_SITE][..],
        &[EVIL],
        &[null],
        &[null, CROSS_SITE],
        &[CROSS_SITE],
        &[same_site],
        &[("origin", "http://localhost:3000"), same_site],
    ];
    for headers in foreign {
        for answer in without_preflight(&daemon, headers) {
            assert_eq!(answer.status, 403, "{headers:?}: {}", answer.text());
            assert_eq!(answer.json()["type"], "foreign-origin");
            assert!(answer.text().contains("http.origins in modes.yaml"), "{}", answer.text());
        }
        let put = daemon.send("PUT", "/api/modes/x", &[headers, &[JSON]].concat(), b"{}");
        assert_eq!(put.status, 403, "{}", put.text());
        let deleted = daemon.send("DELETE", "/api/modes/other", headers, b"");
        assert_eq!(deleted.status, 403, "{}", deleted.text());
        let asks = [headers, &[("access-control-request-method", "PUT")]].concat();
        let preflight = daemon.send("OPTIONS", "/api/modes/x", &asks, b"");
        assert_eq!(preflight.status, 403, "{}", preflight.text());
        // Answered, and kept from the page by the browser.
        let read = daemon.send("GET", "/api/jobs", headers, b"");
        assert_eq!(read.status, 200, "{}", read.text());
        assert_eq!(read.header("access-control-allow-origin"), "");
        assert_eq!(read.header("cross-origin-resource-policy"), "same-origin");
    }
    let jobs = daemon.get("/api/jobs").json()["jobs"].as_array().unwrap().clone();
    let is_of_the_start = |job: &Value| job["type"] == "mode_switch" && job["state"] != "cancelled";
    assert!(jobs.iter().all(is_of_the_start), "{jobs:?}");
    assert_eq!(daemon.get("/api/models/status").json()["paused"], false);
    assert_eq!(daemon.get("/api/modes/other").status, 200);
}

#[test]
fn programs_and_pages_of_the_daemon_itself_are_served_as_before() {
    let daemon = Daemon::start();
    let own = ("origin", daemon.url.as_str());
    for headers in [&[][..], &[own], &[own, ("sec-fetch-site", "same-origin")]] {
        for answer in without_preflight(&daemon, headers) {
            let is_served = matches!(answer.status, 200 | 202 | 422);
            assert!(is_served, "{headers:?}: {} {}", answer.status, answer.text());
        }
    }
    let typed = daemon.send("GET", "/", &[("sec-fetch-site", "none")], b"");
    assert_eq!(typed.status, 200, "{}", typed.text());
    assert_eq!(typed.header("x-content-type-options"), "nosniff");
}

#[test]
fn a_listed_page_has_the_api_and_its_headers() {
    let daemon = Daemon::start_in(folder(&format!("{MODES}{LISTS}")), &[]);
    let asks = [STUDIO, CROSS_SITE, ("access-control-request-method", "PUT")];
    let preflight = daemon.send("OPTIONS", "/api/modes/x", &asks, b"");
    assert_eq!((preflight.status, preflight.body.len()), (204, 0), "{}", preflight.text());
    assert_eq!(preflight.header("access-control-allow-origin"), STUDIO.1);
    assert_eq!(preflight.header("vary"), "origin");
    for (list, words) in [
        ("access-control-allow-methods", &["GET", "POST", "PUT", "DELETE"][..]),
        (
            "access-control-allow-headers",
            &["content-type", "authorization", "x-api-key", "x-admin-key", "if-match", "prefer"],
        ),
        ("access-control-max-age", &["600"]),
    ] {
        let allowed: Vec<&str> = preflight.header(list).split(',').map(str::trim).collect();
        assert!(words.iter().all(|word| allowed.contains(word)), "{list}: {allowed:?}");
    }

    let headers = [STUDIO, CROSS_SITE, JSON];
    let body = json!({"prompt": "x", "num_inference_steps": 1}).to_string();
    let image = daemon.send("POST", "/generate", &headers, body.as_bytes());
    let refused = daemon.send("POST", "/generate", &headers, b"{");
    let nowhere = daemon.send("GET", "/nothing", &headers, b"");
    let read = daemon.send("GET", "/api/jobs", &headers, b"");
    for (answer, expected) in [(&image, 200), (&refused, 400), (&nowhere, 404), (&read, 200)] {
        assert_eq!(answer.status, expected, "{}", answer.text());
        assert_eq!(answer.header("access-control-allow-origin"), STUDIO.1);
        assert_eq!(answer.header("cross-origin-resource-policy"), "cross-origin");
        let exposed: Vec<&str> =
            answer.header("access-control-expose-headers").split(", ").collect();
        for name in ["X-Seed", "X-Mode", "X-Job-Id", "Location", "ETag", "Retry-After"] {
            assert!(exposed.contains(&name), "{exposed:?}");
        }
    }
    // Under a foreign name not even a listed page is answered.
    let rebound = format!("GET / HTTP/1.1\r\nhost: evil.example\r\norigin: {}\r\n", STUDIO.1);
    let rebound = raw(&daemon, &format!("{rebound}connection: close\r\n\r\n"));
    assert_eq!(status(&rebound), 421, "{rebound}");
    assert_guarded(&rebound);
}

#[test]
fn the_lists_count_as_soon_as_the_file_is_saved() {
    let daemon = Daemon::start();
    let host = "GET /health HTTP/1.1\r\nhost: studio.lan\r\nconnection: close\r\n\r\n";
    assert_eq!(status(&raw(&daemon, host)), 421);
    assert_eq!(daemon.send("POST", "/api/queue/resume", &[STUDIO], b"").status, 403);
    fs::write(daemon.config_file(), format!("{MODES}{LISTS}")).unwrap();
    wait_for("the name to be known", || (status(&raw(&daemon, host)) == 200).then_some(()));
    assert_eq!(daemon.send("POST", "/api/queue/resume", &[STUDIO], b"").status, 200);
    fs::write(daemon.config_file(), MODES).unwrap();
    wait_for("the origin to be refused", || {
        (daemon.send("POST", "/api/queue/resume", &[STUDIO], b"").status == 403).then_some(())
    });

    let wrong = format!("{MODES}http: {{origins: ['*'], hosts: ['http://x']}}\n");
    fs::write(daemon.config_file(), wrong).unwrap();
    let reload = daemon.post("/api/modes/reload", &json!({}));
    let problem = reload.problem(422, "invalid-configuration", "/api/modes/reload");
    let pointers = problem["errors"].as_array().unwrap().iter().map(|error| &error["pointer"]);
    assert_eq!(pointers.collect::<Vec<_>>(), ["/http/origins/0", "/http/hosts/0"], "{problem}");
}

const WITH_COMMANDS: &str = "custom_jobs: {sleep: {command: [sleep, '600']}}\n";
const KEY: (&str, &str) = ("x-admin-key", "secret");

fn with_key(modes: &str) -> Daemon {
    let folder = folder(modes);
    let mut program = command(folder.path());
    program.env("DIFFUSED_ADMIN_KEY", "secret");
    Daemon::spawn(program, folder, &[])
}

#[test]
fn reloads_commands_and_the_cancelling_of_switches_need_the_admin_key() {
    let daemon = with_key(&format!("{MODES}{WITH_COMMANDS}"));
    let refused = |method: &str, path: &str, body: &Value| {
        let body = if method == "DELETE" { String::new() } else { body.to_string() };
        let answer = daemon.send(method, path, &[JSON], body.as_bytes());
        answer.problem(401, "admin-key-needed", path);
        let wrong = [JSON, ("x-admin-key", "wrong")];
        let answer = daemon.send(method, path, &wrong, body.as_bytes());
        answer.problem(401, "admin-key-needed", path);
    };
    let allowed = |method: &str, path: &str, body: &Value| {
        let body = if method == "DELETE" { String::new() } else { body.to_string() };
        let answer = daemon.send(method, path, &[JSON, KEY], body.as_bytes());
        assert!((200..300).contains(&answer.status), "{method} {path}: {}", answer.text());
        answer.header("x-job-id").to_owned()
    };
    refused("POST", "/api/modes/reload", &json!({}));
    allowed("POST", "/api/modes/reload", &json!({}));

    let verify = json!({"name": "verify_checkpoint", "args": {"mode": "tiny"}});
    refused("POST", "/api/jobs/custom", &verify);
    // Runs for as long as this test may take, so that what comes behind it waits.
    let command = json!({"name": "sleep"});
    refused("POST", "/api/jobs/custom", &command);
    let running = allowed("POST", "/api/jobs/custom", &command);

    let waiting = [
        allowed("POST", "/api/jobs/custom", &verify),
        allowed("POST", "/api/modes/switch", &json!({"mode": "other"})),
        allowed("POST", "/api/models/load", &json!({"mode": "styled"})),
        allowed("POST", "/api/models/unload", &json!({"all": true})),
    ];
    for id in waiting.iter().chain([&running]) {
        let path = format!("/api/jobs/{id}");
        refused("DELETE", &path, &json!({}));
        allowed("DELETE", &path, &json!({}));
        assert_eq!(daemon.finished_job(id)["state"], "cancelled");
    }
    // Drawings are anybody's to cancel, as they are to begin.
    let drawing = json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512"});
    let drawing = daemon.post("/api/jobs", &drawing).header("x-job-id").to_owned();
    let cancelled = daemon.send("DELETE", &format!("/api/jobs/{drawing}"), &[], b"");
    assert!(matches!(cancelled.status, 200 | 202), "{}", cancelled.text());
    daemon.finished_job(&drawing);
}

#[test]
fn refused_keys_are_logged_without_the_key_and_not_one_by_one() {
    let daemon = with_key(MODES);
    let refusals = AtomicUsize::new(0);
    let lines = || {
        let wrong = [("x-admin-key", "guess-7f3a")];
        let answer = daemon.send("POST", "/api/queue/pause", &wrong, b"");
        answer.problem(401, "admin-key-needed", "/api/queue/pause");
        refusals.fetch_add(1, Ordering::Relaxed);
        let log = daemon.log();
        let lines = log.lines().filter(|line| line.contains("refused POST /api/queue/pause from"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let lines = wait_for("a second line", || Some(lines()).filter(|lines| lines.len() >= 2));
    assert!(lines[0].contains("from 127.0.0.1:") && lines[0].contains("a wrong admin key"));
    assert!(!daemon.log().contains("guess-7f3a"));
    // Two lines count all of them but those behind the second one.
    let refusals = refusals.into_inner();
    assert!(refusals > 2 && lines[1].contains(&format!("({} more", refusals - 2)), "{lines:?}");
}

#[test]
fn listening_to_the_network_without_a_key_is_warned_of() {
    const WARNING: &str = "without an admin key: everybody";
    let open = Daemon::start_with(&["--listen", "0.0.0.0:0"]);
    assert!(open.log().contains(WARNING), "{}", open.log());
    let local = Daemon::start();
    assert!(!local.log().contains(WARNING), "{}", local.log());
    let folder = folder(MODES);
    let mut program = command(folder.path());
    program.env("DIFFUSED_ADMIN_KEY", "secret");
    let keyed = Daemon::spawn(program, folder, &["--listen", "0.0.0.0:0"]);
    assert!(!keyed.log().contains(WARNING), "{}", keyed.log());
}
