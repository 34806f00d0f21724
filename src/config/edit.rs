//! Changes one mode in the text of a configuration and leaves every other line as it is. Pure.
//!
//! A YAML library would write the whole file anew, without its comments. Here the lines of the one
//! mode are replaced, where they are; and who calls this reads the result as any other file and
//! compares, so that a text which this cannot edit is refused and not damaged.

use std::io;

use serde_json::{Map, Value as Json};

use super::{
    diagnostic::ConfigErrors,
    raw::{Entry, Node, Value},
    resolve::MODE_KEYS,
    variables::literal,
};
use crate::modes::UnknownMode;

/// What is to become of a mode.
#[derive(Debug, Clone, PartialEq)]
pub enum ModeEdit {
    /// It is this from now on, in the words of the file.
    Put(Map<String, Json>),
    /// The same, where there is none of that name yet.
    Add(Map<String, Json>),
    Remove,
}

/// A mode that takes more bytes of the file is refused: a hundred modes of this size fit.
const MAX_MODE_BYTES: usize = 64 << 10;

/// Why a text cannot be edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotEditable {
    #[error(
        "modes.yaml writes its modes in braces, or by an alias; only a file in which each mode \
         begins on a line of its own can be edited this way"
    )]
    NotInLines,
    #[error("modes.yaml cannot be edited there without changing something else")]
    Entangled,
    #[error("the mode would take more than {} KiB of modes.yaml", MAX_MODE_BYTES >> 10)]
    ModeTooLarge,
}

