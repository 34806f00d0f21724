//! What modes and files may be called.

use std::path::{Component, Path};

pub const CONTROL_CHARACTER: &str = "contains a control character, which no name may";

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

/// Whether a name stays below its root, and on its line in a log or on a terminal.
pub fn check_file_name(name: &str) -> Result<(), &'static str> {
    if name.contains(char::is_control) {
        return Err(CONTROL_CHARACTER);
    }
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
