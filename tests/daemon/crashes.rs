//! The fault harness: a thousand jobs, while the worker and the daemon are killed at random moments,
//! the disk is full at times, and clients hang up. Each job that was answered 202 ends once, with one
//! result, in order within its priority.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    process::{Worker, limit_file_size},
    support::{DEADLINE, Daemon, MODES, folder, wait_for},
};

const JOBS: usize = 1000;
const KILLS: usize = 100;
const CLIENTS: usize = 4;
const SEEDS: u64 = 7;
const PRIORITIES: [i64; 3] = [-3, 0, 4];

/// SplitMix64 (Steele, Lea & Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Where the daemon is at the moment; it may just be dead.
struct Place {
    url: Mutex<String>,
}

impl Place {
    fn send(&self, method: &str, path: &str, key: &str, body: &Value) -> Option<(u16, Vec<u8>)> {
        let url = self.url.lock().unwrap().clone();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            .build();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{url}{path}"));
        request = request.header("content-type", "application/json");
        if !key.is_empty() {
            request = request.header("idempotency-key", key);
        }
        let agent = config.new_agent();
        let response = match method {
            "GET" => agent.run(request.body(()).unwrap()),
            _ => agent.run(request.body(body.to_string().into_bytes()).unwrap()),
        };
        let mut response = response.ok()?;
        let body = response.body_mut().read_to_vec().ok()?;
        Some((response.status().as_u16(), body))
    }

    /// Sends a request and hangs up before the answer.
    fn hang_up(&self, path: &str, key: &str, body: &Value) {
        let url = self.url.lock().unwrap().clone();
        let address = url.strip_prefix("http://").unwrap();
        let Ok(mut stream) = std::net::TcpStream::connect(address) else { return };
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             idempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(request.as_bytes()); // the daemon may die meanwhile
    }

    /// All generations as the daemon lists them, by id.
    fn jobs(&self) -> Option<BTreeMap<String, Value>> {
        let (mut jobs, mut cursor) = (BTreeMap::new(), String::new());
        loop {
            let path = format!("/api/jobs?limit=200{cursor}");
            let (status, page) = self.send("GET", &path, "", &Value::Null)?;
            let page: Value = serde_json::from_slice(&page).ok().filter(|_| status == 200)?;
            for job in page["jobs"].as_array()? {
                if job["type"] == "generation" && job["tags"] == json!(["counted"]) {
                    jobs.insert(job["id"].as_str()?.to_owned(), job.clone());
                }
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Some(jobs),
            }
        }
    }
}

/// Sets it when it is dropped: also where the test fails, so that the others come to an end.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn body(random: &mut Random) -> Value {
    json!({
        "prompt": "a fox",
        "seed": random.below(SEEDS),
        "num_inference_steps": 1,
        "mode": if random.below(20) == 0 { "other" } else { "tiny" },
        "size": "64x64",
        "priority": PRIORITIES[random.below(3) as usize],
        "tags": ["counted"],
    })
}

/// Submits jobs as a careful client does: with a key, again and again until it is answered. Says
/// under which names they were accepted.
fn client(place: &Place, seed: u64, accepted: &AtomicUsize) -> Vec<String> {
    let mut random = Random(seed);
    let submit = |number: usize| {
        let (key, body) = (format!("{seed}-{number}"), body(&mut random));
        if random.below(10) == 0 {
            place.hang_up("/api/jobs", &key, &body);
        }
        if random.below(10) == 0 {
            // Somebody else's, who waits, and then does not.
            let mut passing = body.clone();
            passing["tags"] = json!(["passing"]);
            place.hang_up("/generate", "", &passing);
        }
        let id = wait_for("a job to be accepted", || {
            let (status, answer) = place.send("POST", "/api/jobs", &key, &body)?;
            let answer: Value = serde_json::from_slice(&answer).ok()?;
            match status {
                202 => Some(answer["id"].as_str()?.to_owned()),
                // The disk is full, or the queue.
                503 | 429 => None,
                other => panic!("{other}: {answer}"),
            }
        });
        accepted.fetch_add(1, Relaxed);
        id
    };
    (0..JOBS / CLIENTS).map(submit).collect()
}

