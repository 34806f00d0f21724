//! What loading a pipeline costs, with a LoRA and without, and when the next one differs in that alone.
//! (`benches/lora.rs` measures the merging by itself.)
//!
//! ```text
//! cargo bench --bench load -- CHECKPOINT.safetensors LORA.safetensors [ANOTHER.safetensors]
//! ```
//!
//! `examples/random_checkpoint` makes both in the true shapes. Each line is one load, checks included;
//! but for the first and the last it takes the place of the pipeline of the line before, as when the
//! worker changes its mode.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use diffused::{
    engine::{Pipeline, Prepared, memory},
    modes::{CheckpointRef, LoraRef, PipelineSpec},
};

#[derive(Parser)]
struct Options {
    checkpoint: PathBuf,
    lora: PathBuf,
    /// A second LoRA [the first one at another strength]
    another: Option<PathBuf>,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    like_the_worker();
    let Options { checkpoint, lora, another, .. } = Options::parse();
    let with = |loras: Vec<LoraRef>| {
        let checkpoint = CheckpointRef { name: name(&checkpoint), path: checkpoint.clone() };
        PipelineSpec { loras, ..PipelineSpec::of(checkpoint) }
    };
    let first = with(vec![at_strength(&lora, 1.0)]);
    let second = with(vec![at_strength(another.as_deref().unwrap_or(&lora), -0.5)]);

    println!(
        "{:<34} {:>9} {:>9} {:>10} {:>8} {:>10} {:>11} {:>11}",
        "load", "total", "merging", "read", "modules", "planned", "allocated", "at peak"
    );
    let pipeline = load("the checkpoint alone", &with(Vec::new()), None)?;
    let pipeline = load("with a LoRA, in its place", &first, Some(pipeline))?;
    let pipeline = load("with another LoRA, in its place", &second, Some(pipeline))?;
    let pipeline = load("the checkpoint alone, in its place", &with(Vec::new()), Some(pipeline))?;
    drop(pipeline);
    load("with a LoRA, from nothing", &first, None)?;
    Ok(())
}

/// The worker's process is started with these, so that freed tensors stay mapped.
fn like_the_worker() {
    let (name, value) = diffused::worker::process::ALLOCATOR;
    if std::env::var_os(name).is_none() {
        let mut again = Command::new(std::env::current_exe().expect("a program knows its file"));
        panic!("{}", again.args(std::env::args_os().skip(1)).env(name, value).exec());
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

fn at_strength(path: &Path, strength: f32) -> LoraRef {
    LoraRef { name: name(path), path: path.to_owned(), strength, adapter_name: None }
}

fn load(what: &str, spec: &PipelineSpec, old: Option<Pipeline>) -> anyhow::Result<Pipeline> {
    let start = Instant::now();
    let prepared = Prepared::open(spec, &mut Default::default())?;
    let kept = old.map(|old| old.layers().in_common_with(prepared.layers()));
    memory::reset_peak();
    let pipeline = prepared.load(kept.unwrap_or_default(), &|_| ())?;
    let total = start.elapsed();
    let (cost, merged) = (pipeline.cost(), pipeline.loras().iter().map(|lora| lora.merged));
    let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
    println!(
        "{what:<34} {:>9} {:>9} {:>7} MB {:>8} {:>10} {:>11} {:>11}",
        seconds(total),
        seconds(cost.merging),
        cost.bytes / 1_000_000,
        merged.sum::<usize>(),
        mib(prepared.layers().bytes()),
        mib(memory::allocated_bytes()),
        mib(memory::peak_bytes()),
    );
    Ok(pipeline)
}
