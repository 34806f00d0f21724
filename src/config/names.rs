//! What modes and files may be called.

use std::path::{Component, Path};

/// Mode names travel in URLs and HTTP headers.
pub fn check_mode_name(name: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.len() > 64 {
        Err("a mode's name has at most 64 characters")
    } else if !name.contains(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(allowed) {
        Err("a mode's name is made of letters, digits, '.', '_' and '-'")
    } else {
        Ok(())
    }
}

/// Whether a name stays below its root.
pub fn check_file_name(name: &str) -> Result<(), &'static str> {
    let mut has_name = false;
    for component in Path::new(name).components() {
        match component {
            Component::Normal(_) => has_name = true,
            Component::CurDir => {}
            Component::ParentDir => {
                return Err("must stay inside its root folder: '..' is not allowed");
            }
            Component::RootDir | Component::Prefix(_) => {
                return Err("must be relative to its root folder, not an absolute path");
            }
        }
    }
    if has_name { Ok(()) } else { Err("is not the name of a file") }
}
