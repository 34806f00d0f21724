//! The names that single-file checkpoints use (those of CompVis' latent-diffusion, "LDM", and of
//! OpenCLIP), below the prefix of each component.
//!
//! They number blocks straight through (`input_blocks.7.1`), where the canonical names say what a
//! block is (`down_blocks.2.attentions.0`). How many there are of each is read off the file.

use super::{
    file::Header,
    names::{Names, Parts, SAME, View, join, part, view},
};

const UNET_RESNET: Parts = &[
    part("norm1", "in_layers.0"),
    part("conv1", "in_layers.2"),
    part("time_emb_proj", "emb_layers.1"),
    part("norm2", "out_layers.0"),
    part("conv2", "out_layers.3"),
    part("conv_shortcut", "skip_connection"),
];
const VAE_RESNET: Parts = &[part("conv_shortcut", "nin_shortcut")];
const VAE_ATTENTION: Parts = &[
    part("group_norm", "norm"),
    part("to_q", "q"),
    part("to_k", "k"),
    part("to_v", "v"),
    part("to_out.0", "proj_out"),
];
const OLD_VAE_ATTENTION: Parts = &[
    part("to_q", "query"),
    part("to_k", "key"),
    part("to_v", "value"),
    part("to_out.0", "proj_attn"),
];
const OPEN_CLIP_LAYER: Parts = &[
    part("layer_norm1", "ln_1"),
    part("layer_norm2", "ln_2"),
    part("mlp.fc1", "mlp.c_fc"),
    part("mlp.fc2", "mlp.c_proj"),
    part("self_attn.out_proj", "attn.out_proj"),
    view("self_attn.q_proj.weight", "attn.in_proj_weight", View::Third(0)),
    view("self_attn.k_proj.weight", "attn.in_proj_weight", View::Third(1)),
    view("self_attn.v_proj.weight", "attn.in_proj_weight", View::Third(2)),
    view("self_attn.q_proj.bias", "attn.in_proj_bias", View::Third(0)),
    view("self_attn.k_proj.bias", "attn.in_proj_bias", View::Third(1)),
    view("self_attn.v_proj.bias", "attn.in_proj_bias", View::Third(2)),
];
const TEXT_PROJECTION: Parts = &[view("weight", "", View::Transposed)];

/// CLIP's text encoder as transformers calls its parts. `model` is what the file calls
/// `text_model`, which some exporters leave out.
pub(super) fn clip(model: &str, prefix: &str) -> Names {
    let mut names = Names::default();
    names.add("text_model", join(prefix, model), SAME);
    names.add("text_projection", join(prefix, "text_projection"), SAME);
    names
}

/// Layers that SD2.x uses of the 24 of its text encoder.
const SD2_LAYERS: usize = 23;

/// SD2's text encoder. The model was trained on what the last layer but one says, so that the
/// reference leaves the last one out, and so do files that were converted from its folders. In
/// one of another depth that shows in what comes behind that layer.
pub(super) fn sd2_clip(file: &Header, prefix: &str) -> Names {
    let has = |name: &str| file.has_prefix(&join(prefix, name));
    let unused = match file.count(&join(prefix, &format!("{LAYERS}."))) {
        layers @ SD2_LAYERS.. => layers - SD2_LAYERS,
        _ => usize::from(has("text_projection") || has("logit_scale")),
    };
    open_clip(file, prefix, unused)
}

/// What OpenCLIP calls the layers of its text encoder.
const LAYERS: &str = "transformer.resblocks";

/// CLIP's text encoder as OpenCLIP calls its parts. `unused`: layers at its end that are in the
/// file and not in the model.
pub(super) fn open_clip(file: &Header, prefix: &str, unused: usize) -> Names {
    let mut names = Names::default();
    let (model, at) = ("text_model", |name: &str| join(prefix, name));
    let embeddings = format!("{model}.embeddings");
    names.add(format!("{embeddings}.token_embedding"), at("token_embedding"), SAME);
    let position = format!("{embeddings}.position_embedding.weight");
    names.add(position, at("positional_embedding"), SAME);
    names.add(format!("{model}.final_layer_norm"), at("ln_final"), SAME);
    // A parameter of its own in the original, a linear layer where it was converted.
    if file.entries.contains_key(&at("text_projection.weight")) {
        names.add("text_projection", at("text_projection"), SAME);
    } else {
        names.add("text_projection", at("text_projection"), TEXT_PROJECTION);
    }
    let layers = at(LAYERS);
    for i in 0..file.count(&format!("{layers}.")).saturating_sub(unused).max(1) {
        let canonical = format!("{model}.encoder.layers.{i}");
        names.add(canonical, format!("{layers}.{i}"), OPEN_CLIP_LAYER);
    }
    names
}