/// Why a mode was not changed; the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// Somebody else has changed the file.
    #[error("the file's revision is {revision}")]
    OtherRevision { revision: String },
    /// The file as it is on disk has errors.
    #[error("{0}")]
    Broken(ConfigErrors),
    /// It would have errors.
    #[error("{0}")]
    Invalid(ConfigErrors),
    /// It would be too large to be read.
    #[error("modes.yaml would be too large: it {0}")]
    FileTooLarge(String),
    #[error("there is a mode '{0}' already")]
    Exists(String),
    #[error("{0}")]
    BadName(&'static str),
    #[error(transparent)]
    NotEditable(#[from] NotEditable),
    #[error(transparent)]
    UnknownMode(#[from] UnknownMode),
    #[error("the file cannot be written: {0}")]
    Unwritable(io::Error),
}

/// The text with that mode changed; `root` is what the text says, and has modes.
pub fn edit(text: &str, root: &Node, name: &str, edit: &ModeEdit) -> Result<String, NotEditable> {
    let Value::Map(keys) = &root.value else { return Err(NotEditable::NotInLines) };
    let at = keys.iter().position(|entry| entry.key == "modes").ok_or(NotEditable::NotInLines)?;
    let Value::Map(modes) = &keys[at].value.value else { return Err(NotEditable::NotInLines) };
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let indent = indentation(&lines, modes)?;
    // Whatever stands behind the modes, in whichever order the keys are.
    let behind = keys.iter().map(line_of).filter(|line| *line > line_of(&keys[at]));
    let end_of_modes = behind.min().unwrap_or(lines.len());

    let block = match edit {
        ModeEdit::Put(mode) | ModeEdit::Add(mode) => rendered(name, mode, indent),
        ModeEdit::Remove => String::new(),
    };
    if block.len() > MAX_MODE_BYTES {
        return Err(NotEditable::ModeTooLarge);
    }
    let lines_of = |at: usize| {
        let first = line_of(&modes[at]);
        let next = modes.get(at + 1).map_or(end_of_modes, line_of);
        first..end_of(&lines, first, next, indent)
    };
    let existing = modes.iter().position(|entry| entry.key == name);
    let replaced = match (existing, modes.len()) {
        (Some(at), _) => lines_of(at),
        (None, 0) => return Err(NotEditable::NotInLines),
        (None, count) => {
            let end = lines_of(count - 1).end;
            end..end
        }
    };
    let mut before = lines[..replaced.start].concat();
    if !before.is_empty() && !before.ends_with('\n') {
        before.push('\n');
    }
    Ok(before + &block + &lines[replaced.end..].concat())
}

/// The line that an entry begins on, counted from 0.
fn line_of(entry: &Entry) -> usize {
    entry.key_at.line.saturating_sub(1) as usize
}

/// How far the modes' names are indented, if each begins its own line.
fn indentation(lines: &[&str], modes: &[Entry]) -> Result<usize, NotEditable> {
    let mut columns = modes.iter().map(|entry| entry.key_at.column.saturating_sub(1) as usize);
    let indent = columns.next().ok_or(NotEditable::NotInLines)?;
    let begins = |entry: &Entry| {
        let line = lines.get(line_of(entry))?;
        let (before, name) = line.split_at_checked(indent)?;
        let name = name.trim_start_matches(['"', '\'']);
        (before.trim().is_empty() && name.starts_with(&entry.key)).then_some(())
    };
    let in_lines =
        columns.all(|column| column == indent) && modes.iter().all(|e| begins(e).is_some());
    if in_lines { Ok(indent) } else { Err(NotEditable::NotInLines) }
}

/// Where the lines of a mode end that begins on `first`; `next` is what comes behind it. Blank lines
/// and comments before that belong to what follows, unless they are further in.
fn end_of(lines: &[&str], first: usize, next: usize, indent: usize) -> usize {
    let belongs_to_next = |line: &str| {
        let text = line.trim_start_matches([' ', '\t']);
        let is_comment = text.starts_with('#') && line.len() - text.len() <= indent;
        text.trim().is_empty() || is_comment
    };
    let own = lines[first..next].iter().rposition(|line| !belongs_to_next(line));
    first + own.unwrap_or(0) + 1
}

/// The mode's lines. JSON is YAML: so values need no quoting of our own. Keys are never expanded, and
/// values are written as literals: `${` of a client is not the operator's.
fn rendered(name: &str, mode: &Map<String, Json>, indent: usize) -> String {
    let margin = " ".repeat(indent);
    let known = MODE_KEYS.iter().filter_map(|key| mode.get_key_value(*key));
    let unknown = mode.iter().filter(|(key, _)| !MODE_KEYS.contains(&key.as_str()));
    let mut block = format!("{margin}{name}:\n");
    for (key, value) in known.chain(unknown).filter(|(_, value)| !value.is_null()) {
        let key = if MODE_KEYS.contains(&key.as_str()) {
            key.clone()
        } else {
            Json::from(key.as_str()).to_string()
        };
        block += &format!("{margin}  {key}: {}\n", scalar(value));
    }
    block
}

/// A word stands as it is.
fn scalar(value: &Json) -> String {
    match value {
        Json::String(text) if is_plain(text) => text.clone(),
        other => literals(other).to_string(),
    }
}

/// The same value, its texts written so that they read back as they are.
fn literals(value: &Json) -> Json {
    match value {
        Json::String(text) => literal(text).into(),
        Json::Array(items) => items.iter().map(literals).collect(),
        Json::Object(entries) => {
            let entries = entries.iter().map(|(key, value)| (key.clone(), literals(value)));
            Json::Object(entries.collect())
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => value.clone(),
    }
}

/// Whether a text is nothing but itself in YAML.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let not_a_word = ["true", "false", "null", "yes", "no", "on", "off"];
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !not_a_word.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::raw;

    const TEXT: &str = "\
# Ours.
model_root: models   # here
modes:
  # The first.
  a:
    model: a.safetensors
    # its own
    clip_skip: 1   # yes

  # The second.
  b: {model: b}

  # Not a mode:
  #: c: {model: c}

default_mode: a
";

    fn edited(text: &str, name: &str, mode: Json) -> Result<String, NotEditable> {
        let root = raw::parse(text).unwrap();
        let change = match mode {
            Json::Object(mode) => ModeEdit::Put(mode),
            _ => ModeEdit::Remove,
        };
        edit(text, &root, name, &change)
    }

    #[test]
    fn only_the_lines_of_the_mode_change() {
        let mode = json!({"default_steps": 9, "model": "x/y.safetensors", "vae": null,
                          "default_size": "64x64", "loras": [{"path": "l", "strength": 0.5}],
                          "default_negative_prompt": "no: #1 \"x\"", "on_lora_error": "skip"});
        let block = |name: &str| {
            format!(
                "  {name}:\n    model: x/y.safetensors\n    \
                 loras: [{{\"path\":\"l\",\"strength\":0.5}}]\n    on_lora_error: skip\n    \
                 default_size: \"64x64\"\n    default_steps: 9\n    \
                 default_negative_prompt: \"no: #1 \\\"x\\\"\"\n"
            )
        };
        let first = "  a:\n    model: a.safetensors\n    # its own\n    clip_skip: 1   # yes\n";
        let second = "  b: {model: b}\n";
        let cases = [
            ("a", mode.clone(), TEXT.replace(first, &block("a"))),
            ("b", mode.clone(), TEXT.replace(second, &block("b"))),
            ("new", mode, TEXT.replace(second, &(second.to_owned() + &block("new")))),
            ("a", Json::Null, TEXT.replace(first, "")),
            ("b", Json::Null, TEXT.replace(second, "")),
        ];
        for (name, mode, expected) in cases {
            assert_eq!(edited(TEXT, name, mode).unwrap(), expected);
        }
    }

    #[test]
    fn a_last_line_without_an_end_gets_one() {
        let text = "modes:\n  a: {model: a}";
        let expected = "modes:\n  a: {model: a}\n  b:\n    model: b\n";
        assert_eq!(edited(text, "b", json!({"model": "b"})).unwrap(), expected);
    }

    #[test]
    fn modes_that_are_not_in_lines_are_left_alone() {
        for text in ["modes: {a: {model: a}, b: {model: b}}", "m: &m\n  a: {model: a}\nmodes: *m\n"]
        {
            let refused = edited(text, "b", json!({"model": "x"}));
            assert_eq!(refused, Err(NotEditable::NotInLines), "{text}");
        }
    }
}
