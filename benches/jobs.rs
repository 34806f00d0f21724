//! What it costs to hand work in: `POST /api/jobs`, answered when the job is on disk.
//!
//! ```text
//! cargo bench --bench jobs
//! ```
//!
//! Starts the real binary with its queue paused, and submits over a connection that is kept alive:
//! into an empty queue, into one with 10,000 jobs, from eight clients at once, and without a journal.
//! Beside them, what this machine's disk takes for the least that can be done: to append a page to a
//! file and wait for it. A figure is one request and its whole answer, as the client sees them.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::{Value, json};

const CLIENTS: usize = 8;

#[derive(Parser)]
struct Options {
    /// How many jobs are submitted for each figure.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// How many wait in the long queue.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..50_000))]
    queued: u32,
    /// The folder in which all of it happens; by default the system's for temporary files.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    folder: std::path::PathBuf,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let Options { requests, queued, folder, bench: _ } = Options::parse();
    let folder = tempfile::tempdir_in(folder)?;
    println!("{requests} requests each; milliseconds");
    println!("{:<36} {:>8} {:>8} {:>8}", "", "median", "p99", "max");
    show("a page appended, and fsync", fsyncs(folder.path(), requests)?);
    let daemon = Daemon::start(&folder.path().join("on"), "on")?;
    show("POST /api/jobs, empty queue", daemon.submit(requests)?);
    daemon.fill(queued)?;
    show(&format!("POST /api/jobs, {queued} queued"), daemon.submit(requests)?);
    show(&format!("GET /api/jobs/{{id}}, {queued} queued"), daemon.look(requests)?);
    let start = Instant::now();
    daemon.fill(requests * CLIENTS as u32)?;
    let rate = f64::from(requests * CLIENTS as u32) / start.elapsed().as_secs_f64();
    println!("{:<36} {rate:>8.0} jobs a second", format!("POST /api/jobs, {CLIENTS} clients"));
    let start = Instant::now();
    let daemon = daemon.restart()?;
    let all = daemon.queue_size()?;
    let took = start.elapsed().as_secs_f64();
    println!("{:<36} {took:>8.2} s, with {all} jobs", "killed, started again");
    drop(daemon);
    let daemon = Daemon::start(&folder.path().join("off"), "off")?;
    show("POST /api/jobs, journal: off", daemon.submit(requests)?);
    Ok(())
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let [median, p99, max] = [50, 99, 100].map(|percent| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times[rank - 1].as_secs_f64() * 1e3
    });
    println!("{what:<36} {median:>8.3} {p99:>8.3} {max:>8.3}");
}

fn fsyncs(folder: &Path, count: u32) -> anyhow::Result<Vec<Duration>> {
    let mut file = File::create(folder.join("file"))?;
    (0..count)
        .map(|_| {
            let start = Instant::now();
            file.write_all(&[1; 4096])?;
            file.sync_data()?;
            Ok(start.elapsed())
        })
        .collect()
}

/// A daemon on a free port that begins nothing, killed when this is dropped.
struct Daemon {
    child: Child,
    url: String,
    folder: std::path::PathBuf,
}

impl Daemon {
    fn start(folder: &Path, journal: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let modes = json!({
            "model_root": root,
            "default_mode": "demo",
            "jobs": {"journal": journal},
            "modes": {"demo": {"model": "demo/demo.safetensors"}},
        });
        fs::write(folder.join("modes.yaml"), modes.to_string())?; // JSON is YAML
        let daemon = Self::serve(folder)?;
        agent().post(format!("{}/api/queue/pause", daemon.url)).send_empty()?;
        Ok(daemon)
    }

    fn serve(folder: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_diffused"))
            .args(["serve", "--listen", "127.0.0.1:0", "--queue-max", "100000"])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .env("RUST_LOG", "error")
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let url = line.trim().strip_prefix("listening on ").context("no address")?.to_owned();
        Ok(Self { child, url, folder: folder.to_owned() })
    }

    fn restart(mut self) -> anyhow::Result<Self> {
        self.child.kill()?;
        self.child.wait()?;
        Self::serve(&self.folder)
    }

    fn submit(&self, count: u32) -> anyhow::Result<Vec<Duration>> {
        let (agent, url) = (agent(), format!("{}/api/jobs", self.url));
        (0..count)
            .map(|seed| {
                let body = json!({"prompt": "a red circle", "seed": seed});
                let start = Instant::now();
                let mut answer = agent.post(&url).send_json(&body)?;
                answer.body_mut().read_to_vec()?;
                ensure!(answer.status() == 202, "{}", answer.status());
                Ok(start.elapsed())
            })
            .collect()
    }

    fn look(&self, count: u32) -> anyhow::Result<Vec<Duration>> {
        let agent = agent();
        let list: Value = agent
            .get(format!("{}/api/jobs?state=queued&limit=1", self.url))
            .call()?
            .body_mut()
            .read_json()?;
        let id = list["jobs"][0]["id"].as_str().context("no job")?.to_owned();
        let url = format!("{}/api/jobs/{id}", self.url);
        (0..count)
            .map(|_| {
                let start = Instant::now();
                agent.get(&url).call()?.body_mut().read_to_vec()?;
                Ok(start.elapsed())
            })
            .collect()
    }

    /// Submits from several clients at once.
    fn fill(&self, count: u32) -> anyhow::Result<()> {
        thread::scope(|scope| {
            let share = count.div_ceil(CLIENTS as u32);
            let clients: Vec<_> =
                (0..CLIENTS).map(|_| scope.spawn(move || self.submit(share))).collect();
            clients.into_iter().try_for_each(|client| match client.join() {
                Ok(submitted) => submitted.map(|_| ()),
                Err(_) => anyhow::bail!("a client panicked"),
            })
        })
    }

    fn queue_size(&self) -> anyhow::Result<u64> {
        let url = format!("{}/api/models/status", self.url);
        let status: Value = agent().get(url).call()?.body_mut().read_json()?;
        status["queue_size"].as_u64().context("no queue_size")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().new_agent()
}
