//! What became of the modes. Pure.

use std::fmt;

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

impl fmt::Display for ModesDiff {
    /// `added a, b; redefined c`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default_mode: Vec<&str> = self.default_mode.as_deref().into_iter().collect();
        let parts = [
            ("added", self.added.join(", ")),
            ("removed", self.removed.join(", ")),
            ("to be loaded again", self.to_reload.join(", ")),
            ("redefined", self.redefined.join(", ")),
            ("default mode", default_mode.join(", ")),
            ("settings", self.settings.join(", ")),
        ];
        let parts = parts.iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<_> = parts.map(|(what, names)| format!("{what} {names}")).collect();
        f.write_str(if parts.is_empty() { "no mode changed" } else { "" })?;
        f.write_str(&parts.join("; "))
    }
}

impl Modes {
    /// What has to be changed in these to get the `new` ones.
    pub fn diff(&self, new: &Self) -> ModesDiff {
        let in_both =
            || self.modes.iter().filter_map(|(name, a)| Some((name, a, new.modes.get(name)?)));
        let differing = |differ: fn(&Mode, &Mode) -> bool| {
            in_both().filter(|(_, a, b)| differ(a, b)).map(|(name, ..)| name.clone()).collect()
        };
        let without = |a: &Modes, b: &Modes| {
            a.modes.keys().filter(|name| !b.modes.contains_key(*name)).cloned().collect()
        };
        let settings = [
            ("model_root", self.model_root != new.model_root),
            ("lora_root", self.lora_root != new.lora_root),
            ("max_pixels", self.max_pixels != new.max_pixels),
            ("watch", self.watch != new.watch),
            ("memory", self.memory != new.memory),
            ("scheduling", self.order.scheduling != new.order.scheduling),
            ("max_wait", self.order.max_wait != new.order.max_wait),
            ("jobs", self.jobs != new.jobs),
            ("custom_jobs", self.custom_jobs != new.custom_jobs),
            ("webhooks", self.webhooks != new.webhooks),
            ("http", self.http != new.http),
            ("superres", self.superres != new.superres),
            ("fair", self.order.fair != new.order.fair),
            ("timeout", self.timeout != new.timeout),
            ("engine", self.compute.engine != new.compute.engine),
            ("device", self.compute.device != new.compute.device),
            ("precision", self.compute.precision != new.compute.precision),
        ];
        let settings = settings.into_iter().filter(|(_, changed)| *changed);
        ModesDiff {
            added: without(new, self),
            removed: without(self, new),
            to_reload: differing(|a, b| a.pipeline != b.pipeline),
            redefined: differing(|a, b| a.pipeline == b.pipeline && a != b),
            default_mode: (self.default_mode != new.default_mode).then(|| new.default_mode.clone()),
            settings: settings.map(|(key, _)| key).collect(),
        }
    }
}
