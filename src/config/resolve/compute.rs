//! The keys `engine`, `device` and `precision`: what computes, and on what.

use super::parsed;
use crate::{
    config::{
        diagnostic::{Diagnostic, KeyPath, Position, Severity},
        reader::{Errors, Table},
    },
    modes::{Built, Compute, ComputeWish},
};

pub const COMPUTE_KEYS: [&str; 3] = ["engine", "device", "precision"];

/// What holds besides the file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside {
    /// What arguments or the environment say, which comes first.
    pub wish: ComputeWish,
    /// What computes already; `None`: nothing yet.
    pub running: Option<Compute>,
}

/// A wrong value is reported and stands as its default: nothing is made of it afterwards.
pub fn compute(root: &Table, beside: &Beside, errors: &mut Errors) -> Compute {
    let other = Compute::default();
    let file = Compute {
        engine: parsed(root, "engine", errors).unwrap_or(other.engine),
        device: parsed(root, "device", errors).unwrap_or(other.device),
        precision: parsed(root, "precision", errors).unwrap_or(other.precision),
    };
    let compute = file.with(beside.wish);
    if let Some((key, why)) = compute.not_built_in(Built::IN) {
        match (is_elsewhere(key, &beside.wish), root.get(key)) {
            (false, Some(field)) => field.error_quoting(errors, why),
            // Its name as an argument is its name in the environment.
            _ => errors.add_elsewhere(
                &format!("--{key} or {}", key.to_uppercase()),
                KeyPath::default().key(key),
                why,
            ),
        }
    }
    compute
}

fn is_elsewhere(key: &str, wish: &ComputeWish) -> bool {
    match key {
        "engine" => wish.engine.is_some(),
        "device" => wish.device.is_some(),
        _ => wish.precision.is_some(),
    }
}

/// The worker is what it was started as.
pub fn warnings(
    root: &Table,
    (running, compute): (Option<Compute>, Compute),
    errors: &Errors,
) -> Vec<Diagnostic> {
    let Some(running) = running else { return Vec::new() };
    let words =
        |of: Compute| [of.engine.to_string(), of.device.to_string(), of.precision.to_string()];
    let both = words(running).into_iter().zip(words(compute));
    let changed = COMPUTE_KEYS.into_iter().zip(both).filter(|(_, (now, then))| now != then);
    let warning = |(key, (now, then)): (&str, (String, String))| {
        let message =
            format!("'{then}' counts from the daemon's next start on; until then it is '{now}'");
        match root.get(key) {
            Some(field) => field.warning(errors, message),
            // It stood there once.
            None => errors.diagnostic(
                Severity::Warning,
                Position { line: 1, column: 1 },
                KeyPath::default().key(key),
                message,
            ),
        }
    };
    changed.map(warning).collect()
}

#[cfg(test)]
mod tests;
