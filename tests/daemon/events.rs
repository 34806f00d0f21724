//! What happens to the jobs, as a client follows it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Value, json};

use crate::support::{DEADLINE, Daemon, MODES, folder, wait_for};

/// A stream of events, read as it comes.
struct Stream {
    lines: Box<dyn BufRead>,
}

#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

impl Event {
    fn is_end(&self) -> bool {
        ["done", "failed", "cancelled"].contains(&self.name.as_str())
    }

    fn job(&self) -> &str {
        self.data["id"].as_str().unwrap()
    }
}

impl Stream {
    fn open(daemon: &Daemon, path: &str, last_event_id: Option<&str>) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(DEADLINE)).build();
        let mut request = config.new_agent().get(format!("{}{path}", daemon.url));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = request.call().unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { lines: Box::new(BufReader::new(response.into_body().into_reader())) }
    }

    fn of(daemon: &Daemon, job: &str, last_event_id: Option<&str>) -> Self {
        Self::open(daemon, &format!("/api/jobs/{job}/events"), last_event_id)
    }

    /// The next event; `None` at the end of the stream. One without data only has an id.
    fn next(&mut self) -> Option<Event> {
        let (mut id, mut name, mut data) = (String::new(), String::new(), Value::Null);
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => id = value.to_owned(),
                Some(("event", value)) => name = value.to_owned(),
                Some(("data", value)) => data = serde_json::from_str(value).unwrap(),
                Some(_) => panic!("{line}"),
                None if line.trim_end().is_empty() && !(id.is_empty() && name.is_empty()) => {
                    return Some(Event { id, name, data });
                }
                None => {} // a comment
            }
        }
    }

    fn rest(mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Everything until a job of that type has ended.
    fn until_end_of(&mut self, kind: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            events.push(self.next().expect("the stream goes on"));
            let last = events.last().unwrap();
            if last.is_end() && last.data["type"] == kind {
                return events;
            }
        }
    }
}

/// A daemon that has nothing to do, and a stream of all that happens from now on.
fn idle() -> (Daemon, Stream) {
    let daemon = Daemon::start();
    daemon.wait_for_status("the default mode", |status| status["current_mode"] == "tiny");
    daemon.wait_for_status("no job", |status| status["running_job"].is_null());
    let mut stream = Stream::open(&daemon, "/api/events", None);
    let begin = stream.next().unwrap();
    assert_eq!((begin.name.as_str(), &begin.data), ("", &Value::Null), "where it begins");
    (daemon, stream)
}

fn names(events: &[Event]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    names.dedup();
    names
}

fn of(events: &[Event], kind: &str) -> Vec<Event> {
    events.iter().filter(|event| event.data["type"] == kind).cloned().collect()
}

#[test]
fn a_job_is_followed_from_the_queue_to_its_end() {
    let (daemon, mut all) = idle();
    let long = json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512"});
    let running = daemon.begin_post("/generate", &long);
    let first = all.next().unwrap();
    assert_eq!((first.name.as_str(), &first.data["type"]), ("queued", &json!("generation")));
    let waiting = daemon.post("/api/modes/switch", &json!({"mode": "other"}));
    let id = waiting.header("x-job-id").to_owned();

    let mut stream = Stream::of(&daemon, &id, None);
    let queued = stream.next().unwrap();
    assert_eq!(queued.name, "queued");
    let data = json!({"id": id, "type": "mode_switch", "mode": "other", "state": "queued"});
    assert_eq!(queued.data, data);
    let mut both = Stream::of(&daemon, &id, None);
    assert_eq!(both.next().unwrap().data, data);
    drop(running);
    let events = stream.rest();
    assert_eq!(names(&events), ["loading", "done"]);
    assert_eq!(both.rest(), events, "two readers are told the same");
    assert!(events[0].data["percent"].is_u64(), "{events:?}");

    let told = all.until_end_of("mode_switch");
    assert_eq!(names(&of(&told, "generation")).last(), Some(&"cancelled"));
    let of_switch = of(&told, "mode_switch");
    assert_eq!(names(&of_switch), ["queued", "loading", "done"]);
    assert_eq!(of_switch[1..], events);
}

