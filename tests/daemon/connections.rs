//! Connections that are slow, silent or gone.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::process::CommandExt,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{DEADLINE, Daemon, MODES, command, folder, has_answer, read_to_end, wait_for};

const POST: &str = "POST /generate HTTP/1.1\r\nhost: localhost\r\n\
                    content-type: application/json\r\ncontent-length: ";
const EVENTS: &str = "GET /api/events HTTP/1.1\r\nhost: localhost\r\n\r\n";
const DOCUMENT: &str = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
const HALF_HEAD: &str = "GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
/// More than any buffer between the two takes of the answers.
const MANY: usize = 400;

fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A connection on which that was sent. Who is refused at once may find it closed.
fn begin(daemon: &Daemon, bytes: &str) -> TcpStream {
    let mut stream = connect(daemon);
    let _ = stream.write_all(bytes.as_bytes());
    stream
}

/// What happens, on a connection of its own.
struct Events(BufReader<TcpStream>);

impl Events {
    /// The next step that is drawn.
    fn next_step(&mut self) -> u64 {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the events have ended");
            let data = line.strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok());
            let step = data.and_then(|event: Value| event["step"].as_u64());
            if let Some(step) = step.filter(|step| *step > 0) {
                return step;
            }
        }
    }

    /// Throws away what has arrived, to hear only what happens from now on.
    fn forget(&mut self) {
        self.0.get_ref().set_nonblocking(true).unwrap();
        let mut line = Vec::new();
        while self.0.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {}
        self.0.get_ref().set_nonblocking(false).unwrap();
    }
}

fn long_request() -> Value {
    json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512"})
}

/// How long the bodies of these answers are, and how long their heads say.
fn lengths(answers: &str) -> Vec<(usize, usize)> {
    let answers = answers.split("HTTP/1.1 200 OK\r\n").skip(1);
    let lengths = answers.map(|answer| {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        let announced = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        (body.len(), announced.map_or(usize::MAX, |length| length.parse().unwrap()))
    });
    lengths.collect()
}

/// Whether the daemon has closed its side, as a client sees it that goes on sending.
fn is_closed_to(stream: &mut TcpStream) -> bool {
    stream.write_all(b"a").is_err()
}

#[test]
fn slow_clients_take_neither_the_health_nor_the_queue() {
    let daemon = Daemon::start_in(folder(&format!("{MODES}http: {{max_connections: 50}}\n")), &[]);
    let mut events = Events(BufReader::new(begin(&daemon, EVENTS)));
    let drawing = daemon.begin_post("/generate", &long_request());
    events.next_step();
    let body = format!("{POST}1000\r\n\r\n{{\"prompt\": \"");
    for (kind, bytes, is_busy) in [
        ("silent", "".to_owned(), false),
        ("half a head", HALF_HEAD.to_owned(), false),
        ("half a body", body, true),
        ("events", EVENTS.to_owned(), true),
        ("unread answers", DOCUMENT.repeat(MANY), true),
    ] {
        let open = || -> Vec<_> { (0..300).map(|_| begin(&daemon, &bytes)).collect() };
        let mut slow = open();
        for path in ["/health", "/health/live", "/health/ready"] {
            let health = daemon.get(path);
            assert_eq!(health.status, 200, "{kind}: {}", health.text());
        }
        if is_busy {
            let refusal = wait_for("a refusal", || {
                let answer = daemon.get("/api/models");
                if answer.status == 503 {
                    return Some(answer);
                }
                slow.clear();
                slow = open(); // half a body ends after a while, and this machine may be slow
                None
            });
            refusal.problem(503, "too-many-connections", "/api/models");
            assert_eq!(refusal.header("retry-after"), "5");
            assert_eq!(refusal.header("x-content-type-options"), "nosniff");
        } else {
            // The silent ones have made way.
            assert_eq!(daemon.get("/api/models").status, 200, "{kind}");
        }
        events.forget();
        let (first, second) = (events.next_step(), events.next_step());
        assert!(first < second, "{kind}: {first} {second}");
        drop(slow);
        wait_for("a place", || (daemon.get("/api/models").status == 200).then_some(()));
    }
    drop(drawing);
}

#[test]
fn who_has_few_descriptors_keeps_some_for_the_work() {
    let folder = folder(MODES);
    let mut program = command(folder.path());
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: the child calls one function between fork and exec, which may be called there.
    unsafe {
        program.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let daemon = Daemon::spawn(program, folder, &[]);
    assert!(daemon.log().contains("at most 8 connections at a time"), "{}", daemon.log());
    let silent: Vec<_> = (0..200).map(|_| connect(&daemon)).collect();
    let submitted = daemon.post("/api/jobs", &json!({"prompt": "x", "num_inference_steps": 1}));
    assert_eq!(submitted.status, 202, "{}", submitted.text());
    let id = submitted.header("x-job-id");
    assert_eq!(daemon.finished_job(id)["state"], "done");
    assert_eq!(daemon.get(&format!("/api/jobs/{id}/image")).status, 200);
    assert_eq!(daemon.get("/health/ready").status, 200);
    drop(silent);
    assert!(!daemon.log().contains("Too many open files"), "{}", daemon.log());
}

#[test]
fn a_head_that_does_not_end_is_given_up() {
    let daemon = Daemon::start();
    let mut dripping = begin(&daemon, HALF_HEAD);
    let mut half = begin(&daemon, HALF_HEAD);
    wait_for("the end of the head", || is_closed_to(&mut dripping).then_some(()));
    match half.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("still open: {other:?}"),
    }
}

