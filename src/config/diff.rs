//! What a reload changed. Pure.

use crate::modes::Modes;

/// Names of modes, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModesDiff {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
    /// The new default mode, if it is another one.
    pub default_mode: Option<String>,
}

impl ModesDiff {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

pub fn diff(old: &Modes, new: &Modes) -> ModesDiff {
    let differs = |name: &String| new.modes.get(name).is_some_and(|mode| *mode != old.modes[name]);
    let without = |a: &Modes, b: &Modes| {
        a.modes.keys().filter(|name| !b.modes.contains_key(*name)).cloned().collect()
    };
    ModesDiff {
        added: without(new, old),
        removed: without(old, new),
        changed: old.modes.keys().filter(|name| differs(name)).cloned().collect(),
        default_mode: (old.default_mode != new.default_mode).then(|| new.default_mode.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::modes;

    #[test]
    fn a_diff_names_what_came_went_and_changed() {
        let old = modes("{a: {model: a}, b: {model: b}, c: {model: c}}", "a");
        let new = modes("{b: {model: b}, c: {model: c, default_steps: 9}, d: {model: d}}", "b");
        let expected = ModesDiff {
            added: vec!["d".into()],
            removed: vec!["a".into()],
            changed: vec!["c".into()],
            default_mode: Some("b".into()),
        };
        assert_eq!(diff(&old, &new), expected);
        assert!(diff(&old, &old).is_empty());
    }

    #[test]
    fn every_part_of_a_mode_counts() {
        let old = modes("{a: {model: a}}", "a");
        for changed in [
            "{a: {model: b}}",
            "{a: {model: a, loras: [x]}}",
            "{a: {model: a, vae: x}}",
            "{a: {model: a, prediction: v}}",
            "{a: {model: a, on_lora_error: skip}}",
            "{a: {model: a, long_prompts: chunk}}",
            "{a: {model: a, default_negative_prompt: x}}",
            "{a: {model: a, metadata: {k: 1}}}",
        ] {
            assert_eq!(diff(&old, &modes(changed, "a")).changed, ["a"], "{changed}");
        }
    }
}
