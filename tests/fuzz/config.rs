//! `modes.yaml`: the example with some of its text changed, and texts that look like YAML.

use std::{fs, path::PathBuf};

use diffused::config::{ConfigErrors, ModeConfigManager, ModeEdit};
use proptest::{prelude::*, sample::Index};

use crate::allocations::asked_by;

/// Values in places where others belong, and what YAML takes notice of.
const SCRAPS: [&str; 42] = [
    "null",
    "~",
    "true",
    "yes",
    "-1",
    "0",
    "1e999",
    ".inf",
    ".nan",
    "0x10",
    "99999999999999999999999",
    "\"8x8\"",
    "''",
    "[]",
    "{}",
    "[1, 2]",
    "{a: 1}",
    "&a",
    "*a",
    "<<: *a",
    "!!str",
    "!!binary",
    "---\n",
    "...\n",
    "|\n",
    ">-\n",
    ": ",
    "- ",
    "? ",
    "#",
    "%YAML 1.2\n",
    "\t",
    "\u{feff}",
    "modes:",
    "[[[[[[[[",
    "\n  x:\n",
    "${HOME}",
    "${SET_BY_NOBODY}",
    "${SET_BY_NOBODY:-8}",
    "$${",
    "${",
    "~/x",
];

/// A change at a place of the text.
#[derive(Debug, Clone)]
enum Change {
    Insert(Index, String),
    Remove(Index, usize),
    /// A line a second time.
    Repeat(Index),
    /// What comes after the colon of a line.
    Value(Index, String),
    Indent(Index, usize),
}

fn scraps() -> impl Strategy<Value = String> {
    let scrap = prop::sample::select(&SCRAPS[..]).prop_map(str::to_owned);
    prop_oneof![4 => scrap, 1 => "\\PC{0,6}", 1 => any::<String>()]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let at = any::<Index>;
    let change = prop_oneof![
        (at(), scraps()).prop_map(|(at, scrap)| Change::Insert(at, scrap)),
        (at(), 1..40_usize).prop_map(|(at, len)| Change::Remove(at, len)),
        at().prop_map(Change::Repeat),
        (at(), scraps()).prop_map(|(at, scrap)| Change::Value(at, scrap)),
        (at(), 0..6_usize).prop_map(|(at, by)| Change::Indent(at, by)),
    ];
    prop::collection::vec(change, 1..5)
}

/// The example with the mode that is a comment there.
fn example() -> String {
    let text = include_str!("../../modes.yaml.example").replace("#: ", "");
    let is_told = |line: &&str| !line.trim_start().starts_with('#');
    text.lines().filter(is_told).map(|line| format!("{line}\n")).collect()
}

fn change(text: String, change: &Change) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let joined = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect();
    match change {
        Change::Insert(at, scrap) => {
            let (before, after) = letters.split_at(at.index(letters.len() + 1));
            before.iter().copied().chain(scrap.chars()).chain(after.iter().copied()).collect()
        }
        Change::Remove(at, len) => {
            let from = at.index(letters.len() + 1);
            let kept = letters.iter().enumerate();
            kept.filter(|(i, _)| !(from..from + len).contains(i)).map(|(_, c)| *c).collect()
        }
        _ if lines.is_empty() => text,
        Change::Repeat(at) => {
            let at = at.index(lines.len());
            lines.insert(at, lines[at].clone());
            joined(lines)
        }
        Change::Value(at, scrap) => {
            let at = at.index(lines.len());
            let end = lines[at].find(": ").map_or(lines[at].len(), |colon| colon + 2);
            lines[at].truncate(end);
            lines[at].push_str(scrap);
            joined(lines)
        }
        Change::Indent(at, by) => {
            let at = at.index(lines.len());
            lines[at] = format!("{}{}", " ".repeat(*by), lines[at].trim_start());
            joined(lines)
        }
    }
}

fn load(text: &str) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("modes.yaml");
    fs::write(&path, text).unwrap();
    let (loaded, bytes) = asked_by(|| ModeConfigManager::load(&path));
    prop_assert!(bytes < (16 << 20) + 1000 * text.len(), "{bytes} bytes");
    match loaded {
        Ok(manager) => {
            let modes = manager.current();
            prop_assert!(modes.modes.contains_key(&modes.default_mode));
            prop_assert!(modes.modes.iter().all(|(name, mode)| *name == mode.name));
        }
        Err(ConfigErrors { diagnostics }) => {
            prop_assert!(!diagnostics.is_empty());
            for diagnostic in diagnostics {
                let told = diagnostic.to_string();
                prop_assert!(told.contains("modes.yaml"), "{told}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(crate::cases(300))]

    #[test]
    fn the_example_with_changes(changes in changes()) {
        load(&changes.iter().fold(example(), change))?;
    }

    #[test]
    fn text_like_yaml(scraps in prop::collection::vec(scraps(), 0..30)) {
        load(&scraps.concat())?;
    }
}

/// Puts a mode with these values into a text; what is not that mode stays as it is.
fn edit(text: &str, name: &str, value: &str, removed: bool) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("modes.yaml");
    fs::write(&path, text).unwrap();
    let Ok(manager) = ModeConfigManager::load(&path) else { return Ok(()) };
    let before = manager.current();
    let mode = serde_json::json!({"model": "x", "default_negative_prompt": value,
                                  "metadata": {value: [value]}});
    let serde_json::Value::Object(mode) = mode else { unreachable!() };
    let change = if removed { ModeEdit::Remove } else { ModeEdit::Put(mode) };
    match manager.edit(name, &change, |_| true) {
        Ok(_) => {
            let (after, on_disk) = (manager.current(), ModeConfigManager::load(&path).unwrap());
            prop_assert_eq!(&after, &on_disk.current());
            prop_assert_eq!(after.modes.contains_key(name), !removed);
            let mut others = before.modes.keys().chain(after.modes.keys()).filter(|it| *it != name);
            prop_assert!(others.all(|other| before.modes.get(other) == after.modes.get(other)));
            prop_assert_eq!(&before.default_mode, &after.default_mode);
        }
        Err(_) => {
            prop_assert_eq!(fs::read_to_string(&path).unwrap(), text);
            prop_assert_eq!(before, manager.current());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(crate::cases(200))]

    #[test]
    fn an_edit_changes_one_mode_or_nothing(
        changes in changes(),
        name in prop::sample::select(vec!["demo", "portrait", "new", "a: b", "x"]),
        value in scraps(),
        removed in any::<bool>(),
    ) {
        edit(&changes.iter().fold(example(), change), name, &value, removed)?;
    }
}

#[test]
fn the_example_is_right() {
    load(&example()).unwrap();
}
