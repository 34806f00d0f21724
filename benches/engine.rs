//! Seconds per UNet step and per VAE decode, beside diffusers on the same weights, in one run.
//!
//! ```text
//! cargo run --release --example random_checkpoint -- sd15.safetensors
//! cargo bench --bench engine -- sd15.safetensors --reference "python benches/reference.py"
//! ```
//!
//! Ours and the reference take turns, round by round, so that a machine whose speed drifts
//! changes both; the medians and their ratio are printed.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use diffused::{
    engine::{
        Models, Pipeline, Prepared,
        model::{ClipTextEncoder, Conditioning},
        nn::Tensor,
    },
    modes::{CheckpointRef, PipelineSpec, Size},
    request::GenerateRequest,
};

#[derive(Parser)]
struct Options {
    /// A single-file checkpoint.
    checkpoint: PathBuf,
    #[arg(long, default_value = "512x512")]
    size: Size,
    /// How often ours and the reference take turns.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Measurements of each stage in a round, after one that is not counted.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// What prints the reference's figures, given the checkpoint and --threads, --runs, --width, --height.
    #[arg(long)]
    reference: Option<String>,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

type Seconds = BTreeMap<String, Vec<f64>>;

fn main() -> anyhow::Result<()> {
    like_the_worker();
    let options = Options::parse();
    rayon::ThreadPoolBuilder::new().num_threads(options.threads).build_global()?;
    let name = options.checkpoint.display().to_string();
    let start = Instant::now();
    let spec = PipelineSpec::of(CheckpointRef { name, path: options.checkpoint.clone() });
    let pipeline = Prepared::open(&spec)?.load(&|_| ())?;
    let weights = pipeline.weights_bytes() as f64 / f64::from(1 << 30);
    println!("loaded in {:.1} s, {weights:.2} GiB of weights", start.elapsed().as_secs_f64());

    let (mut ours, mut reference) = (Seconds::new(), Seconds::new());
    for round in 1..=options.rounds {
        println!("round {round} of {}", options.rounds);
        measure(&pipeline, &options, &mut ours)?;
        if let Some(command) = &options.reference {
            ask_reference(command, &options, &mut reference)?;
        }
    }
    println!("{:<20} {:>10} {:>12} {:>8}", "stage", "diffused", "diffusers", "ratio");
    for (stage, seconds) in ours {
        let ours = median(seconds);
        match reference.remove(&stage).map(median) {
            Some(theirs) => {
                println!("{stage:<20} {ours:>8.3} s {theirs:>10.3} s {:>7.2}x", theirs / ours);
            }
            None => println!("{stage:<20} {ours:>8.3} s"),
        }
    }
    whole_image(&pipeline, &options)
}

/// The worker's process is started with these, so that freed tensors stay mapped.
fn like_the_worker() {
    let (name, value) = diffused::worker::process::ALLOCATOR;
    if std::env::var_os(name).is_none() {
        let mut again = Command::new(std::env::current_exe().expect("a program knows its file"));
        panic!("{}", again.args(std::env::args_os().skip(1)).env(name, value).exec());
    }
}

fn measure(pipeline: &Pipeline, options: &Options, seconds: &mut Seconds) -> anyhow::Result<()> {
    let Models { text_encoder, text_encoder_2, unet, vae } = pipeline.models();
    let encoders = [text_encoder, text_encoder_2].into_iter().flatten();
    let width = encoders.map(ClipTextEncoder::width).sum();
    let [h, w] = [options.size.height, options.size.width].map(|s| s as usize / vae.scale());
    let numbers =
        |len: usize| (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    for batch in [2, 1] {
        let latents = Tensor::from_vec(numbers(batch * h * w * 4), &[batch, h, w, 4])?;
        let context = Tensor::from_vec(numbers(batch * 77 * width), &[batch, 77, width])?;
        let conditioning = Conditioning { context, added: None, guidance: None };
        let step = || unet.forward(&latents, &vec![501.0; batch], &conditioning).map(drop);
        repeat(
            options.runs,
            step,
            seconds.entry(format!("unet_step, batch {batch}")).or_default(),
        )?;
    }
    let latents = Tensor::from_vec(numbers(h * w * 4), &[1, h, w, 4])?;
    let decode = || vae.decode(&latents).map(drop);
    repeat(options.runs, decode, seconds.entry("vae_decode, batch 1".to_owned()).or_default())?;
    Ok(())
}

fn repeat<E>(
    runs: usize,
    run: impl Fn() -> Result<(), E>,
    seconds: &mut Vec<f64>,
) -> Result<(), E> {
    run()?;
    for _ in 0..runs {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn ask_reference(command: &str, options: &Options, seconds: &mut Seconds) -> anyhow::Result<()> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .arg(&options.checkpoint)
        .args(["--threads", &options.threads.to_string(), "--runs", &options.runs.to_string()])
        .args(["--width", &options.size.width.to_string()])
        .args(["--height", &options.size.height.to_string()])
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8(output.stdout)?.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let stage = format!("{}, batch {}", line["stage"].as_str().unwrap_or("?"), line["batch"]);
        seconds.entry(stage).or_default().extend(line["seconds"].as_f64());
    }
    Ok(())
}

/// A whole image in 4 steps, and the most memory that this process ever had.
fn whole_image(pipeline: &Pipeline, options: &Options) -> anyhow::Result<()> {
    let request = GenerateRequest {
        size: options.size,
        guidance_scale: 7.5,
        seed: 42,
        ..GenerateRequest::of("bench", "a red fox in the snow")
    };
    let start = Instant::now();
    let drawn = pipeline.draw(&request, &mut |_| ControlFlow::Continue(()))?;
    let s = |duration: Duration| duration.as_secs_f64();
    println!(
        "{} in 4 guided steps: {:.1} s (encode {:.2}, denoise {:.2}, decode {:.2})",
        options.size,
        s(start.elapsed()),
        s(drawn.encode),
        s(drawn.denoise),
        s(drawn.decode)
    );
    if let Ok(status) = std::fs::read_to_string("/proc/self/status")
        && let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))
    {
        println!("peak resident memory: {}", peak.trim());
    }
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}
