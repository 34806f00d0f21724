//! Seconds per UNet step and per VAE decode, beside diffusers on the same weights, in one run.
//!
//! ```text
//! cargo run --release --example random_checkpoint -- --family sdxl sdxl.safetensors
//! cargo bench --bench engine -- sdxl.safetensors --reference "python benches/reference.py"
//! ```
//!
//! Ours and the reference take turns, round by round, so that a machine whose speed drifts
//! changes both. Each turn is a process of its own (only one SDXL fits into most memories), which
//! prints the median of its runs; printed here are the medians of those and their ratio.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;
use diffused::{
    engine::{
        Pipeline, Prepared,
        model::{ClipTextEncoder, Conditioning},
        nn::{self, Tensor},
    },
    modes::{CheckpointRef, Compute, Device, EngineChoice, PipelineSpec, Precision, Size},
    request::GenerateRequest,
    worker::process::ALLOCATOR,
};
use serde_json::json;

#[derive(Parser)]
struct Options {
    /// A single-file checkpoint.
    checkpoint: PathBuf,
    #[arg(long, default_value_t = 512)]
    width: u32,
    #[arg(long, default_value_t = 512)]
    height: u32,
    /// How often ours and the reference take turns.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Measurements of each stage in a turn, after one that is not counted.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// candle, or libtorch where it is built in.
    #[arg(long, default_value = "candle")]
    engine: EngineChoice,
    /// Of both sides: fp32 or bf16.
    #[arg(long, default_value = "fp32")]
    precision: Precision,
    /// What prints the reference's figures, given the checkpoint and --threads, --runs, --width,
    /// --height, --precision.
    #[arg(long)]
    reference: Option<String>,
    /// Takes one turn of ours and prints its figures.
    #[arg(long, hide = true)]
    turn: bool,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if options.turn {
        return take_turn(&options);
    }
    let ourselves = std::env::current_exe()?.display().to_string();
    let mut seconds: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
    for round in 1..=options.rounds {
        println!("round {round} of {}", options.rounds);
        let ours = (ourselves.as_str(), Some("--turn"));
        let reference = options.reference.as_deref().map(|command| (command, None));
        for (side, (command, flag)) in [Some(ours), reference].into_iter().flatten().enumerate() {
            for (stage, figure) in ask(command, flag, &options)? {
                seconds.entry(stage).or_default()[side].push(figure);
            }
        }
    }
    println!("{:<20} {:>10} {:>12} {:>8}", "stage", "diffused", "diffusers", "ratio");
    for (stage, [ours, reference]) in seconds {
        let (ours, theirs) = (median(ours), median(reference));
        println!("{stage:<20} {ours:>8.3} s {theirs:>10.3} s {:>7.2}x", theirs / ours);
    }
    Ok(())
}

/// One turn of either side: its stages and their seconds.
fn ask(command: &str, flag: Option<&str>, options: &Options) -> anyhow::Result<Vec<(String, f64)>> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default())
        // As the worker's process is started: freed tensors stay mapped.
        .envs(flag.map(|_| ALLOCATOR))
        .args(words)
        .arg(&options.checkpoint)
        .args(["--threads", &options.threads.to_string(), "--runs", &options.runs.to_string()])
        .args(["--width", &options.width.to_string(), "--height", &options.height.to_string()])
        .args(["--precision", options.precision.name()])
        .args(flag.map(|flag| [flag, "--engine", options.engine.name()]).into_iter().flatten())
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(output.status.success(), "'{command}' failed");
    let figures = String::from_utf8(output.stdout)?;
    let mut stages = Vec::new();
    for line in figures.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let stage = format!("{}, batch {}", line["stage"].as_str().unwrap_or("?"), line["batch"]);
        stages.push((stage, line["seconds"].as_f64().unwrap_or(f64::NAN)));
    }
    Ok(stages)
}

fn take_turn(options: &Options) -> anyhow::Result<()> {
    let (engine, precision) = (options.engine, options.precision);
    let backend = nn::open(Compute { engine, device: Device::Cpu, precision })?.backend;
    nn::set_threads(backend, options.threads);
    let name = options.checkpoint.display().to_string();
    let spec = PipelineSpec::of(CheckpointRef { name, path: options.checkpoint.clone() });
    let start = Instant::now();
    let prepared = Prepared::open_on(backend, &spec, &mut Default::default())?;
    let pipeline = prepared.load(Default::default(), &|_| ())?;
    let weights = pipeline.weights_bytes() as f64 / f64::from(1 << 30);
    eprintln!("loaded in {:.1} s, {weights:.2} GiB of weights", start.elapsed().as_secs_f64());
    measure(&pipeline, options)?;
    whole_image(&pipeline, options)
}

fn measure(pipeline: &Pipeline, options: &Options) -> anyhow::Result<()> {
    let models = pipeline.models();
    let (unet, vae) = (&models.unet, &models.vae);
    let encoders = [&models.text_encoder, &models.text_encoder_2].into_iter().flatten();
    let width = encoders.map(ClipTextEncoder::width).sum();
    let [h, w] = [options.height, options.width].map(|side| side as usize / vae.scale());
    let tensor = |dims: &[usize]| {
        let numbers = (0..dims.iter().product::<usize>()).map(|i| (i * 7919 % 2003) as f32);
        Tensor::from_vec(numbers.map(|x| x / 1000.0 - 1.0).collect(), dims)
    };
    for batch in [2, 1] {
        let latents = tensor(&[batch, h, w, unet.in_channels()])?;
        let context = tensor(&[batch, 77, width])?;
        let conditioning = Conditioning { context, added: None, guidance: None };
        let told = unet.tell(&conditioning, &[501.0])?;
        let step = || unet.step(&latents, &told, 0)?.to_vec().map(drop);
        report("unet_step", batch, options.runs, step)?;
    }
    let latents = tensor(&[1, h, w, 4])?;
    report("vae_decode", 1, options.runs, || vae.decode(&latents)?.to_vec().map(drop))
}

/// Prints the median of some runs after one that is not counted.
fn report(
    stage: &str,
    batch: usize,
    runs: usize,
    run: impl Fn() -> nn::Result<()>,
) -> anyhow::Result<()> {
    let mut seconds = Vec::new();
    for _ in 0..=runs {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let seconds = median(seconds.split_off(1));
    println!("{}", json!({"stage": stage, "batch": batch, "seconds": seconds}));
    Ok(())
}

/// A whole image in 4 steps, and the most memory that this process ever had.
fn whole_image(pipeline: &Pipeline, options: &Options) -> anyhow::Result<()> {
    let request = GenerateRequest {
        size: Size::new(options.width, options.height)?,
        guidance_scale: 7.5,
        seed: 42,
        ..GenerateRequest::of("bench", "a red fox in the snow")
    };
    let start = Instant::now();
    let drawn = pipeline.draw(&request, &mut |_| ControlFlow::Continue(()))?;
    let s = |duration: Duration| duration.as_secs_f64();
    eprintln!(
        "{} in 4 guided steps: {:.1} s (encode {:.2}, denoise {:.2}, decode {:.2})",
        request.size,
        s(start.elapsed()),
        s(drawn.encode),
        s(drawn.denoise),
        s(drawn.decode)
    );
    if let Ok(status) = std::fs::read_to_string("/proc/self/status")
        && let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))
    {
        eprintln!("peak resident memory: {}", peak.trim());
    }
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}
