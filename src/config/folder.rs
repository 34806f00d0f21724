//! What lies in the folders that models and LoRAs are in.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Bounds for a folder that can be anything.
const MAX_ENTRIES: usize = 50_000;
const MAX_DEPTH: usize = 8;

pub const EXTENSION: &str = ".safetensors";

/// Every model file below `root`, relative to it, sorted: files by their extension, and the folders
/// that `is_model` says are one. What cannot be read is not there. Links are followed: only who
/// runs the daemon can have put them there.
pub fn files(root: &Path, is_model: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = HashSet::new(); // links may lead in circles
    let mut folders = vec![(root.to_owned(), 0)];
    let mut entries_left = MAX_ENTRIES;
    while let Some((folder, depth)) = folders.pop() {
        let is_new = fs::metadata(&folder)
            .is_ok_and(|metadata| seen.insert((metadata.dev(), metadata.ino())));
        if !is_new {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entries_left == 0 {
                break;
            }
            entries_left -= 1;
            let path: PathBuf = entry.path();
            let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str) else { continue };
            if path.is_dir() {
                if is_model(&path) {
                    found.push(name.to_owned());
                } else if depth < MAX_DEPTH {
                    folders.push((path, depth + 1));
                }
            } else if name.ends_with(EXTENSION) && path.is_file() {
                found.push(name.to_owned());
            }
        }
    }
    found.sort();
    found
}
