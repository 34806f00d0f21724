//! What it takes to have a model ready: read from the disk, read again, switched to where it is
//! loaded already, and where only a LoRA differs.
//!
//! ```text
//! cargo bench --bench residency -- CHECKPOINT.safetensors LORA.safetensors [--rounds 5]
//! ```
//!
//! `examples/random_checkpoint` makes both in the true shapes. Drives the real binary over HTTP: a
//! figure is the whole request, `{"wait": true}`, as a client sees it. Beside them the time that
//! reading the file takes, once, by itself. Medians.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::{Value, json};

#[derive(Parser)]
struct Options {
    checkpoint: PathBuf,
    lora: PathBuf,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let file = fs::canonicalize(&options.checkpoint)?;
    let folder = tempfile::tempdir()?;
    let daemon = Daemon::start(folder.path(), &file, &fs::canonicalize(&options.lora)?)?;
    let bytes = fs::metadata(&file)?.len();
    println!("{} MB, medians of {}; milliseconds", bytes / 1_000_000, options.rounds);

    let rounds = options.rounds;
    let unload = || daemon.post("/api/models/unload", &json!({"all": true, "wait": true}));
    let switch =
        |mode: &str| daemon.post("/api/modes/switch", &json!({"mode": mode, "wait": true}));
    let cold_read = median(rounds, || forget(&file), || read(&file))?;
    print("read the file, cold", cold_read, cold_read);
    let cold = median(rounds, || unload().and_then(|_| forget(&file)), || switch("base"))?;
    print("load, cold", cold, cold_read);
    let warm_read = median(rounds, || Ok(()), || read(&file))?;
    print("read the file, from the page cache", warm_read, warm_read);
    let warm = median(rounds, || unload().map(drop), || switch("base"))?;
    print("load, from the page cache", warm, warm_read);

    switch("base")?;
    let lora = median(
        rounds,
        || daemon.post("/api/models/unload", &json!({"mode": "lora", "wait": true})).map(drop),
        || switch("lora"),
    )?;
    print("switch to a LoRA on it", lora, warm_read);
    let resident = median(10 * rounds, || switch("base").map(drop), || switch("lora"))?;
    print("switch to what is loaded", resident, warm_read);
    let http = median(10 * rounds, || Ok(()), || daemon.get("/health/live"))?;
    print("(a request that does nothing)", http, warm_read);

    let models = daemon.get("/api/models")?;
    for model in models["modes"].as_array().context("modes")? {
        let figures = &model["figures"];
        if figures.is_object() {
            println!(
                "{}: own {} GiB, shared {} GiB (estimated {}, measured {})",
                model["name"],
                figures["own_gb"],
                figures["shared_gb"],
                figures["estimated_gb"],
                figures["measured_gb"]
            );
        }
    }
    Ok(())
}

fn print(what: &str, took: Duration, reading: Duration) {
    let ms = |time: Duration| 1000.0 * time.as_secs_f64();
    println!("{what:<36} {:>10.2}  {:>7.2}x of reading", ms(took), ms(took) / ms(reading));
}

fn median<T>(
    rounds: u32,
    mut prepare: impl FnMut() -> anyhow::Result<()>,
    mut run: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        prepare()?;
        let start = Instant::now();
        run()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

fn read(path: &Path) -> anyhow::Result<()> {
    let (mut file, mut buffer) = (File::open(path)?, vec![0; 4 << 20]);
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Has the kernel drop what it keeps of a file's pages.
fn forget(path: &Path) -> anyhow::Result<()> {
    File::open(path)?.sync_all()?;
    let input = format!("if={}", path.display());
    let dd = Command::new("dd").args([&input, "iflag=nocache", "count=0"]).output()?;
    ensure!(dd.status.success(), "dd: {}", String::from_utf8_lossy(&dd.stderr));
    Ok(())
}

struct Daemon {
    child: Child,
    url: String,
    agent: ureq::Agent,
}

impl Daemon {
    fn start(folder: &Path, checkpoint: &Path, lora: &Path) -> anyhow::Result<Self> {
        let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/demo.safetensors");
        for (name, file) in [("small", &*small), ("base", checkpoint), ("lora", lora)] {
            std::os::unix::fs::symlink(file, folder.join(format!("{name}.safetensors")))?;
        }
        let modes = "{model_root: ., default_mode: small, watch: off, modes: {\
            small: {model: small.safetensors}, base: {model: base.safetensors}, \
            lora: {model: base.safetensors, loras: [lora.safetensors]}}}";
        fs::write(folder.join("modes.yaml"), modes)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_diffused"))
            .current_dir(folder)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        let url = line.trim().rsplit(' ').next().context("an address")?.to_owned();
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        Ok(Self { child, url, agent: config.into() })
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        let mut answer = self.agent.get(format!("{}{path}", self.url)).call()?;
        Ok(answer.body_mut().read_json()?)
    }

    fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let mut answer = self.agent.post(format!("{}{path}", self.url)).send_json(body)?;
        let (status, body) = (answer.status(), answer.body_mut().read_json::<Value>()?);
        ensure!(status.is_success(), "{path}: {body}");
        Ok(body)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