/// Looks at the jobs all the time: one that has ended stays as it was when it was first seen so.
fn watch(place: &Place, is_over: &AtomicBool) -> HashMap<String, Value> {
    let mut ended: HashMap<String, Value> = HashMap::new();
    while !is_over.load(Relaxed) {
        for (id, job) in place.jobs().unwrap_or_default() {
            let is_terminal = job["finished_unix_ms"].is_u64();
            match ended.get(&id) {
                Some(before) => assert_eq!(*before, job, "it had ended"),
                None if is_terminal => drop(ended.insert(id, job)),
                None => {}
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    ended
}

/// Kills the worker or the daemon, or fills the disk for a moment, at random moments.
fn trouble(daemon: &mut Daemon, place: &Place, random: &mut Random) -> [usize; 3] {
    let mut done = [0; 3];
    while done[0] + done[1] < KILLS {
        thread::sleep(Duration::from_millis(random.below(150)));
        match random.below(9) {
            0..4 => {
                let worker = Worker::of(daemon.id());
                done[0] += usize::from(worker.is_some_and(|worker| worker.is_killed()));
            }
            4..8 => {
                daemon.kill();
                daemon.start_again(&["--queue-max", "10000"]);
                place.url.lock().unwrap().clone_from(&daemon.url);
                done[1] += 1;
            }
            _ => {
                limit_file_size(daemon.id(), Some(1));
                thread::sleep(Duration::from_millis(random.below(100)));
                limit_file_size(daemon.id(), None);
                // What ended meanwhile is drawn again if the daemon dies before that is written.
                daemon.wait_for_status("room", |status| status["storage_fails"] == false);
                done[2] += 1;
            }
        }
    }
    done
}

#[test]
fn a_thousand_jobs_and_a_hundred_kills() {
    // A job may be in the way of many kills, and is not to be given up for that.
    let modes = format!("jobs: {{max_attempts: 100}}\n{MODES}");
    let mut daemon = Daemon::start_in(folder(&modes), &["--queue-max", "10000"]);
    let place = Place { url: Mutex::new(daemon.url.clone()) };
    let (accepted, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut random = Random(20_261_121);
    let (place, accepted, is_over) = (&place, &accepted, &is_over);
    let (ids, seen, troubles) = thread::scope(|scope| {
        let over = Over(is_over);
        let clients: Vec<_> = (1..=CLIENTS as u64)
            .map(|seed| scope.spawn(move || client(place, seed, accepted)))
            .collect();
        let watcher = scope.spawn(move || watch(place, is_over));
        let troubles = trouble(&mut daemon, place, &mut random);
        let ids: Vec<String> =
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let mut left = usize::MAX;
        while left > 0 {
            left = wait_for("another job to end", || {
                let jobs = place.jobs()?;
                let ended = jobs.values().filter(|job| job["finished_unix_ms"].is_u64());
                let now = jobs.len() - ended.count();
                (now < left).then_some(now)
            });
        }
        drop(over);
        (ids, watcher.join().unwrap(), troubles)
    });

    let jobs = place.jobs().unwrap();
    assert_eq!(ids.len(), JOBS);
    assert_eq!(jobs.len(), JOBS, "as many as were accepted, and none twice");
    assert!(ids.iter().all(|id| jobs.contains_key(id)), "and the same");
    assert!(seen.iter().all(|(id, job)| jobs[id] == *job), "what has ended does not change");
    for priority in PRIORITIES {
        let of_it = jobs.values().filter(|job| job["priority"] == priority);
        let ended: Vec<u64> = of_it
            .map(|job| job["finished_unix_ms"].as_u64().unwrap_or_else(|| panic!("{job}")))
            .collect();
        assert!(ended.is_sorted(), "priority {priority} is out of order");
    }
    // One result each; and the same seed is the same image, whatever came between.
    let mut images: HashMap<(String, String), Vec<u8>> = HashMap::new();
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for (id, job) in &jobs {
        *states.entry(job["state"].as_str().unwrap().to_owned()).or_default() += 1;
        assert_eq!(job["state"], "done", "{job}");
        let answer = place.send("GET", &format!("/api/jobs/{id}/image"), "", &Value::Null);
        let (status, image) = answer.unwrap();
        assert_eq!(status, 200, "{job}");
        let which = (job["request"]["seed"].to_string(), job["mode"].to_string());
        let first = images.entry(which).or_insert_with(|| image.clone());
        assert!(*first == image, "another image: {job}");
        let second = place.send("GET", &format!("/api/jobs/{id}/image/1"), "", &Value::Null);
        assert_eq!(second.unwrap().0, 404, "{job}");
    }
    let files = std::fs::read_dir(daemon.path().join("state/results")).unwrap().count();
    assert_eq!(files, JOBS, "images on disk");
    let attempts: u64 = jobs.values().map(|job| job["attempts"].as_u64().unwrap()).sum();
    let [workers, daemons, disks] = troubles;
    // Not by a macro: whatever the test's outcome, the count is printed.
    let count = format!(
        "{JOBS} jobs, {workers} workers and {daemons} daemons killed, {disks} times the disk full: \
         {states:?} in {attempts} attempts\n"
    );
    let _ = std::io::stderr().write_all(count.as_bytes());
}
