//! The names that single-file checkpoints use (those of CompVis' latent-diffusion, "LDM").
//!
//! They number blocks straight through (`input_blocks.7.1`), where the canonical names say what a
//! block is (`down_blocks.2.attentions.0`). How many there are of each is read off the file.

use std::{collections::BTreeMap, ops::Bound};

use super::{Entry, has_prefix};

const UNET: &str = "model.diffusion_model";
const VAE: &str = "first_stage_model";
const TEXT: &str = "cond_stage_model.transformer";

/// How a module's own parts are called, canonical first.
type Parts = &'static [(&'static str, &'static str)];

const SAME: Parts = &[];
const UNET_RESNET: Parts = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];
const VAE_RESNET: Parts = &[("conv_shortcut", "nin_shortcut")];
const VAE_ATTENTION: Parts = &[
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
];

struct Module {
    canonical: String,
    file: String,
    parts: Parts,
}

/// What one file calls the modules that it has.
pub(super) struct Layout {
    modules: Vec<Module>,
}

impl Layout {
    pub fn of(entries: &BTreeMap<String, Entry>) -> Self {
        let mut layout = Self { modules: Vec::new() };
        layout.add_text_encoder(entries);
        layout.add_unet(entries);
        layout.add_vae(entries);
        layout
    }

    /// What the file calls the tensor or module of that canonical name.
    pub fn file_name(&self, canonical: &str) -> String {
        for module in &self.modules {
            let Some(rest) = below(canonical, &module.canonical) else { continue };
            let part = module.parts.iter().find_map(|(ours, theirs)| {
                Some(format!(".{theirs}{}", below(rest.strip_prefix('.')?, ours)?))
            });
            return format!("{}{}", module.file, part.as_deref().unwrap_or(rest));
        }
        canonical.to_owned()
    }

    /// Whether the file has the module of that name, or others inside it.
    pub fn has_module(&self, canonical: &str) -> bool {
        self.modules.iter().any(|module| below(&module.canonical, canonical).is_some())
    }

    fn add(&mut self, canonical: impl Into<String>, file: impl Into<String>, parts: Parts) {
        let (canonical, file) = (canonical.into(), file.into());
        self.modules.push(Module { canonical, file, parts });
    }

    fn add_text_encoder(&mut self, entries: &BTreeMap<String, Entry>) {
        // Files written by newer exporters leave `text_model` out.
        let with_model = format!("{TEXT}.text_model");
        let model = if has_prefix(entries, &with_model) { with_model } else { TEXT.to_owned() };
        self.add("text_encoder.text_model", model, SAME);
    }

    fn add_unet(&mut self, entries: &BTreeMap<String, Entry>) {
        let has = |name: String| has_prefix(entries, &name);
        for (canonical, file) in [
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("conv_in", "input_blocks.0.0"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
            ("mid_block.attentions.0", "middle_block.1"),
        ] {
            self.add(format!("unet.{canonical}"), format!("{UNET}.{file}"), SAME);
        }
        for (i, file) in [(0, 0), (1, 2)] {
            let canonical = format!("unet.mid_block.resnets.{i}");
            self.add(canonical, format!("{UNET}.middle_block.{file}"), UNET_RESNET);
        }
        let (mut block, mut layer) = (0, 0);
        for n in 1..count(entries, &format!("{UNET}.input_blocks.")) {
            let file = format!("{UNET}.input_blocks.{n}");
            let canonical = format!("unet.down_blocks.{block}");
            if has(format!("{file}.0.op.")) {
                self.add(format!("{canonical}.downsamplers.0.conv"), format!("{file}.0.op"), SAME);
                (block, layer) = (block + 1, 0);
                continue;
            }
            self.add(format!("{canonical}.resnets.{layer}"), format!("{file}.0"), UNET_RESNET);
            if has(format!("{file}.1.")) {
                self.add(format!("{canonical}.attentions.{layer}"), format!("{file}.1"), SAME);
            }
            layer += 1;
        }
        // An up block takes what each layer of its down block left, and what came before them.
        let (layers, all) = (layer + 1, count(entries, &format!("{UNET}.output_blocks.")));
        for n in 0..all {
            let file = format!("{UNET}.output_blocks.{n}");
            let (canonical, layer) = (format!("unet.up_blocks.{}", n / layers), n % layers);
            self.add(format!("{canonical}.resnets.{layer}"), format!("{file}.0"), UNET_RESNET);
            let mut next = 1;
            if has(format!("{file}.1.")) && !has(format!("{file}.1.conv.")) {
                self.add(format!("{canonical}.attentions.{layer}"), format!("{file}.1"), SAME);
                next = 2;
            }
            if layer + 1 == layers && n + 1 < all {
                let upsampler = format!("{file}.{next}.conv");
                self.add(format!("{canonical}.upsamplers.0.conv"), upsampler, SAME);
            }
        }
    }

    fn add_vae(&mut self, entries: &BTreeMap<String, Entry>) {
        self.add("vae.post_quant_conv", format!("{VAE}.post_quant_conv"), SAME);
        let (ours, theirs) = ("vae.decoder", format!("{VAE}.decoder"));
        for (canonical, file, parts) in [
            ("conv_in", "conv_in", SAME),
            ("conv_norm_out", "norm_out", SAME),
            ("conv_out", "conv_out", SAME),
            ("mid_block.resnets.0", "mid.block_1", VAE_RESNET),
            ("mid_block.attentions.0", "mid.attn_1", VAE_ATTENTION),
            ("mid_block.resnets.1", "mid.block_2", VAE_RESNET),
        ] {
            self.add(format!("{ours}.{canonical}"), format!("{theirs}.{file}"), parts);
        }
        // The file counts its levels from the finest, the canonical names from the coarsest.
        let levels = count(entries, &format!("{theirs}.up."));
        for level in 0..levels {
            let (file, block) = (format!("{theirs}.up.{level}"), levels - 1 - level);
            let canonical = format!("{ours}.up_blocks.{block}");
            for layer in 0..count(entries, &format!("{file}.block.")) {
                let file = format!("{file}.block.{layer}");
                self.add(format!("{canonical}.resnets.{layer}"), file, VAE_RESNET);
            }
            if level > 0 {
                let file = format!("{file}.upsample.conv");
                self.add(format!("{canonical}.upsamplers.0.conv"), file, SAME);
            }
        }
    }
}

/// What follows `module` in `name`: nothing, or a dot and the rest.
fn below<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    name.strip_prefix(module).filter(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// One more than the largest number that follows `prefix` in a name.
fn count(entries: &BTreeMap<String, Entry>, prefix: &str) -> usize {
    entries
        .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .map_while(|(name, _)| name.strip_prefix(prefix))
        .filter_map(|rest| rest.split('.').next()?.parse::<usize>().ok())
        .max()
        .map_or(0, |n| n + 1)
}