#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    let daemon = Daemon::start();
    let mut unread = begin(&daemon, &DOCUMENT.repeat(MANY));
    wait_for("the end of the answers", || is_closed_to(&mut unread).then_some(()));
    // Events that are silent for longer are not.
    let mut events = begin(&daemon, EVENTS);
    let mut slow = begin(&daemon, HALF_HEAD);
    wait_for("the end of a head", || is_closed_to(&mut slow).then_some(()));
    let submitted = daemon.post("/api/jobs", &json!({"prompt": "x", "num_inference_steps": 1}));
    daemon.finished_job(submitted.header("x-job-id"));
    let mut heard = String::new();
    wait_for("the job's end", || {
        let mut bytes = [0; 4096];
        let read = events.read(&mut bytes).unwrap();
        heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
        heard.contains("event: done").then_some(())
    });
}

#[test]
fn hanging_up_cancels_a_job_with_requests_behind_it_on_the_wire() {
    let daemon = Daemon::start();
    let body = json!({"prompt": "x", "num_inference_steps": 999, "n": 8}).to_string();
    let request = format!("{POST}{}\r\n\r\n{body}", body.len());
    let pipelined = begin(&daemon, &format!("{request}{}", DOCUMENT.repeat(3)));
    daemon.wait_for_status("the drawing", |status| status["running_job"].is_string());
    drop(pipelined);
    // Drawn only when the other has made way.
    let answer = daemon.post("/generate", &json!({"prompt": "x", "num_inference_steps": 1}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let jobs = daemon.get("/api/jobs?state=cancelled").json();
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "{jobs}");
}

#[test]
fn who_says_that_nothing_follows_is_answered_nevertheless() {
    let daemon = Daemon::start();
    // Whoever gets no answer in half a second counts as gone, and this machine may be that slow.
    wait_for("three answers", || {
        let stream = begin(&daemon, &DOCUMENT.repeat(3));
        stream.shutdown(Shutdown::Write).unwrap();
        let lengths = lengths(&read_to_end(stream));
        (lengths.len() == 3 && lengths.iter().all(|(sent, announced)| sent == announced))
            .then_some(())
    });
}

#[test]
fn refusals_that_nobody_reads_stop_neither_the_health_nor_the_end() {
    let mut daemon =
        Daemon::start_in(folder(&format!("{MODES}http: {{max_connections: 2}}\n")), &[]);
    let events = [begin(&daemon, EVENTS), begin(&daemon, EVENTS)];
    wait_for("the events", || events.iter().all(has_answer).then_some(()));
    // Each is refused for its host, with an answer that repeats the path.
    let path = "x".repeat(60_000);
    let refused = format!("GET /{path} HTTP/1.1\r\nhost: evil.example\r\n\r\n").repeat(100);
    let unread: Vec<TcpStream> = thread::scope(|scope| {
        let send = || {
            let mut stream = connect(&daemon);
            // Once nothing has left for a second, the daemon waits for this client.
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = stream.write_all(refused.as_bytes());
            stream
        };
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(daemon.get("/health").status, 200);
    daemon.signal("-TERM");
    assert!(daemon.ended().success());
    drop((events, unread));
}

#[test]
fn an_answer_in_a_reserved_place_is_the_only_one() {
    let daemon = Daemon::start_in(folder(&format!("{MODES}http: {{max_connections: 1}}\n")), &[]);
    let events = begin(&daemon, EVENTS);
    wait_for("the events", || has_answer(&events).then_some(()));
    for (request, status) in [
        ("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", "200 OK"),
        (DOCUMENT, "503 Service Unavailable"),
        ("GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n", "421 Misdirected Request"),
    ] {
        let answers = read_to_end(begin(&daemon, &request.repeat(3)));
        assert!(answers.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
        assert!(answers.contains("connection: close\r\n"), "{answers}");
    }
}

#[test]
fn the_end_cuts_no_answer_short() {
    let daemon = Daemon::start();
    let unread = begin(&daemon, &DOCUMENT.repeat(50));
    // Once nothing more arrives, one of the answers is on its way and the peer has no room for it.
    let mut bytes = vec![0; 8 << 20];
    let mut before = 0;
    wait_for("a full buffer", || {
        thread::sleep(Duration::from_millis(200));
        let arrived = unread.peek(&mut bytes).unwrap();
        (std::mem::replace(&mut before, arrived) == arrived).then_some(())
    });
    daemon.signal("-TERM");
    let address = daemon.url.strip_prefix("http://").unwrap();
    wait_for("the end of the listener", || TcpStream::connect(address).is_err().then_some(()));
    let lengths = lengths(&read_to_end(unread));
    assert!(!lengths.is_empty());
    for (sent, announced) in &lengths {
        assert_eq!(sent, announced, "{lengths:?}");
    }
}

#[test]
fn silent_clients_do_not_delay_the_end() {
    let mut daemon = Daemon::start();
    let silent: Vec<_> = (0..20).map(|_| connect(&daemon)).collect();
    // One that is answered is behind them in the line.
    assert_eq!(daemon.get("/health").status, 200);
    daemon.signal("-TERM");
    assert!(daemon.ended().success());
    drop(silent);
    assert!(!daemon.log().contains("did not take their answers"), "{}", daemon.log());
}