/// What the names of a UNet's blocks depend on.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct UNetShape {
    /// For each level, for each of its layers, whether attention follows the residual block.
    down: Vec<Vec<bool>>,
    mid: bool,
    mid_attention: bool,
    up: Vec<Vec<bool>>,
    /// `add_embedding` and `time_embedding.cond_proj`.
    added: bool,
    guidance: bool,
}

impl UNetShape {
    /// Of a UNet under LDM's names.
    pub fn of_ldm(file: &Header, prefix: &str) -> Self {
        let has = |name: String| file.has_prefix(&format!("{prefix}.{name}"));
        let mut down = vec![Vec::new()];
        for n in 1..file.count(&format!("{prefix}.input_blocks.")) {
            if has(format!("input_blocks.{n}.0.op.")) {
                down.push(Vec::new());
            } else if let Some(level) = down.last_mut() {
                level.push(has(format!("input_blocks.{n}.1.")));
            }
        }
        // An up block takes what each layer of its down block left, and what came before them.
        let mut n = 0;
        let up = down.iter().rev().map(|level| {
            let layers = level.iter().chain([&false]).map(|_| {
                let file = format!("output_blocks.{n}.1.");
                n += 1;
                has(file.clone()) && !has(format!("{file}conv."))
            });
            layers.collect()
        });
        let up = up.collect();
        Self {
            down,
            mid: has("middle_block.".into()),
            mid_attention: has("middle_block.1.".into()) || has("middle_block.2.".into()),
            up,
            added: has("label_emb.".into()),
            guidance: has("time_embed.cond_proj.".into()),
        }
    }

    /// Of a UNet with modules of these canonical names.
    pub fn of_modules<'a>(modules: impl Iterator<Item = &'a str>) -> Self {
        let mut shape = Self::default();
        for module in modules {
            let words: Vec<_> = module.split('.').collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok());
            let blocks = match words[0] {
                "down_blocks" => &mut shape.down,
                "up_blocks" => &mut shape.up,
                first => {
                    shape.mid |= first == "mid_block";
                    shape.mid_attention |= module.starts_with("mid_block.attentions.");
                    shape.added |= first == "add_embedding";
                    shape.guidance |= module == "time_embedding.cond_proj";
                    continue;
                }
            };
            let (Some(level), Some(layer)) = (number(1), number(3)) else { continue };
            let kind = words.get(2).copied().unwrap_or_default();
            let is_possible = level < MAX_BLOCKS && layer < MAX_BLOCKS;
            if is_possible && matches!(kind, "resnets" | "attentions") {
                grow(blocks, level + 1, Vec::new());
                grow(&mut blocks[level], layer + 1, false);
                blocks[level][layer] |= kind == "attentions";
            }
        }
        shape
    }

    /// What LDM calls the modules of such a UNet.
    pub fn names(&self) -> Names {
        let mut names = Names::default();
        for (canonical, file) in [
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("conv_in", "input_blocks.0.0"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
        ] {
            names.add(canonical, file, SAME);
        }
        if self.guidance {
            names.add("time_embedding.cond_proj", "time_embed.cond_proj", SAME);
        }
        if self.added {
            names.add("add_embedding.linear_1", "label_emb.0.0", SAME);
            names.add("add_embedding.linear_2", "label_emb.0.2", SAME);
        }
        if self.mid {
            names.add("mid_block.resnets.0", "middle_block.0", UNET_RESNET);
        }
        if self.mid_attention {
            names.add("mid_block.attentions.0", "middle_block.1", SAME);
            names.add("mid_block.resnets.1", "middle_block.2", UNET_RESNET);
        }
        self.add_down(&mut names);
        self.add_up(&mut names);
        names
    }

    fn add_down(&self, names: &mut Names) {
        let mut n = 1;
        for (level, layers) in self.down.iter().enumerate() {
            let block = format!("down_blocks.{level}");
            for (i, attention) in layers.iter().enumerate() {
                add_layer(names, &block, i, &format!("input_blocks.{n}"), *attention);
                n += 1;
            }
            if level + 1 < self.down.len() {
                let conv = format!("{block}.downsamplers.0.conv");
                names.add(conv, format!("input_blocks.{n}.0.op"), SAME);
                n += 1;
            }
        }
    }

    fn add_up(&self, names: &mut Names) {
        let mut n = 0;
        for (level, layers) in self.up.iter().enumerate() {
            let block = format!("up_blocks.{level}");
            for (i, attention) in layers.iter().enumerate() {
                let file = format!("output_blocks.{n}");
                add_layer(names, &block, i, &file, *attention);
                n += 1;
                if i + 1 == layers.len() && level + 1 < self.up.len() {
                    let conv = format!("{block}.upsamplers.0.conv");
                    names.add(conv, format!("{file}.{}.conv", 1 + usize::from(*attention)), SAME);
                }
            }
        }
    }
}

