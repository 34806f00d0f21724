//! How long merging takes: a LoRA over all attention layers of SDXL's UNet, whose shapes are real
//! and whose numbers are random.
//!
//!     cargo bench --bench lora [-- RANK]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use diffused::{
    engine::{
        checkpoint::{FileIdentity, Module},
        lora::{LoraCache, Patches, Recipient},
        noise::Generator,
    },
    modes::{LoraRef, OnLoraError},
};
use half::f16;
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};

/// Of text embeddings.
const CONTEXT: usize = 2048;
/// Where SDXL's transformers are: how many, each of how many blocks, and their width.
const TRANSFORMERS: [(&str, usize, usize, usize); 5] = [
    ("down_blocks.1", 2, 2, 640),
    ("down_blocks.2", 2, 10, 1280),
    ("mid_block", 1, 10, 1280),
    ("up_blocks.0", 3, 10, 1280),
    ("up_blocks.1", 3, 2, 640),
];
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let rank = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(16);
    let modules = modules();
    let folder = tempfile::tempdir()?;
    let lora = write_lora(&modules, rank, folder.path())?;
    // Some file: whose modules they are does not matter.
    let files = vec![FileIdentity::of(&lora.path)?];
    let to = Recipient::new("SDXL", files, || modules.clone());
    let mut cache = LoraCache::new();
    cache.set_limits(1, u64::MAX);
    let mut open = || {
        let started = Instant::now();
        let opened = Patches::of(std::slice::from_ref(&lora), &to, OnLoraError::Fail, &mut cache);
        opened.map(|(patches, _)| (patches, started.elapsed()))
    };
    let (_, matched) = open()?;
    let (patches, found_again) = open()?;

    let mut weights: BTreeMap<&[usize], Vec<f32>> = BTreeMap::new();
    for module in &modules {
        let count = module.dims.iter().product();
        weights.entry(&module.dims).or_insert_with(|| vec![1.0; count]);
    }
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            for module in &modules {
                let weight = weights.get_mut(&*module.dims).expect("made above");
                patches.apply(&format!("{}.weight", module.canonical), &module.dims, weight);
            }
            started.elapsed()
        })
        .collect();
    rounds.sort();
    let numbers: usize = modules.iter().map(|module| module.dims.iter().product::<usize>()).sum();
    println!(
        "rank {rank} into {} attention layers of SDXL ({} M numbers): opened in {:.1} ms, again in \
         {:.3} ms, merged in {:.2} s ({:.2} to {:.2})",
        modules.len(),
        numbers / 1_000_000,
        matched.as_secs_f64() * 1e3,
        found_again.as_secs_f64() * 1e3,
        rounds[ROUNDS / 2].as_secs_f64(),
        rounds[0].as_secs_f64(),
        rounds[ROUNDS - 1].as_secs_f64(),
    );
    Ok(())
}

fn modules() -> Vec<Module> {
    let mut modules = Vec::new();
    for (block, transformers, depth, width) in TRANSFORMERS {
        for (transformer, layer) in
            (0..transformers).flat_map(|t| (0..depth).map(move |layer| (t, layer)))
        {
            for attention in ["attn1", "attn2"] {
                let context = if attention == "attn2" { CONTEXT } else { width };
                for (name, inputs) in
                    [("to_q", width), ("to_k", context), ("to_v", context), ("to_out.0", width)]
                {
                    let canonical = format!(
                        "unet.{block}.attentions.{transformer}.transformer_blocks.{layer}.{attention}.{name}"
                    );
                    modules.push(Module { canonical, ldm: None, dims: vec![width, inputs] });
                }
            }
        }
    }
    modules
}

fn write_lora(
    modules: &[Module],
    rank: usize,
    folder: &std::path::Path,
) -> anyhow::Result<LoraRef> {
    let largest = rank * CONTEXT;
    let numbers = Generator::new(0).randn(largest);
    let bytes: Vec<u8> =
        numbers.iter().flat_map(|x| f16::from_f32(0.01 * x).to_le_bytes()).collect();
    let mut views = BTreeMap::new();
    for Module { canonical, dims, .. } in modules {
        for (part, dims) in [("lora_A", [rank, dims[1]]), ("lora_B", [dims[0], rank])] {
            let bytes = &bytes[..2 * dims[0] * dims[1]];
            let view = TensorView::new(Dtype::F16, dims.to_vec(), bytes)?;
            views.insert(format!("{canonical}.{part}.weight"), view);
        }
    }
    let (name, path) = ("random.safetensors".to_owned(), folder.join("random.safetensors"));
    serialize_to_file(views, None, &path)?;
    Ok(LoraRef { name, path, strength: 1.0, adapter_name: None })
}
