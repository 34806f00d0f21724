//! What became of the modes. Pure.

use super::{Mode, Modes};

/// Names of modes, sorted, and of what else the file sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModesDiff {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// What these have loaded must be loaded again: another file, or the same one replaced.
    pub to_reload: Vec<String>,
    /// Of these only what a request gets that says nothing.
    pub redefined: Vec<String>,
    /// The new default mode, if it is another one.
    pub default_mode: Option<String>,
    /// The other keys at the top of the file.
    pub settings: Vec<&'static str>,
}

impl ModesDiff {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether what that mode had loaded is not what it needs.
    pub fn touches(&self, mode: &str) -> bool {
        self.removed.iter().chain(&self.to_reload).any(|name| name == mode)
    }

    /// The modes that are there as before, and not what they were.
    pub fn changed(&self) -> Vec<String> {
        let mut names = [&self.to_reload[..], &self.redefined].concat();
        names.sort();
        names
    }
}

impl Modes {
    /// What has to be changed in these to get the `new` ones.
    pub fn diff(&self, new: &Self) -> ModesDiff {
        let old = self;
        let differing = |differ: fn(&Mode, &Mode) -> bool| {
            let pairs = old
                .modes
                .iter()
                .filter_map(|(name, mode)| Some((name, mode, new.modes.get(name)?)));
            pairs.filter(|(_, a, b)| differ(a, b)).map(|(name, ..)| name.clone()).collect()
        };
        let without = |a: &Modes, b: &Modes| {
            a.modes.keys().filter(|name| !b.modes.contains_key(*name)).cloned().collect()
        };
        let settings = [
            ("model_root", old.model_root != new.model_root),
            ("lora_root", old.lora_root != new.lora_root),
            ("max_pixels", old.max_pixels != new.max_pixels),
            ("watch", old.watch != new.watch),
        ];
        ModesDiff {
            added: without(new, old),
            removed: without(old, new),
            to_reload: differing(|a, b| a.pipeline != b.pipeline),
            redefined: differing(|a, b| a.pipeline == b.pipeline && a != b),
            default_mode: (old.default_mode != new.default_mode).then(|| new.default_mode.clone()),
            settings: settings
                .into_iter()
                .filter(|(_, changed)| *changed)
                .map(|(key, _)| key)
                .collect(),
        }
    }
}
