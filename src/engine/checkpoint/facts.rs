//! What a checkpoint is, besides its tensors.

use std::collections::HashMap;

use crate::modes::{Prediction, SchedulerId, Spacing};

/// A checkpoint's kind; it fixes what the tensors' shapes cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.x.
    Sd1,
    /// Stable Diffusion 2.x.
    Sd2,
    /// Stable Diffusion XL (Podell et al., 2023, arXiv:2307.01952).
    Sdxl,
    /// The model that SDXL's authors made for the last steps.
    SdxlRefiner,
}

impl Family {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "SD1.x",
            Self::Sd2 => "SD2.x",
            Self::Sdxl => "SDXL",
            Self::SdxlRefiner => "SDXL refiner",
        }
    }
}

/// How a width is divided among attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// The same number at every width (SD1.x: 8).
    Count(usize),
    /// As many as there are of this width (SD2.x and SDXL: 64).
    Width(usize),
}

impl Heads {
    /// How many there are, or what a width must be a multiple of.
    pub fn of(self, width: usize) -> Result<usize, usize> {
        let (count, unit) = match self {
            Self::Count(count) => (count, count),
            Self::Width(head) => (width / head.max(1), head),
        };
        if unit > 0 && width.is_multiple_of(unit) && count > 0 { Ok(count) } else { Err(unit) }
    }
}

/// What a checkpoint says of itself, and what its family says where it is silent.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub family: Family,
    pub heads: Heads,
    pub prediction: Prediction,
    /// Trained to begin at noise without any signal (Lin et al., 2023, arXiv:2305.08891).
    pub zero_terminal_snr: bool,
    /// The spacing of timesteps that it asks for.
    pub spacing: Option<Spacing>,
    /// Distilled by latent consistency (Luo et al., 2023).
    pub is_lcm: bool,
    /// What latents are multiplied by on their way out of the VAE's encoder.
    pub latent_scale: f64,
    /// An absent negative prompt is zeros and not the empty prompt.
    pub zero_negative: bool,
}

impl Facts {
    /// What the family says.
    pub fn of(family: Family) -> Self {
        let is_xl = matches!(family, Family::Sdxl | Family::SdxlRefiner);
        Self {
            family,
            heads: if family == Family::Sd1 { Heads::Count(8) } else { Heads::Width(64) },
            prediction: Prediction::Epsilon,
            zero_terminal_snr: false,
            spacing: None,
            is_lcm: false,
            latent_scale: if is_xl { 0.13025 } else { 0.18215 },
            zero_negative: family == Family::Sdxl,
        }
    }

    /// What draws where neither mode nor request names a scheduler.
    pub fn default_scheduler(&self) -> SchedulerId {
        match self.family {
            _ if self.is_lcm => SchedulerId::Lcm,
            Family::Sd1 | Family::Sd2 => SchedulerId::Ddim,
            Family::Sdxl | Family::SdxlRefiner => SchedulerId::Euler,
        }
    }

    /// How timesteps are spaced where neither mode nor request says so. A model that was trained
    /// to begin at pure noise must be shown the last timestep, which `leading` leaves out.
    pub fn default_spacing(&self) -> Spacing {
        let from_pure_noise = self.zero_terminal_snr.then_some(Spacing::Trailing);
        self.spacing.or(from_pure_noise).unwrap_or(Spacing::Leading)
    }
}

/// Whether a file says that it was distilled by latent consistency: in its name or its title.
pub fn says_lcm(name: &str, metadata: &HashMap<String, String>) -> bool {
    let has_word = |text: &str| {
        text.split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| word.eq_ignore_ascii_case("lcm"))
    };
    let file = name.rsplit('/').next().unwrap_or(name);
    let titles = ["modelspec.title", "ss_output_name"].iter().filter_map(|key| metadata.get(*key));
    has_word(file) || titles.into_iter().any(|title| has_word(title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        for (heads, width, expected) in [
            (Heads::Count(8), 320, Ok(8)),
            (Heads::Count(8), 324, Err(8)),
            (Heads::Width(64), 1280, Ok(20)),
            (Heads::Width(64), 320, Ok(5)),
            (Heads::Width(64), 32, Err(64)),
            (Heads::Width(0), 32, Err(0)),
        ] {
            assert_eq!(heads.of(width), expected, "{heads:?} {width}");
        }
    }

    #[test]
    fn lcm_is_said_by_a_word() {
        let title = HashMap::from([("modelspec.title".to_owned(), "My LCM model".to_owned())]);
        for (name, metadata, expected) in [
            ("sd/LCM_Dreamshaper_v7.safetensors", &HashMap::new(), true),
            ("lcm/plain.safetensors", &HashMap::new(), false),
            ("helcmet.safetensors", &HashMap::new(), false),
            ("plain.safetensors", &title, true),
        ] {
            assert_eq!(says_lcm(name, metadata), expected, "{name}");
        }
    }
}
