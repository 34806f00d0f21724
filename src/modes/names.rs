//! Values that users choose by a name, and what is said of a name that is none.

/// A type whose values have names that users write.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident: $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $type { $($(#[$variant_doc])* $variant,)+ }

        impl $type {
            pub const NAMES: &[&str] = &[$($name),+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::modes::UnknownName;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err($crate::modes::UnknownName::new($what, name, Self::NAMES)),
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = $crate::modes::UnknownName;

            fn try_from(name: String) -> Result<Self, Self::Error> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.name().to_owned()
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}
pub(super) use named;

/// A word that is none of those there are.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("there is no {what} '{name}'{} (there are: {})", did_you_mean(.nearest.as_deref()), .known.join(", "))]
pub struct UnknownName {
    pub what: &'static str,
    pub name: String,
    pub nearest: Option<String>,
    pub known: &'static [&'static str],
}

impl UnknownName {
    pub(super) fn new(what: &'static str, name: &str, known: &'static [&'static str]) -> Self {
        let nearest = nearest_name(name, known.iter().copied());
        Self { what, name: name.to_owned(), nearest, known }
    }
}

named! {
    /// Which pipeline leaves memory for another one; `vram::plan` has the formulas.
    Eviction: "eviction policy" {
        /// The one that was used least recently.
        Lru = "lru",
        /// The one that was loaded first.
        Fifo = "fifo",
        /// The one that gives back the most for the least: idle for long, large, soon loaded again.
        MemoryPressure = "memory_pressure",
    }
}

named! {
    /// Which of the waiting jobs is next; `queue::order` has the rules.
    Scheduling: "choice" {
        /// In the order of arrival.
        Fifo = "fifo",
        /// Those of the mode that is loaded first, as long as nobody waits too long.
        Affinity = "affinity",
    }
}

named! {
    /// What happens where a LoRA cannot be merged into the checkpoint.
    OnLoraError: "choice" {
        /// The mode cannot be loaded.
        Fail = "fail",
        /// It draws without that LoRA, and says so.
        Skip = "skip",
    }
}

named! {
    /// What a UNet was trained to predict.
    Prediction: "prediction" {
        /// The noise, ε (Ho et al., 2020).
        Epsilon = "epsilon",
        /// The velocity, v (Salimans & Ho, 2022, arXiv:2202.00512).
        V = "v",
    }
}

named! {
    /// How a scheduler's timesteps are spread over the training's (Lin et al., 2023, table 2).
    Spacing: "timestep spacing" {
        Leading = "leading",
        Linspace = "linspace",
        Trailing = "trailing",
    }
}

named! {
    /// What becomes of a prompt that is longer than the text encoder's 75 tokens.
    LongPrompts: "choice" {
        /// It is cut, as the reference does.
        Cut = "cut",
        /// It is encoded in pieces of 75 tokens, side by side.
        Chunk = "chunk",
    }
}

named! {
    /// How a prompt is read.
    PromptSyntax: "prompt syntax" {
        /// Every character counts as it is.
        Plain = "plain",
        /// `(word)`, `(word:1.3)` and `[word]` weigh a word more or less.
        Weighted = "weighted",
    }
}

named! {
    /// What a file of models holds.
    ModelKind: "kind" {
        Checkpoint = "checkpoint",
        Lora = "lora",
        /// An autoencoder alone.
        Vae = "vae",
        /// What makes images larger.
        Upscaler = "upscaler",
        Unknown = "unknown",
    }
}

named! {
    /// Whether something is done.
    Switch: "choice" {
        On = "on",
        Off = "off",
    }
}

named! {
    /// How an edit of the configuration file is noticed.
    Watch: "choice" {
        /// By what the file system reports, and by looking, twice a second, for those that report nothing.
        Auto = "auto",
        /// By what the file system reports alone.
        Native = "native",
        /// By looking alone.
        Poll = "poll",
        /// Not at all: SIGHUP and the API remain.
        Off = "off",
    }
}

named! {
    /// A sampling algorithm; `engine/scheduler` has them all.
    SchedulerId: "scheduler" {
        Ddim = "ddim",
        Pndm = "pndm",
        Euler = "euler",
        EulerA = "euler_a",
        Heun = "heun",
        Lms = "lms",
        Dpmpp2m = "dpmpp_2m",
        Dpmpp2mKarras = "dpmpp_2m_karras",
        Dpmpp2mSde = "dpmpp_2m_sde",
        Dpmpp2mSdeKarras = "dpmpp_2m_sde_karras",
        DpmppSde = "dpmpp_sde",
        DpmppSdeKarras = "dpmpp_sde_karras",
        Unipc = "unipc",
        Lcm = "lcm",
    }
}

/// Nobody means a longer name; and to compare two takes the product of their lengths.
const LONGEST_MEANT_BYTES: usize = 256;

/// The candidate that a person most likely meant, if any is close enough to say so.
pub fn nearest_name<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    if name.len() > LONGEST_MEANT_BYTES {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// `"; did you mean 'x'?"`, or nothing.
pub fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean '{name}'?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for name in SchedulerId::NAMES {
            assert_eq!(name.parse().map(SchedulerId::name), Ok(*name));
        }
        let error = "eulr".parse::<SchedulerId>().unwrap_err();
        assert!(
            error.to_string().starts_with("there is no scheduler 'eulr'; did you mean 'euler'?"),
            "{error}"
        );
    }
}
