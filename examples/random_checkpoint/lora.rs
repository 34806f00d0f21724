//! Which tensors a LoRA has, as kohya's trainer writes them.

use std::collections::HashMap;

use clap::ValueEnum;

use super::architecture::{Family, Fill, Tensor};

const UNET: &str = "model.diffusion_model.";

/// Which layers of the UNet a LoRA changes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Over {
    /// Queries, keys, values and outputs of every attention.
    Attention,
    /// All of the transformers, as the trainer does by default.
    Transformers,
}

impl Over {
    fn takes(self, module: &str) -> bool {
        let is_attention = [".attn1.", ".attn2."].iter().any(|part| module.contains(part));
        let is_around =
            [".ff.net.", ".proj_in", ".proj_out"].iter().any(|part| module.contains(part));
        is_attention || self == Self::Transformers && is_around
    }
}

pub fn tensors(family: Family, over: Over, rank: usize) -> Vec<Tensor> {
    let mut lora = Vec::new();
    for Tensor { name, shape, .. } in family.unet_tensors() {
        let module = name.strip_prefix(UNET).and_then(|name| name.strip_suffix(".weight"));
        let Some(module) = module.filter(|module| over.takes(module)) else { continue };
        // `[output, input]`, and the kernel of a convolution.
        let [output, input, ref kernel @ ..] = shape[..] else { continue };
        let name = format!("lora_unet_{}", trained_name(family, module).replace('.', "_"));
        let mut push = |part: &str, shape: Vec<usize>, mean: f32, std: f32| {
            let fill = Fill::Normal { mean, std };
            lora.push(Tensor { name: format!("{name}.{part}"), shape, fill });
        };
        // What it adds is a twentieth as wide as what the layer gives by itself.
        push("lora_down.weight", [&[rank, input], kernel].concat(), 0.0, (input as f32).powf(-0.5));
        let ones = vec![1; kernel.len()];
        push(
            "lora_up.weight",
            [vec![output, rank], ones].concat(),
            0.0,
            0.1 / (rank as f32).sqrt(),
        );
        push("alpha", vec![], alpha(rank), 0.0);
    }
    lora
}

/// What a trainer writes beside the tensors.
pub fn metadata(family: Family, rank: usize) -> HashMap<String, String> {
    let base = match family {
        Family::Sd1 => "sd_v1",
        Family::Sd2 => "sd_v2",
        Family::Sdxl => "sdxl_base_v1-0",
        Family::Refiner => "sdxl_refiner_v1-0",
    };
    let entries = [
        ("ss_base_model_version", base.to_owned()),
        ("ss_network_module", "networks.lora".to_owned()),
        ("ss_network_dim", rank.to_string()),
        ("ss_network_alpha", alpha(rank).to_string()),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn alpha(rank: usize) -> f32 {
    rank as f32 / 2.0
}

/// The trainer holds SD1.x and SD2.x as diffusers does, and SDXL as the original file has it.
fn trained_name(family: Family, module: &str) -> String {
    match family {
        Family::Sd1 | Family::Sd2 => diffusers_name(module),
        Family::Sdxl | Family::Refiner => module.to_owned(),
    }
}

/// Of a transformer's layer: `input_blocks.4.1.proj_in` is `down_blocks.1.attentions.0.proj_in`.
fn diffusers_name(module: &str) -> String {
    if let Some(rest) = module.strip_prefix("middle_block.1.") {
        return format!("mid_block.attentions.0.{rest}");
    }
    let mut parts = module.splitn(4, '.');
    let mut part = || parts.next().unwrap_or_default();
    let (way, block, _, rest) = (part(), part(), part(), part());
    let block: usize = block.parse().unwrap_or_default();
    // Three to a level: two blocks and a downsampler after the first convolution, or three blocks.
    let (way, block) = match way {
        "input_blocks" => ("down", block - 1),
        _ => ("up", block),
    };
    format!("{way}_blocks.{}.attentions.{}.{rest}", block / 3, block % 3)
}
