//! From a tensor's name in a LoRA file to the module it changes and what it is to it.
//!
//! Trainers agree on little but that a name is *module*, dot, *part*. Modules are spelled with
//! their dots (PEFT, diffusers) or with underscores in their place (kohya), after diffusers'
//! blocks or after those of the original files (LDM). Written with underscores all of these fall
//! into one table, which is made from the checkpoint's own modules: so no spelling is taken apart
//! by counting blocks.

use std::collections::HashMap;

use crate::engine::checkpoint::Module;

#[cfg(test)]
mod tests;

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Divided by the rank it is the scale of the whole.
    Alpha,
    // LoRA (Hu et al., 2021, arXiv:2106.09685) and LyCORIS' LoCon, which puts a core between.
    Down,
    Up,
    Core,
    UpBias,
    // LoHa: the product, element by element, of two such pairs (Hyeon-Woo et al., 2021,
    // arXiv:2108.06098).
    Hada1Up,
    Hada1Down,
    Hada1Core,
    Hada2Up,
    Hada2Down,
    Hada2Core,
    // LoKr: the Kronecker product of two matrices, each whole or a pair (Yeh et al., 2023,
    // arXiv:2309.14859).
    Kron1,
    Kron1Up,
    Kron1Down,
    Kron2,
    Kron2Up,
    Kron2Down,
    Kron2Core,
    // DoRA (Liu et al., 2024, arXiv:2402.09353), as LyCORIS and as PEFT name it.
    DoraScale,
    Magnitude,
    // The whole difference.
    Full,
    FullBias,
}

/// What names end with, after a dot. PEFT may put an adapter's name before the last word, which
/// is left out here (see [`Key::of`]).
const PARTS: &[(&str, Part)] = &[
    ("lora_down.weight", Part::Down),
    ("lora_up.weight", Part::Up),
    ("lora_mid.weight", Part::Core),
    ("alpha", Part::Alpha),
    ("dora_scale", Part::DoraScale),
    ("lora_A.weight", Part::Down),
    ("lora_B.weight", Part::Up),
    ("lora_B.bias", Part::UpBias),
    ("lora_magnitude_vector.weight", Part::Magnitude),
    ("lora_magnitude_vector", Part::Magnitude),
    ("lora.down.weight", Part::Down),
    ("lora.up.weight", Part::Up),
    ("lora_linear_layer.down.weight", Part::Down),
    ("lora_linear_layer.up.weight", Part::Up),
    ("hada_w1_a", Part::Hada1Up),
    ("hada_w1_b", Part::Hada1Down),
    ("hada_t1", Part::Hada1Core),
    ("hada_w2_a", Part::Hada2Up),
    ("hada_w2_b", Part::Hada2Down),
    ("hada_t2", Part::Hada2Core),
    ("lokr_w1", Part::Kron1),
    ("lokr_w1_a", Part::Kron1Up),
    ("lokr_w1_b", Part::Kron1Down),
    ("lokr_w2", Part::Kron2),
    ("lokr_w2_a", Part::Kron2Up),
    ("lokr_w2_b", Part::Kron2Down),
    ("lokr_t2", Part::Kron2Core),
    ("diff", Part::Full),
    ("diff_b", Part::FullBias),
];

/// Parts of what is not merged here, with its name.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("oft_blocks", "OFT"),
    ("oft_diag", "OFT"),
    ("oft_R.weight", "OFT"),
    ("on_input", "IA³"),
    ("a1.weight", "GLoRA"),
    ("b1.weight", "GLoRA"),
    ("lora_embedding_A", "a LoRA of a table of tokens"),
];

/// What stands before a module, and the component that is meant. The first that fits counts.
const PREFIXES: &[(&str, &str)] = &[
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("lycoris_", "unet"),
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
];

/// A tensor's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As the file spells it, without what only tells the part.
    pub module: String,
    pub part: Part,
}

/// Why a tensor's name means nothing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAKey {
    /// It belongs to an algorithm that is not merged.
    Unsupported(&'static str),
    Unknown,
}

impl Key {
    /// Takes a tensor's name apart.
    pub fn of(name: &str) -> Result<Self, NotAKey> {
        if let Some(key) = find(name, PARTS) {
            return Ok(key);
        }
        if let Some(without) = without_adapter_name(name)
            && let Some(key) = find(&without, PARTS)
        {
            return Ok(key);
        }
        if let Some(key) = of_processor(name) {
            return Ok(key);
        }
        let unsupported = UNSUPPORTED.iter().find(|(part, _)| before(name, part).is_some());
        Err(unsupported.map_or(NotAKey::Unknown, |(_, algorithm)| NotAKey::Unsupported(algorithm)))
    }
}

