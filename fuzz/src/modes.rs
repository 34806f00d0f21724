//! `modes.yaml`: the whole way from bytes to modes, and the editing of its text.

use std::{collections::BTreeSet, fs, path::Path};

use diffused::{
    config::{ConfigErrors, Excerpt, ModeConfigManager, ModeEdit, source_of},
    modes::Modes,
};
use serde_json::{Value, json};

use super::allocated_by;

const MAX_ALLOCATED: usize = 16 << 20;
const MAX_ALLOCATED_PER_BYTE: usize = 1000;

pub fn check(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("modes.yaml");
    fs::write(&path, bytes).unwrap();
    let (loaded, allocated) = allocated_by(|| ModeConfigManager::load(&path));
    let limit = MAX_ALLOCATED + MAX_ALLOCATED_PER_BYTE * bytes.len();
    assert!(allocated <= limit, "{allocated} bytes allocated for a file of {}", bytes.len());
    match loaded {
        Ok(manager) => {
            let modes = manager.current();
            assert!(modes.modes.contains_key(&modes.default_mode));
            assert!(modes.modes.iter().all(|(name, mode)| *name == mode.name));
            manager.warnings().iter().for_each(|warning| drop(warning.to_string()));
            edits_hold(bytes, &path, &modes);
        }
        Err(errors) => errors_hold(&errors, bytes, &path),
    }
}

/// Errors name the file, stand where the file is, and bring no control character to a terminal.
fn errors_hold(ConfigErrors { diagnostics }: &ConfigErrors, bytes: &[u8], path: &Path) {
    assert!(!diagnostics.is_empty());
    let text = source_of(path);
    let lines = 1 + bytes.iter().filter(|byte| b"\r\n".contains(byte)).count() as u64;
    for diagnostic in diagnostics {
        assert!(!diagnostic.message.is_empty());
        if let Some(at) = diagnostic.at {
            assert!((1..=lines + 1).contains(&at.line) && at.column >= 1, "{at:?}");
        }
        let line = diagnostic.to_string();
        assert!(line.contains("modes.yaml") && !line.contains(char::is_control), "{line:?}");
        let shown = Excerpt { diagnostic, text: &text }.to_string();
        assert!(shown.starts_with(&line), "{shown}");
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    }
}

/// An edit changes the one mode, or nothing.
fn edits_hold(bytes: &[u8], path: &Path, modes: &Modes) {
    let text = std::str::from_utf8(bytes).expect("what is not UTF-8 is refused");
    // A value that the fuzzer controls.
    let value = text.lines().last().unwrap_or_default();
    let json = json!({"model": "x.safetensors", "default_negative_prompt": value,
                      "metadata": {value: [value]}});
    let Value::Object(mode) = json else { unreachable!() };
    let names: BTreeSet<&str> = modes.modes.keys().map(String::as_str).collect();
    let (first, last) = (names.first().unwrap(), names.last().unwrap());
    edit(text, path, "new", &ModeEdit::Put(mode.clone()));
    edit(text, path, first, &ModeEdit::Put(mode));
    edit(text, path, last, &ModeEdit::Remove);
}

fn edit(text: &str, path: &Path, name: &str, change: &ModeEdit) {
    fs::write(path, text).unwrap();
    let manager = ModeConfigManager::load(path).unwrap();
    let before = manager.current();
    match manager.edit(name, change, |_| true) {
        Ok(_) => {
            let after = manager.current();
            assert_eq!(after, ModeConfigManager::load(path).unwrap().current());
            assert_eq!(after.modes.contains_key(name), *change != ModeEdit::Remove);
            let others = before.modes.keys().chain(after.modes.keys()).filter(|it| *it != name);
            others.for_each(|other| assert_eq!(before.modes.get(other), after.modes.get(other)));
            assert_eq!(before.default_mode, after.default_mode);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(fs::read_to_string(path).unwrap(), text);
            assert_eq!(before, manager.current());
        }
    }
}
