//! Looks whether the files that a configuration names are there. A missing one is a warning: it
//! may be on its way, and the other modes work without it.

use std::{path::Path, sync::Arc};

use super::{
    diagnostic::{Diagnostic, Severity},
    resolve::Mention,
};
use crate::modes::{did_you_mean, nearest_name};

/// Enough to find a misspelt name; a folder can be anything.
const MAX_NAMES: usize = 10_000;

/// One warning for each file or folder that cannot be used, in the order of the file.
pub fn check(mentions: &[Mention], file: &Arc<Path>) -> Vec<Diagnostic> {
    let mut warnings: Vec<_> = mentions
        .iter()
        .filter_map(|mention| {
            Some(Diagnostic {
                severity: Severity::Warning,
                file: file.clone(),
                at: Some(mention.at),
                key: mention.key.clone(),
                message: problem(mention)?,
                looked_for: Some(mention.path.clone()),
            })
        })
        .collect();
    warnings.sort_by_key(|warning| warning.at);
    warnings
}

fn problem(mention: &Mention) -> Option<String> {
    let Mention { name, path, root, .. } = mention;
    let Some(root) = root else {
        return (!path.is_dir()).then(|| "there is no such folder".into());
    };
    if !root.is_dir() || path.is_file() {
        return None; // The missing root has its own warning.
    }
    if path.is_dir() {
        return Some(format!("'{name}' is a folder; a .safetensors file is expected"));
    }
    let hint = did_you_mean(nearest_neighbour(mention).as_deref());
    Some(format!("there is no file '{name}'{hint}"))
}

/// The file in the same folder that was most likely meant, written as `mention.name` is.
fn nearest_neighbour(mention: &Mention) -> Option<String> {
    let folder = mention.path.parent()?;
    let wanted = mention.path.file_name()?.to_str()?;
    let names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .take(MAX_NAMES)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let nearest = nearest_name(wanted, names.iter().map(String::as_str))?;
    Some(Path::new(&mention.name).with_file_name(nearest).display().to_string())
}