fn find(name: &str, parts: &[(&str, Part)]) -> Option<Key> {
    let found = parts.iter().find_map(|(part, kind)| Some((before(name, part)?, *kind)));
    found.map(|(module, part)| Key { module: module.to_owned(), part })
}

/// The module before a part.
fn before<'a>(name: &'a str, part: &str) -> Option<&'a str> {
    name.strip_suffix(part)?.strip_suffix('.').filter(|module| !module.is_empty())
}

/// `x.lora_A.default.weight` → `x.lora_A.weight`
fn without_adapter_name(name: &str) -> Option<String> {
    let (front, last) = name.rsplit_once('.')?;
    let (front, _adapter) = front.rsplit_once('.')?;
    let part = front.rsplit('.').next()?;
    let of_peft = matches!(part, "lora_A" | "lora_B" | "lora_magnitude_vector");
    of_peft.then(|| format!("{front}.{last}"))
}

/// `x.attn1.processor.to_q_lora.down.weight` (diffusers until 0.21) → `x.attn1.to_q`
fn of_processor(name: &str) -> Option<Key> {
    let sides = [("_lora.down.weight", Part::Down), ("_lora.up.weight", Part::Up)];
    let (module, part) =
        sides.into_iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, part)))?;
    let (attention, projection) = module.rsplit_once('.')?;
    if !matches!(projection, "to_q" | "to_k" | "to_v" | "to_out") {
        return None;
    }
    let attention = attention.strip_suffix(".processor").unwrap_or(attention);
    Some(Key { module: format!("{attention}.{projection}"), part })
}

/// The component that a module's name speaks of, and the rest with underscores for dots.
fn place(module: &str) -> (&'static str, String) {
    let module = module.strip_prefix("base_model.model.").unwrap_or(module);
    let found = PREFIXES
        .iter()
        .find_map(|(prefix, component)| Some((*component, module.strip_prefix(prefix)?)));
    let (component, rest) = match found {
        Some(found) => found,
        None if module.starts_with("text_model.") => ("text_encoder", module),
        None => ("unet", module),
    };
    (component, rest.replace('.', "_"))
}

/// The checkpoint's modules under every name that LoRAs have for them.
pub struct Targets<'a> {
    modules: HashMap<(&'a str, String), &'a Module>,
}

impl<'a> Targets<'a> {
    pub fn of(modules: &'a [Module]) -> Self {
        let mut targets = Self { modules: HashMap::new() };
        for module in modules {
            let Some((component, name)) = module.canonical.split_once('.') else { continue };
            targets.add(component, name, module);
            if let Some(ldm) = &module.ldm {
                targets.add(component, ldm, module);
            }
        }
        targets
    }

    fn add(&mut self, component: &'a str, name: &str, module: &'a Module) {
        // Newer text encoders of transformers have no `text_model`.
        let short = name.strip_prefix("text_model.");
        for name in std::iter::once(name).chain(short) {
            let name = name.replace('.', "_");
            if let Some(old) = name_in_a_processor(&name) {
                self.modules.entry((component, old)).or_insert(module);
            }
            self.modules.entry((component, name)).or_insert(module);
        }
    }

    pub fn find(&self, module: &str) -> Option<&'a Module> {
        self.modules.get(&place(module)).copied()
    }
}

/// What old LoRAs call a projection of an attention layer, if that is something else.
fn name_in_a_processor(name: &str) -> Option<String> {
    const OLD: [(&str, &str); 5] = [
        ("to_out_0", "to_out"),
        ("self_attn_q_proj", "self_attn_to_q"),
        ("self_attn_k_proj", "self_attn_to_k"),
        ("self_attn_v_proj", "self_attn_to_v"),
        ("self_attn_out_proj", "self_attn_to_out"),
    ];
    OLD.iter().find_map(|(new, old)| Some(format!("{}{old}", name.strip_suffix(new)?)))
}

/// Whether it is the projection of the text embeddings' keys, whose width tells families apart.
pub fn reads_text(module: &str) -> bool {
    place(module).1.ends_with("attn2_to_k")
}

/// Whether it is a module of a second text encoder.
pub fn is_of_second_text_encoder(module: &str) -> bool {
    place(module).0 == "text_encoder_2"
}
