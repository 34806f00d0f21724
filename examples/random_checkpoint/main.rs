//! Writes checkpoints of random weights in the true shapes of SD1.5, SD2.1, SDXL and its refiner, in
//! float16, and LoRAs for them.
//!
//! They draw nothing that means anything, but every number in them is as large as in trained ones,
//! so that time, memory and agreement with other programs can be measured without a download.
//!
//! ```text
//! cargo run --release --example random_checkpoint -- --family sdxl OUT.safetensors [--seed N]
//! cargo run --release --example random_checkpoint -- --family sdxl --lora OUT.safetensors --rank 16 --over attention
//! ```
//!
//! `architecture` knows which tensors a checkpoint has, `lora` which ones a LoRA for it; this file
//! knows how they are filled.

mod architecture;
mod lora;

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::Context;
use architecture::{Family, Fill, Tensor};
use clap::Parser;
use half::f16;
use rayon::prelude::*;
use safetensors::{Dtype, View};

/// Write a checkpoint of random weights, or a LoRA, or both.
#[derive(Parser)]
struct Options {
    /// The checkpoint to write.
    #[arg(required_unless_present = "lora")]
    out: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "sd1")]
    family: Family,
    /// A LoRA to write, under kohya's names.
    #[arg(long, value_name = "OUT")]
    lora: Option<PathBuf>,
    /// The LoRA's rank; its alpha is half of that.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=320))]
    rank: u16,
    /// Which layers the LoRA changes.
    #[arg(long, value_enum, default_value = "attention")]
    over: lora::Over,
    /// Another seed gives other weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let Options { out, family, lora, rank, over, seed } = Options::parse();
    if let Some(out) = out {
        write(&out, &family.tensors(), None, seed)?;
    }
    if let Some(out) = lora {
        let rank = usize::from(rank);
        write(&out, &lora::tensors(family, over, rank), Some(lora::metadata(family, rank)), seed)?;
    }
    Ok(())
}

fn write(
    out: &Path,
    tensors: &[Tensor],
    metadata: Option<HashMap<String, String>>,
    seed: u64,
) -> anyhow::Result<()> {
    let progress = Progress::new(tensors.iter().map(data_len).sum());
    let views = tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), Lazy { tensor, seed, progress: &progress }));
    safetensors::serialize_to_file(views, metadata, out)
        .with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: {} tensors", out.display(), tensors.len());
    Ok(())
}

/// A tensor whose numbers come into being when it is written, and are gone after.
struct Lazy<'a> {
    tensor: &'a Tensor,
    seed: u64,
    progress: &'a Progress,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.fill {
            Fill::Normal { .. } => Dtype::F16,
            Fill::Positions => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let count = self.tensor.shape.iter().product();
        let data = match self.tensor.fill {
            Fill::Normal { mean, std } => {
                normal(count, mean, std, self.seed ^ fnv1a(&self.tensor.name))
            }
            Fill::Positions => (0..count as i64).flat_map(i64::to_le_bytes).collect(),
        };
        self.progress.add(data.len());
        Cow::Owned(data)
    }

    fn data_len(&self) -> usize {
        data_len(self.tensor)
    }
}

fn data_len(tensor: &Tensor) -> usize {
    let bytes_each = match tensor.fill {
        Fill::Normal { .. } => size_of::<f16>(),
        Fill::Positions => size_of::<i64>(),
    };
    tensor.shape.iter().product::<usize>() * bytes_each
}

/// As many numbers as a thread fills at a time.
const CHUNK: usize = 1 << 16;

/// Little-endian float16, the same for a seed on every machine and with any number of threads.
fn normal(count: usize, mean: f32, std: f32, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; count * size_of::<f16>()];
    bytes.par_chunks_mut(CHUNK * size_of::<f16>()).enumerate().for_each(|(chunk, bytes)| {
        let mut random = SplitMix64(SplitMix64(seed ^ chunk as u64).next());
        for bytes in bytes.as_chunks_mut().0 {
            *bytes = f16::from_f32(mean + std * random.next_normal()).to_le_bytes();
        }
    });
    bytes
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The sum of four uniform numbers: near enough to normal, at the price of one draw.
    fn next_normal(&mut self) -> f32 {
        let bits = self.next();
        let sum = (0..4).map(|n| (bits >> (16 * n)) & 0xffff).sum::<u64>();
        // Each has the mean (2^16 - 1) / 2 and the variance 2^32 / 12.
        (sum as f32 - 131_070.0) / (65_536.0 / 3f32.sqrt())
    }
}

/// Weights depend on their name and not on their place in the file.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A line on stderr for every tenth that is done.
struct Progress {
    total: usize,
    done: AtomicUsize,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { total, done: AtomicUsize::new(0) }
    }

    fn add(&self, bytes: usize) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let tenths = |done: usize| done * 10 / self.total;
        if tenths(before + bytes) > tenths(before) {
            let percent = tenths(before + bytes) * 10;
            eprintln!("{percent:3} % of {} MB", self.total / 1_000_000);
        }
    }
}
