//! Webhooks, and a receiver that the test plays.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};

use crate::support::{DEADLINE, Daemon, MODES, folder, wait_for};

/// What was posted.
#[derive(Debug)]
struct Post {
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

/// Answers one post after the other with these statuses, and then none any more.
struct Receiver {
    url: String,
    posts: mpsc::Receiver<Post>,
}

impl Receiver {
    fn start(statuses: &'static [&'static str]) -> Self {
        Self::start_at("127.0.0.1:0", statuses)
    }

    fn start_at(address: &str, statuses: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, posts) = mpsc::channel();
        thread::spawn(move || {
            for status in statuses {
                let (stream, _) = listener.accept().unwrap();
                let post = read(&stream);
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                (&stream).write_all(answer.as_bytes()).unwrap();
                if seen.send(post).is_err() {
                    return;
                }
            }
        });
        Self { url, posts }
    }

    #[track_caller]
    fn post(&self) -> Post {
        self.posts.recv_timeout(DEADLINE).expect("a webhook")
    }
}

fn read(stream: &TcpStream) -> Post {
    let mut lines = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let request = line();
    let path = request.strip_prefix("POST ").unwrap().split(' ').next().unwrap().to_owned();
    let mut headers = HashMap::new();
    loop {
        let header = line();
        let Some((name, value)) = header.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    lines.read_exact(&mut body).unwrap();
    Post { path, headers, body }
}

impl Post {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// By another implementation: the `openssl` of the command line is not everywhere, so by the
/// definition (RFC 2104), with the hash that the tests have.
fn signature(secret: &str, body: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let pad = |with: u8| -> Vec<u8> {
        let mut block = [with; 64];
        block.iter_mut().zip(secret.bytes()).for_each(|(byte, key)| *byte ^= key);
        block.to_vec()
    };
    let inner = Sha256::digest([&pad(0x36)[..], body].concat());
    let outer = Sha256::digest([&pad(0x5c)[..], &inner[..]].concat());
    let digits: String = outer.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

fn start(webhooks: &str) -> Daemon {
    Daemon::start_in(folder(&format!("{MODES}webhooks: {webhooks}\n")), &[])
}

fn submit(daemon: &Daemon, webhook: Value) -> String {
    let body = json!({"prompt": "x", "num_inference_steps": 1, "webhook": webhook});
    let answer = daemon.post("/api/jobs", &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("x-job-id").to_owned()
}

#[test]
fn the_end_of_a_job_is_told_and_signed() {
    let receiver = Receiver::start(&["204 No Content"; 4]);
    let daemon = start("{secret: everybodys, allow_private: true}");
    let url = format!("{}/hook?a=b", receiver.url);
    let id = submit(&daemon, json!({"url": url, "secret": "its own"}));
    let post = receiver.post();
    assert_eq!(post.path, "/hook?a=b");
    assert_eq!(post.header("content-type"), "application/json");
    assert_eq!(post.header("x-diffused-event"), "job.done");
    assert_eq!(post.header("x-diffused-signature"), signature("its own", &post.body));
    assert!(post.header("x-diffused-timestamp").parse::<u64>().unwrap() > 1_700_000_000);
    uuid::Uuid::parse_str(post.header("x-diffused-delivery")).unwrap();
    let job = daemon.finished_job(&id);
    assert_eq!(post.json(), job, "as GET answers");
    assert_eq!(job["images"], 1);
    assert!(!job.to_string().contains("its own"), "{job}");

    // One that is answered with its image, and the daemon's own secret.
    let body = json!({"prompt": "x", "num_inference_steps": 1, "webhook": url});
    assert_eq!(daemon.post("/generate", &body).status, 200);
    let post = receiver.post();
    assert_eq!(post.header("x-diffused-signature"), signature("everybodys", &post.body));

    // One that fails, and one that is cancelled.
    let body = json!({"prompt": "x", "mode": "styled", "webhook": url});
    assert_eq!(daemon.post("/api/jobs", &body).status, 202);
    let post = receiver.post();
    assert_eq!(post.header("x-diffused-event"), "job.failed");
    assert_eq!(post.json()["state"], "failed");
    daemon.post("/api/queue/pause", &json!({}));
    let body = json!({"name": "unload_all", "webhook": url});
    let waiting = daemon.post("/api/jobs/custom", &body);
    assert_eq!(waiting.status, 202, "{}", waiting.text());
    let address = format!("/api/jobs/{}", waiting.header("x-job-id"));
    daemon.send("DELETE", &address, &[], b"");
    let post = receiver.post();
    assert_eq!(post.header("x-diffused-event"), "job.cancelled");
    assert_eq!(post.json()["id"], waiting.header("x-job-id"));
    let log = daemon.log();
    assert!(
        !log.contains("its own") && !log.contains("everybodys") && !log.contains("a=b"),
        "{log}"
    );
}

#[test]
fn without_a_secret_nothing_is_signed_and_a_form_has_webhooks_too() {
    let receiver = Receiver::start(&["200 OK"; 2]);
    let daemon = start("{allow_private: true}");
    let webhook = json!({"url": receiver.url, "secret": "x"}).to_string();
    for (webhook, is_signed) in [(&receiver.url, false), (&webhook, true)] {
        let parts = [("prompt", None, &b"x"[..]), ("webhook", None, webhook.as_bytes())];
        let answer = daemon.post_form("/api/jobs", &parts);
        assert_eq!(answer.status, 202, "{}", answer.text());
        let post = receiver.post();
        assert_eq!(post.headers.contains_key("x-diffused-signature"), is_signed);
    }
}

#[test]
fn what_fails_is_tried_again_as_the_same_delivery() {
    let receiver = Receiver::start(&["500 Oh", "302 Found\r\nlocation: /elsewhere", "200 OK"]);
    let daemon = start("{allow_private: true, first_retry: 1s}");
    submit(&daemon, json!(receiver.url));
    let [first, second, third] = [receiver.post(), receiver.post(), receiver.post()];
    let delivery = |post: &Post| post.header("x-diffused-delivery").to_owned();
    assert_eq!([delivery(&second), delivery(&third)], [delivery(&first), delivery(&first)]);
    assert_eq!((&first.body, &second.body), (&second.body, &third.body));
    wait_for("its delivery", || daemon.log().contains("webhook delivered").then_some(()));
}

#[test]
fn what_fails_too_often_or_is_not_wanted_is_given_up() {
    let failing = Receiver::start(&["500 Oh", "500 Oh"]);
    let gone = Receiver::start(&["410 Gone"]);
    let daemon = start("{allow_private: true, max_attempts: 2}");
    submit(&daemon, json!(gone.url));
    submit(&daemon, json!(failing.url));
    gone.post();
    failing.post();
    failing.post();
    for attempts in ["attempts=1", "attempts=2"] {
        wait_for(attempts, || {
            let log = daemon.log();
            let mut given_up = log.lines().filter(|line| line.contains("webhook given up"));
            given_up.any(|line| line.contains(attempts)).then_some(())
        });
    }
}

#[test]
fn one_slow_receiver_delays_no_other() {
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let quick = Receiver::start(&["200 OK"]);
    let daemon = start("{allow_private: true, timeout: 10m}");
    for _ in 0..10 {
        submit(&daemon, json!(format!("http://{}", silent.local_addr().unwrap())));
    }
    submit(&daemon, json!(quick.url));
    quick.post();
}

#[test]
fn private_addresses_are_refused_unless_they_are_allowed() {
    let daemon = Daemon::start();
    let refused = |path: &str, body: Value, pointer: &str| {
        let problem = daemon.post(path, &body).problem(422, "invalid-request", path);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
        problem.to_string()
    };
    for url in ["http://127.0.0.1:9/", "https://[::1]/", "http://192.168.0.1/", "file:///etc"] {
        let signed = json!({"url": url, "secret": "s3cret"});
        let text = refused("/api/jobs", json!({"prompt": "x", "webhook": signed}), "/webhook/url");
        assert!(!text.contains("s3cret"), "{text}");
        refused("/generate", json!({"prompt": "x", "webhook": url}), "/webhook");
        refused("/api/jobs/custom", json!({"name": "unload_all", "webhook": url}), "/webhook");
        let signed = json!({"name": "unload_all", "webhook": {"url": url}});
        refused("/api/jobs/custom", signed, "/webhook/url");
    }
    // What a name means is seen when it is connected to.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
    submit(&daemon, json!(url));
    wait_for("its refusal", || daemon.log().contains("no public address").then_some(()));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "it was connected to");

    // The file may change its mind.
    let receiver = Receiver::start(&["200 OK"]);
    fs::write(daemon.config_file(), format!("{MODES}webhooks: {{allow_private: true}}\n")).unwrap();
    assert_eq!(daemon.post("/api/modes/reload", &json!({})).status, 200);
    submit(&daemon, json!(receiver.url));
    receiver.post();
}

#[test]
fn a_daemon_that_stops_tells_what_it_has_finished() {
    let receiver = Receiver::start(&["200 OK"]);
    let mut daemon = start("{allow_private: true}");
    let body = json!({
        "prompt": "x", "size": "256x256", "num_inference_steps": 30, "webhook": receiver.url
    });
    let answer = daemon.post("/api/jobs", &body);
    let id = answer.header("x-job-id").to_owned();
    wait_for("it to run", || {
        (daemon.get(&format!("/api/jobs/{id}")).json()["state"] == "running").then_some(())
    });
    daemon.signal("-TERM");
    assert!(daemon.ended().success());
    let post = receiver.posts.try_recv().expect("it was told before the daemon ended");
    assert_eq!(post.header("x-diffused-event"), "job.done");
}

#[test]
fn what_was_not_told_the_next_daemon_tells_once() {
    // Nobody is there, for now.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut daemon = start("{allow_private: true, first_retry: 1m}");
    let id = submit(&daemon, json!(format!("http://{address}/hook")));
    daemon.finished_job(&id);
    daemon.kill();
    let receiver = Receiver::start_at(&address.to_string(), &["204 No Content"; 4]);
    daemon.start_again(&[]);
    let post = receiver.post();
    assert_eq!((post.header("x-diffused-delivery"), &post.json()["id"]), (&*id, &json!(id)));
    assert_eq!(post.json()["state"], "done");
    let shown = daemon.get(&format!("/api/jobs/{id}"));
    assert_eq!(post.json(), shown.json(), "the same as who asks is told");
    // It is known that it was told, as soon as whatever comes next is written.
    let next = submit(&daemon, json!(format!("http://{address}/next")));
    assert_eq!(receiver.post().json()["id"], json!(next));
    daemon.signal("-TERM");
    daemon.ended();
    daemon.start_again(&[]);
    let last = submit(&daemon, json!(format!("http://{address}/last")));
    let told = [receiver.post()].map(|post| post.json()["id"].clone());
    assert_ne!(told[0], json!(id), "told a second time");
    assert!(told[0] == json!(last) || told[0] == json!(next));
}