/// More levels, or layers in one, than any UNet has; a name that says so is made up.
const MAX_BLOCKS: usize = 64;

fn grow<T: Clone>(list: &mut Vec<T>, len: usize, with: T) {
    if list.len() < len {
        list.resize(len, with);
    }
}

fn add_layer(names: &mut Names, block: &str, i: usize, file: &str, attention: bool) {
    names.add(format!("{block}.resnets.{i}"), format!("{file}.0"), UNET_RESNET);
    if attention {
        names.add(format!("{block}.attentions.{i}"), format!("{file}.1"), SAME);
    }
}

/// The autoencoder's modules as diffusers called them before 2023.
pub(super) fn old_vae() -> Names {
    let mut names = Names::default();
    for half in ["encoder", "decoder"] {
        let attention = format!("{half}.mid_block.attentions.0");
        names.add(attention.clone(), attention, OLD_VAE_ATTENTION);
    }
    names.add("", "", SAME);
    names
}

/// The autoencoder's modules.
pub(super) fn vae(file: &Header, prefix: &str) -> Names {
    let mut names = Names::default();
    for name in ["quant_conv", "post_quant_conv"] {
        names.add(name, join(prefix, name), SAME);
    }
    for (half, blocks, file_blocks, resampler) in [
        ("encoder", "down_blocks", "down", ("downsamplers.0.conv", "downsample.conv")),
        ("decoder", "up_blocks", "up", ("upsamplers.0.conv", "upsample.conv")),
    ] {
        let theirs = join(prefix, half);
        // Some files come without the encoder, but none without a decoder that draws.
        if half == "encoder" && !file.has_prefix(&format!("{theirs}.")) {
            continue;
        }
        for (canonical, file, parts) in [
            ("conv_in", "conv_in", SAME),
            ("conv_norm_out", "norm_out", SAME),
            ("conv_out", "conv_out", SAME),
            ("mid_block.resnets.0", "mid.block_1", VAE_RESNET),
            ("mid_block.attentions.0", "mid.attn_1", VAE_ATTENTION),
            ("mid_block.resnets.1", "mid.block_2", VAE_RESNET),
        ] {
            names.add(format!("{half}.{canonical}"), format!("{theirs}.{file}"), parts);
        }
        let levels = file.count(&format!("{theirs}.{file_blocks}."));
        for level in 0..levels {
            let file_block = format!("{theirs}.{file_blocks}.{level}");
            // The decoder's levels are counted from the finest, its canonical blocks from the coarsest.
            let block = if half == "decoder" { levels - 1 - level } else { level };
            let block = format!("{half}.{blocks}.{block}");
            for layer in 0..file.count(&format!("{file_block}.block.")) {
                let canonical = format!("{block}.resnets.{layer}");
                names.add(canonical, format!("{file_block}.block.{layer}"), VAE_RESNET);
            }
            let is_last = if half == "decoder" { level == 0 } else { level + 1 == levels };
            if !is_last {
                let (canonical, file) = resampler;
                names.add(format!("{block}.{canonical}"), format!("{file_block}.{file}"), SAME);
            }
        }
    }
    names
}
