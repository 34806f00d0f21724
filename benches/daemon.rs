//! How fast the API answers while an image is being drawn.
//!
//! ```text
//! cargo bench --bench daemon                        # the small checkpoint that is in models/
//! cargo bench --bench daemon -- --modes modes.yaml  # the default mode of a file of yours
//! ```
//!
//! Starts the real binary, has it draw an image of as many steps as there can be, and asks all GET
//! endpoints in turns over a connection that is kept alive. A figure is one request and its whole
//! answer, as the client sees them. Slowness is printed; it is no failure.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use diffused::modes::Size;
use serde_json::{Value, json};

/// How long the daemon may take to load and to begin to draw.
const DEADLINE: Duration = Duration::from_secs(300);

#[derive(Parser)]
struct Options {
    /// A modes.yaml whose default mode draws, in place of the small checkpoint.
    #[arg(long, value_name = "FILE")]
    modes: Option<PathBuf>,
    /// Of the image that is being drawn.
    #[arg(long, default_value = "512x512")]
    size: Size,
    /// How often each endpoint is asked.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let folder = tempfile::tempdir()?;
    let modes = match &options.modes {
        Some(file) => fs::canonicalize(file).with_context(|| file.display().to_string())?,
        None => small_mode(folder.path())?,
    };
    let daemon = Daemon::start(&modes, folder.path())?;
    let client = Client::new(&daemon.url);
    let job = client.draw_once()?;
    client.begin_to_draw(options.size)?;

    let paths = [
        "/health",
        "/api/models/status",
        "/api/modes",
        "/api/vram",
        &format!("/api/jobs/{job}"),
        "/openapi.json",
    ];
    let mut times = vec![Vec::new(); paths.len()];
    for _ in 0..options.requests {
        for (path, times) in paths.iter().zip(&mut times) {
            let start = Instant::now();
            client.get(path)?;
            times.push(start.elapsed());
        }
    }
    ensure!(
        client.is_drawing()?,
        "the image was done before the figures were; try a larger --size"
    );

    println!("{} requests each, while an image is drawn; milliseconds", options.requests);
    println!("{:<22} {:>8} {:>8} {:>8}", "GET", "median", "p99", "max");
    for (path, mut times) in paths.iter().zip(times) {
        times.sort_unstable();
        let [median, p99, max] = [50, 99, 100].map(|percent| percentile(&times, percent));
        let path = path.replace(&job, "{id}");
        println!("{path:<22} {median:>8.3} {p99:>8.3} {max:>8.3}");
    }
    Ok(())
}

/// What that share of the times (sorted, not empty) does not exceed, in milliseconds.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times[rank - 1].as_secs_f64() * 1e3
}

/// Writes a modes.yaml over the checkpoint that comes with the source.
fn small_mode(folder: &Path) -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let file = folder.join("modes.yaml");
    let mode = json!({"model": "demo/demo.safetensors"});
    let modes = json!({"model_root": root, "default_mode": "demo", "modes": {"demo": mode}});
    fs::write(&file, modes.to_string())?; // JSON is YAML
    Ok(file)
}

/// A daemon on a free port, killed when this is dropped.
struct Daemon {
    child: Child,
    url: String,
}

impl Daemon {
    fn start(modes: &Path, folder: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_diffused"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(modes)
            .current_dir(folder)
            .stdout(Stdio::piped())
            .env("RUST_LOG", "error")
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("its stdout is a pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let url = line.trim().trim_start_matches("listening on ").to_owned();
        let daemon = Self { child, url };
        ensure!(daemon.url.starts_with("http://"), "the daemon did not start");
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    fn new(url: &str) -> Self {
        Self { agent: ureq::Agent::new_with_defaults(), url: url.to_owned() }
    }

    /// Reads the whole answer, so that the connection is kept.
    fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut answer = self.agent.get(format!("{}{path}", self.url)).call()?;
        Ok(answer.body_mut().read_to_vec()?)
    }

    /// Draws a first, small image: loads the mode. Returns the job.
    fn draw_once(&self) -> anyhow::Result<String> {
        let request = json!({"prompt": "a fox", "size": "64x64", "num_inference_steps": 1});
        let answer = self.agent.post(format!("{}/generate", self.url)).send_json(request)?;
        let job = answer.headers().get("x-job-id").context("no X-Job-Id")?;
        Ok(job.to_str()?.to_owned())
    }

    /// Has two long images drawn, on connections of their own, and waits until one waits for the
    /// other.
    fn begin_to_draw(&self, size: Size) -> anyhow::Result<()> {
        let size = size.to_string();
        let request = json!({"prompt": "a fox", "size": size, "num_inference_steps": 999});
        for _ in 0..2 {
            let (url, request) = (format!("{}/generate", self.url), request.clone());
            // Ends with the daemon, without an answer.
            thread::spawn(move || ureq::post(url).send_json(request));
        }
        let start = Instant::now();
        while !self.is_drawing()? {
            ensure!(start.elapsed() < DEADLINE, "the daemon does not begin to draw");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn is_drawing(&self) -> anyhow::Result<bool> {
        let status: Value = serde_json::from_slice(&self.get("/api/models/status")?)?;
        Ok(status["queue_size"] == 1)
    }
}
