//! Looks whether the files that a configuration names are there. A missing one is a warning: it
//! may be on its way, and the other modes work without it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    diagnostic::{Diagnostic, Severity},
    resolve::Mention,
};
use crate::modes::{did_you_mean, nearest_name};

/// Enough to find a misspelt name; a folder can be anything.
const MAX_NAMES: usize = 10_000;

/// One warning for each file or folder that cannot be used.
pub fn check(mentions: &[Mention], file: &Arc<Path>) -> Vec<Diagnostic> {
    mentions
        .iter()
        .filter_map(|mention| {
            Some(Diagnostic {
                severity: Severity::Warning,
                file: file.clone(),
                at: Some(mention.at),
                key: mention.key.clone(),
                message: problem(mention)?,
                looked_for: Some(mention.written.clone()),
            })
        })
        .collect()
}

fn problem(mention: &Mention) -> Option<String> {
    let Mention { name, path, root, folder_with, .. } = mention;
    let Some(root) = root else {
        return (!path.is_dir()).then(|| "there is no such folder".into());
    };
    if !root.is_dir() || path.is_file() {
        return None; // The missing root has its own warning.
    }
    if path.is_dir() {
        return match folder_with {
            None => Some(format!("'{name}' is a folder; a .safetensors file is expected")),
            Some(file) if path.join(file).is_file() => None,
            Some(file) => Some(format!(
                "'{name}' is a folder without {file}; a .safetensors file or a folder as diffusers \
                 writes it is expected"
            )),
        };
    }
    if path.is_symlink() {
        return Some(format!("'{name}' is a symbolic link that leads nowhere"));
    }
    if path.exists() {
        return Some(format!("'{name}' is not a file but a pipe, a socket or a device"));
    }
    let hint = did_you_mean(nearest_neighbour(mention).as_deref());
    Some(format!("there is no file '{name}'{hint}"))
}

/// The file in the same folder that was most likely meant, written as `mention.name` is. The
/// extension, which most files share, says nothing about that. A name that a variable stands for is
/// not compared: the neighbour would tell of it.
fn nearest_neighbour(mention: &Mention) -> Option<String> {
    if Path::new(&mention.name).file_name() != mention.path.file_name() {
        return None;
    }
    let wanted = mention.path.file_stem()?.to_str()?;
    let neighbours: Vec<PathBuf> = std::fs::read_dir(mention.path.parent()?)
        .ok()?
        .flatten()
        .take(MAX_NAMES)
        .map(|entry| PathBuf::from(entry.file_name()))
        .collect();
    let stems = || neighbours.iter().map(|file| file.file_stem().and_then(OsStr::to_str));
    let nearest = nearest_name(wanted, stems().flatten())?;
    let file = &neighbours[stems().position(|stem| stem == Some(&nearest))?];
    Some(Path::new(&mention.name).with_file_name(file).display().to_string())
}