#[test]
fn a_stream_is_resumed_without_a_gap_and_without_a_repetition() {
    let (daemon, mut all) = idle();
    let request = json!({"mode": "other", "prompt": "x", "num_inference_steps": 6});
    let drawn = daemon.post("/generate", &request);
    let told = all.until_end_of("generation");
    let drawing = of(&told, "generation");
    assert_eq!(names(&drawing), ["queued", "loading", "running", "done"]);
    let last_step = &drawing[drawing.len() - 2].data;
    assert_eq!((&last_step["step"], &last_step["steps"]), (&json!(6), &json!(6)));
    let numbers: Vec<u64> =
        told.iter().map(|e| e.id.rsplit_once('-').unwrap().1.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");

    for (place, event) in told.iter().enumerate() {
        let rest = &told[place + 1..];
        let mut stream = Stream::open(&daemon, "/api/events", Some(&event.id));
        assert_eq!(stream.next().unwrap().id, event.id, "where it begins");
        let resumed: Vec<Event> = rest.iter().map(|_| stream.next().unwrap()).collect();
        assert_eq!(resumed, rest);
        // The header says where a browser is, its address where it was.
        let path = format!("/api/jobs/{}/events?after={}", drawn.header("x-job-id"), told[0].id);
        let of_job = of(rest, "generation");
        match of_job.is_empty() {
            false => assert_eq!(Stream::open(&daemon, &path, Some(&event.id)).rest(), of_job),
            true => {
                let headers = [("last-event-id", event.id.as_str())];
                assert_eq!(daemon.send("GET", &path, &headers, b"").status, 204, "no more to come");
            }
        }
    }
    let after = format!("/api/jobs/{}/events?after={}", drawn.header("x-job-id"), told[0].id);
    let rest = of(&told[1..], "generation");
    assert_eq!(Stream::open(&daemon, &after, None).rest(), rest);
    // Another daemon's id, as after a restart: something is missing, and then all there is.
    let mut stream = Stream::open(&daemon, "/api/events", Some("1-3"));
    let missed = stream.next().unwrap();
    assert_eq!((missed.name.as_str(), &missed.data), ("missed", &json!({"from": 0, "to": 0})));
    assert!(stream.next().unwrap().id.ends_with("-1"));
}

#[test]
fn a_job_that_has_ended_is_one_event_and_one_that_nobody_knows_404() {
    let daemon =
        Daemon::start_in(folder(&format!("{MODES}  bad: {{model: bad.safetensors}}\n")), &[]);
    std::fs::write(daemon.path().join("models/bad.safetensors"), "bad").unwrap();
    let failed = daemon.post("/api/modes/switch", &json!({"mode": "bad"}));
    let id = failed.header("x-job-id");
    let view = daemon.finished_job(id);
    let events = Stream::of(&daemon, id, None).rest();
    assert_eq!(names(&events), ["failed"]);
    assert_eq!(events[0].data["reason"], view["reason"]);
    assert!(view["reason"].as_str().is_some_and(|reason| reason.contains("bad.safetensors")));
    assert!(!events[0].data.to_string().contains(daemon.path().to_str().unwrap()), "{events:?}");

    for id in ["x", "01a1fadf-c49a-707d-ba3d-f7bd743cf026"] {
        let path = format!("/api/jobs/{id}/events");
        daemon.get(&path).problem(404, "unknown-job", &path);
    }
    let wrong = daemon.get("/api/events?after=17");
    wrong.problem(400, "malformed-request", "/api/events");
}

#[test]
fn a_stop_ends_the_streams_behind_the_last_job() {
    let (mut daemon, mut stream) = idle();
    // This one reads nothing, not even its answer's head.
    let address = daemon.url.strip_prefix("http://").unwrap();
    let mut silent = TcpStream::connect(address).unwrap();
    write!(silent, "GET /api/events HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
    let request = json!({"prompt": "x", "num_inference_steps": 100, "size": "128x128"});
    let _running = daemon.begin_post("/generate", &request);
    let id = wait_for("the job to run", || {
        let event = stream.next().unwrap();
        (event.name == "running").then(|| event.job().to_owned())
    });
    let of_job = Stream::of(&daemon, &id, None);
    daemon.signal("-TERM");
    assert_eq!(of_job.rest().last().unwrap().name, "done");
    assert_eq!(stream.rest().last().unwrap().name, "done");
    assert_eq!(daemon.ended().code(), Some(0));
    // As it says when answers are given up.
    assert!(!daemon.log().contains("did not take their answers"), "{}", daemon.log());
    let mut said = String::new();
    silent.read_to_string(&mut said).unwrap();
    assert!(said.contains("event: done"), "{said}");
}

#[test]
fn who_asks_for_previews_sees_the_image_grow_and_nobody_else_does() {
    let (daemon, _) = idle();
    let mut all = Stream::open(&daemon, "/api/events?previews=true", None);
    let mut plain = Stream::open(&daemon, "/api/events?previews=false", None);
    let body = json!({"prompt": "x", "num_inference_steps": 999, "size": "512x256", "n": 2});
    let submitted = daemon.post("/api/jobs", &body).json();
    let id = submitted["id"].as_str().unwrap();
    let preview = |stream: &mut Stream| {
        wait_for("a preview", || stream.next().filter(|event| event.name == "preview"))
    };
    let first = preview(&mut all);
    // Who comes later sees the latest one at once, and its own job's alone.
    let mut of_job = Stream::open(&daemon, &format!("/api/jobs/{id}/events?previews=true"), None);
    let other = daemon.post("/api/jobs", &json!({"prompt": "y"})).json();
    let other = format!("/api/jobs/{}/events?previews=true", other["id"].as_str().unwrap());
    let mut of_other = Stream::open(&daemon, &other, None);
    for event in [first.clone(), preview(&mut of_job), preview(&mut all)] {
        let data = &event.data;
        assert_eq!((event.id.as_str(), data["job_id"].as_str()), ("", Some(id)), "{data}");
        assert!((1..=1998).contains(&data["step"].as_u64().unwrap()), "{data}");
        assert_eq!(data["steps"], 1998, "of both images");
        let file = BASE64.decode(data["image"].as_str().unwrap()).unwrap();
        assert_eq!(image::guess_format(&file).unwrap(), image::ImageFormat::Jpeg);
        let image = image::load_from_memory(&file).unwrap();
        assert_eq!((image.width(), image.height()), (64, 32));
        assert_eq!((&data["width"], &data["height"]), (&json!(64), &json!(32)));
    }
    let events = daemon.send("DELETE", &format!("/api/jobs/{id}"), &[], b"");
    assert_eq!(events.status, 202, "{}", events.text());
    let ended = of_job.rest();
    assert_eq!(ended.last().unwrap().name, "cancelled");
    let told: Vec<Event> =
        std::iter::from_fn(|| plain.next()).take_while(|event| event.name != "cancelled").collect();
    assert!(told.iter().all(|event| event.name != "preview"), "{:?}", names(&told));
    let told = std::iter::from_fn(|| of_other.next()).filter(|event| event.name == "preview");
    assert!(told.map(|event| event.data["job_id"].clone()).all(|of| of != id));

    let resumed = format!("/api/jobs/{id}/events?previews=true&after={}", ended[0].id);
    let again = Stream::open(&daemon, &format!("/api/jobs/{id}/events?previews=true"), None).rest();
    assert_eq!(names(&again), ["cancelled"], "none is kept");
    assert!(daemon.get(&resumed).status < 300);
    let wrong = daemon.get("/api/events?previews=maybe");
    wrong.problem(400, "malformed-request", "/api/events");
}
