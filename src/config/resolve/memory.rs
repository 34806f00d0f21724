//! The section `memory`: what may stay loaded.

use std::collections::BTreeMap;

use super::{flag, parsed};
use crate::{
    config::{
        diagnostic::Diagnostic,
        reader::{Errors, Field, Table},
    },
    modes::{LoraCacheLimits, Memory, Mode, Modes, bytes_of_gb},
};

pub const MEMORY_KEYS: [&str; 8] = [
    "max_models",
    "max_request_pipelines",
    "limit_gb",
    "eviction",
    "idle_unload",
    "verify",
    "lora_cache",
    "host_cache_gb",
];
pub const LORA_CACHE_KEYS: [&str; 2] = ["max_files", "max_gb"];

/// So many modes are named in a warning.
const MAX_NAMED: usize = 5;

/// What the section says, and where.
#[derive(Default)]
pub struct MemorySection<'a> {
    pub memory: Memory,
    max_models: Option<Field<'a>>,
}

impl<'a> MemorySection<'a> {
    /// A wrong value is reported and stands as its default: nothing is made of it afterwards.
    pub fn read(root: &Table<'a>, errors: &mut Errors) -> Self {
        let Some(table) = table(root, "memory", &MEMORY_KEYS, errors) else {
            return Self::default();
        };
        let other = Memory::default();
        let max_models = table.get("max_models");
        let memory = Memory {
            max_models: max_models
                .as_ref()
                .and_then(|it| it.whole_number(1..=Memory::MAX_MODELS, errors)),
            max_request_pipelines: table
                .get("max_request_pipelines")
                .and_then(|it| it.whole_number(1..=Memory::MAX_MODELS, errors))
                .unwrap_or(other.max_request_pipelines),
            limit_bytes: table.get("limit_gb").and_then(|field| limit(&field, errors)),
            eviction: parsed(&table, "eviction", errors).unwrap_or(other.eviction),
            idle_unload: parsed(&table, "idle_unload", errors).unwrap_or(other.idle_unload),
            verify: flag(&table, "verify", errors).unwrap_or(other.verify),
            lora_cache: lora_cache(&table, errors).unwrap_or(other.lora_cache),
            host_cache_bytes: bytes(&table, "host_cache_gb", errors)
                .unwrap_or(other.host_cache_bytes),
        };
        Self { memory, max_models }
    }

    /// What the modes ask for and `max_models` has no room for.
    pub fn warnings(&self, modes: &Modes, errors: &Errors) -> Vec<Diagnostic> {
        let (Some(field), Some(max)) = (&self.max_models, self.memory.max_models) else {
            return Vec::new();
        };
        let warning = |what: &str, is_meant: &dyn Fn(&Mode) -> bool| {
            let names = one_for_each_pipeline(modes, is_meant);
            let message = (names.len() > max as usize).then(|| {
                let rest = if names.len() > MAX_NAMED { ", …" } else { "" };
                let named = names[..names.len().min(MAX_NAMED)].join(", ");
                format!("{max} is fewer than the {} models of {what}: {named}{rest}", names.len())
            })?;
            Some(field.warning(errors, message))
        };
        let is_default = |mode: &Mode| mode.name == modes.default_mode;
        let asks = modes.modes.values().any(|mode| mode.preload);
        let pinned = warning("the modes with 'pinned'", &|mode| mode.pinned);
        let preload = warning("the default mode and the modes with 'preload'", &|mode| {
            asks && (mode.preload || is_default(mode))
        });
        pinned.into_iter().chain(preload).collect()
    }
}

/// The first mode of each pipeline; those that differ in their defaults alone share one.
fn one_for_each_pipeline<'m>(modes: &'m Modes, is_meant: &dyn Fn(&Mode) -> bool) -> Vec<&'m str> {
    let meant = modes.modes.values().filter(|mode| is_meant(mode));
    let mut first = BTreeMap::new();
    for mode in meant {
        // As text, which has an order: there may be thousands of them.
        if let Ok(pipeline) = serde_json::to_string(&mode.pipeline) {
            first.entry(pipeline).or_insert(mode.name.as_str());
        }
    }
    let mut names: Vec<_> = first.into_values().collect();
    names.sort_unstable();
    names
}

fn lora_cache(memory: &Table, errors: &mut Errors) -> Option<LoraCacheLimits> {
    let table = table(memory, "lora_cache", &LORA_CACHE_KEYS, errors)?;
    let other = LoraCacheLimits::default();
    let max_files = table.get("max_files");
    let max_files =
        max_files.and_then(|field| field.whole_number(0..=LoraCacheLimits::MAX_FILES, errors));
    let max_bytes = max_bytes(&table, errors);
    Some(LoraCacheLimits {
        max_files: max_files.unwrap_or(other.max_files),
        max_bytes: max_bytes.unwrap_or(other.max_bytes),
    })
}

/// What `max_gb` says, which may be nothing at all.
pub fn max_bytes(table: &Table, errors: &mut Errors) -> Option<u64> {
    bytes(table, "max_gb", errors)
}

fn bytes(table: &Table, key: &str, errors: &mut Errors) -> Option<u64> {
    let field = table.get(key)?;
    let (gb, max) = (field.number(errors)?, Memory::MAX_GB);
    if !(0.0..=max).contains(&gb) {
        field.error_quoting(errors, format!("{gb} is not between 0 and {max}"));
        return None;
    }
    Some(bytes_of_gb(gb))
}

/// However little it is, it is not nothing.
fn limit(field: &Field, errors: &mut Errors) -> Option<u64> {
    let (gb, max) = (field.number(errors)?, Memory::MAX_GB);
    if gb <= 0.0 || gb > max {
        field.error_quoting(errors, format!("{gb} is not more than 0 and at most {max}"));
        return None;
    }
    Some(bytes_of_gb(gb).max(1))
}

/// A mapping in a mapping; `None` where it is not there, or reported as wrong.
pub fn table<'a>(
    of: &Table<'a>,
    key: &str,
    known: &[&str],
    errors: &mut Errors,
) -> Option<Table<'a>> {
    let field = of.get(key)?;
    Table::read(&field, field.node.at, known, errors)
}

#[cfg(test)]
mod tests;
