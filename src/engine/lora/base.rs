//! Which family a LoRA was made for, as far as its file says so: for those who are told that it
//! does not fit.

use std::{collections::HashMap, fmt};

use super::{keys, sorted::Sorted};

/// The model that a LoRA was trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    Sd1,
    Sd2,
    Sdxl,
    Refiner,
    /// None of those, or none that can be told.
    Other(String),
}

/// A base and what says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub base: Base,
    /// `ss_base_model_version 'sdxl_base_v1-0'`
    pub evidence: String,
}

/// What trainers, model sites and PEFT write, the most telling first.
const METADATA: [&str; 5] = [
    "modelspec.architecture",
    "ss_base_model_version",
    "baseModel",
    "base_model",
    "base_model_name_or_path",
];

/// Longer ones are somebody's prose.
const LONGEST_SHOWN: usize = 80;

impl Base {
    /// As families are shown to people.
    pub fn name(&self) -> &str {
        match self {
            Self::Sd1 => "SD1.x",
            Self::Sd2 => "SD2.x",
            Self::Sdxl => "SDXL",
            Self::Refiner => "SDXL refiner",
            Self::Other(what) => what,
        }
    }

    fn is_known(&self) -> bool {
        !matches!(self, Self::Other(_))
    }
}

impl Claim {
    /// What the metadata says, or else what the shapes do.
    pub fn of(metadata: &HashMap<String, String>, sorted: &Sorted) -> Option<Self> {
        of_metadata(metadata).or_else(|| of_shapes(sorted))
    }

    /// Whether it speaks of another family than that of this name.
    pub fn contradicts(&self, family: &str) -> bool {
        self.base.is_known() && self.base.name() != family
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a LoRA for {} ({})", self.base.name(), self.evidence)
    }
}

fn of_metadata(metadata: &HashMap<String, String>) -> Option<Claim> {
    let claims = METADATA.iter().filter_map(|key| {
        let shown: String = metadata.get(*key)?.chars().take(LONGEST_SHOWN).collect();
        let base = of_words(&shown).unwrap_or_else(|| Base::Other("another model".to_owned()));
        Some(Claim { base, evidence: format!("{key} '{shown}'") })
    });
    // The first that is understood; else the first.
    let mut claims: Vec<_> = claims.collect();
    let known = claims.iter().position(|claim| claim.base.is_known()).unwrap_or(0);
    (!claims.is_empty()).then(|| claims.swap_remove(known))
}

/// The family that such a name speaks of: `sd_v1`, `stable-diffusion-xl-v1-base`, `SD 1.5`, `Pony`.
fn of_words(text: &str) -> Option<Base> {
    let text: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
    let text = text.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match () {
        () if has(&["refiner"]) => Some(Base::Refiner),
        () if has(&["sdxl", "diffusionxl", "pony", "illustrious", "noobai"]) => Some(Base::Sdxl),
        () if has(&["sdv1", "sd1", "diffusionv1", "diffusion1"]) => Some(Base::Sd1),
        () if has(&["sdv2", "sd2", "diffusionv2", "diffusion2"]) => Some(Base::Sd2),
        () => None,
    }
}

/// The width of the text embeddings that its cross-attention reads tells the family.
fn of_shapes(sorted: &Sorted) -> Option<Claim> {
    let width = sorted.adapters.iter().find_map(|(module, adapter)| {
        keys::reads_text(module).then(|| adapter.input_width()).flatten()
    });
    if let Some(width) = width {
        let base = match width {
            768 => Base::Sd1,
            1024 => Base::Sd2,
            1280 => Base::Refiner,
            2048 => Base::Sdxl,
            _ => Base::Other(format!("text embeddings of width {width}")),
        };
        return Some(Claim {
            base,
            evidence: format!("its cross-attention reads {width} numbers"),
        });
    }
    let second = sorted.adapters.keys().any(|module| keys::is_of_second_text_encoder(module));
    second.then(|| Claim {
        base: Base::Sdxl,
        evidence: "it changes a second text encoder".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bases() {
        for (text, expected) in [
            ("sd_v1", Some(Base::Sd1)),
            ("stable-diffusion-v1/lora", Some(Base::Sd1)),
            ("SD 1.5", Some(Base::Sd1)),
            ("runwayml/stable-diffusion-v1-5", Some(Base::Sd1)),
            ("sd_v2_v", Some(Base::Sd2)),
            ("stabilityai/stable-diffusion-2-1", Some(Base::Sd2)),
            ("stable-diffusion-v2-768-v", Some(Base::Sd2)),
            ("sdxl_base_v1-0", Some(Base::Sdxl)),
            ("stable-diffusion-xl-v1-base/lora", Some(Base::Sdxl)),
            ("Illustrious", Some(Base::Sdxl)),
            ("stable-diffusion-xl-v1-refiner", Some(Base::Refiner)),
            ("sd3m", None),
            ("flux1", None),
            ("", None),
        ] {
            assert_eq!(of_words(text), expected, "{text}");
        }
    }

    #[test]
    fn the_first_that_is_understood_counts() {
        let metadata = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let claim = of_metadata(&metadata(&[
            ("modelspec.architecture", "house/lora"),
            ("ss_base_model_version", "sd_v1"),
        ]));
        assert_eq!(claim.unwrap().to_string(), "a LoRA for SD1.x (ss_base_model_version 'sd_v1')");
        let claim = of_metadata(&metadata(&[("modelspec.architecture", "flux-1-dev/lora")]));
        let claim = claim.unwrap();
        assert!(!claim.contradicts("SD1.x"));
        assert_eq!(
            claim.to_string(),
            "a LoRA for another model (modelspec.architecture 'flux-1-dev/lora')"
        );
        assert_eq!(of_metadata(&HashMap::new()), None);
    }
}
