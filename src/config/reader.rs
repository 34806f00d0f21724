//! Reads typed values out of a [`raw`](super::raw) tree and collects what is wrong with them.
//!
//! Every reader returns `None` after it has reported why, so that the caller can go on and find
//! the next error. Knows nothing of modes.

use std::{fmt::Display, ops::RangeInclusive, path::Path, str::FromStr, sync::Arc};

use super::{
    diagnostic::{Diagnostic, KeyPath, Position, Severity},
    raw::{Entry, Expanded, Node, Value},
};
use crate::modes::{did_you_mean, nearest_name};

const SHOWN_TO_CLIENTS: &str =
    "takes no variable, since clients are shown it; '$${' stands for '${'";

/// The errors of one file, as they are found.
pub struct Errors {
    file: Arc<Path>,
    found: Vec<Diagnostic>,
}

impl Errors {
    pub fn new(file: Arc<Path>) -> Self {
        Self { file, found: Vec::new() }
    }

    pub fn add(&mut self, at: Position, key: KeyPath, message: impl Into<String>) {
        self.found.push(self.diagnostic(Severity::Error, at, key, message.into()));
    }

    /// What is wrong outside of the file.
    pub fn add_elsewhere(&mut self, place: &str, key: KeyPath, message: String) {
        let (severity, file) = (Severity::Error, Path::new(place).into());
        self.found.push(Diagnostic { severity, file, at: None, key, message, looked_for: None });
    }

    pub fn diagnostic(
        &self,
        severity: Severity,
        at: Position,
        key: KeyPath,
        message: String,
    ) -> Diagnostic {
        let (file, at) = (self.file.clone(), Some(at));
        Diagnostic { severity, file, at, key, message, looked_for: None }
    }

    /// In the order of the file.
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|diagnostic| diagnostic.at);
        self.found
    }
}

/// A mapping whose keys are known beforehand.
pub struct Table<'a> {
    entries: &'a [Entry],
    /// Where to point to when a key is missing.
    at: Position,
    key: KeyPath,
}

/// A value that is there, and its way in the file.
pub struct Field<'a> {
    pub node: &'a Node,
    pub key: KeyPath,
}

impl<'a> Table<'a> {
    /// Reports a value that is not a mapping, and every key in it that is not among `known`.
    pub fn read(
        field: &Field<'a>,
        at: Position,
        known: &[&str],
        errors: &mut Errors,
    ) -> Option<Self> {
        let entries = field.entries(errors)?;
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let nearest = nearest_name(&entry.key, known.iter().copied());
            let hint = match &nearest {
                Some(_) => did_you_mean(nearest.as_deref()),
                None => format!(" (known keys: {})", known.join(", ")),
            };
            errors.add(entry.key_at, field.key.key(&entry.key), format!("unknown key{hint}"));
        }
        Some(Self { entries, at, key: field.key.clone() })
    }

    /// A key without a value (`loras:`) counts as absent.
    pub fn get(&self, name: &str) -> Option<Field<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        let field = Field { node: &entry.value, key: self.key.key(name) };
        (field.node.value != Value::Null).then_some(field)
    }

    pub fn require(&self, name: &str, errors: &mut Errors) -> Option<Field<'a>> {
        let field = self.get(name);
        if field.is_none() {
            match self.entries.iter().find(|entry| entry.key == name) {
                Some(entry) => errors.add(entry.key_at, self.key.key(name), "has no value"),
                None => {
                    errors.add(
                        self.at,
                        self.key.clone(),
                        format!("required key '{name}' is missing"),
                    );
                }
            }
        }
        field
    }
}

impl<'a> Field<'a> {
    /// A message that cannot quote the value, since it is the same for all.
    pub fn error(&self, errors: &mut Errors, message: &'static str) {
        errors.add(self.node.at, self.key.clone(), message);
    }

    /// A message that may quote the value: one of a variable is not shown.
    pub fn error_quoting(&self, errors: &mut Errors, message: String) {
        let message = match &self.node.value {
            Value::Variable(text) if !text.is_public() => format!(
                "the value of '{}' cannot be used here (values of variables are not shown)",
                text.written
            ),
            _ => message,
        };
        errors.add(self.node.at, self.key.clone(), message);
    }

    /// The value as it may be shown.
    fn shown(&self, value: impl Display) -> String {
        match &self.node.value {
            Value::Variable(text) if !text.is_public() => {
                format!("the value of '{}'", text.written)
            }
            _ => value.to_string(),
        }
    }

    /// A warning of this value; it is no error, so it is not among those.
    pub fn warning(&self, errors: &Errors, message: String) -> Diagnostic {
        errors.diagnostic(Severity::Warning, self.node.at, self.key.clone(), message)
    }

    pub fn entries(&self, errors: &mut Errors) -> Option<&'a [Entry]> {
        match &self.node.value {
            Value::Map(entries) => Some(entries),
            other => self.wrong_type("a mapping (key: value)", other, errors),
        }
    }

    pub fn items(&self, errors: &mut Errors) -> Option<Vec<Field<'a>>> {
        match &self.node.value {
            Value::List(nodes) => Some(
                nodes
                    .iter()
                    .enumerate()
                    .map(|(i, node)| Field { node, key: self.key.index(i) })
                    .collect(),
            ),
            other => self.wrong_type("a list", other, errors),
        }
    }

    pub fn text(&self, errors: &mut Errors) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) | Value::Variable(Expanded { value: text, .. }) => Some(text),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => {
                let found = describe(&self.node.value);
                let message = format!("expected text, found {found}; put it in quotes");
                self.error_quoting(errors, message);
                None
            }
            other => self.wrong_type("text", other, errors),
        }
    }

    /// A text that clients are shown as it is.
    pub fn shown_text(&self, errors: &mut Errors) -> Option<&'a str> {
        if let Value::Variable(_) = self.node.value {
            self.error(errors, SHOWN_TO_CLIENTS);
            return None;
        }
        self.text(errors)
    }

    /// A text as the file has it, for whoever may not see the values of variables.
    pub fn written<'b>(&'b self, text: &'b str) -> &'b str {
        match &self.node.value {
            Value::Variable(Expanded { written, .. }) => written,
            _ => text,
        }
    }

    /// Something that has a written form of its own; what parsing it says becomes the message.
    pub fn parsed<T: FromStr<Err: Display>>(&self, errors: &mut Errors) -> Option<T> {
        let text = match &self.node.value {
            Value::Integer(n) => n.to_string(),
            Value::Float(n) => n.to_string(),
            Value::Bool(value) => value.to_string(),
            _ => self.text(errors)?.to_owned(),
        };
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error_quoting(errors, error.to_string());
                None
            }
        }
    }

    /// One of YAML 1.2's two words, in its three spellings; `yes` and `off` are text there.
    pub fn flag(&self, errors: &mut Errors) -> Option<bool> {
        let flag = match &self.node.value {
            Value::Bool(value) => Some(*value),
            Value::Variable(text) => match text.value.trim() {
                "true" | "True" | "TRUE" => Some(true),
                "false" | "False" | "FALSE" => Some(false),
                _ => None,
            },
            _ => None,
        };
        flag.or_else(|| self.wrong_type("true or false", &self.node.value, errors))
    }

    pub fn whole_number(&self, range: RangeInclusive<u32>, errors: &mut Errors) -> Option<u32> {
        let (min, max) = (*range.start(), *range.end());
        let number = match &self.node.value {
            Value::Integer(n) => Some(*n),
            Value::Variable(text) => text.value.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(n) if (i128::from(min)..=i128::from(max)).contains(&n) => Some(n as u32),
            Some(n) => {
                let n = self.shown(n);
                errors.add(
                    self.node.at,
                    self.key.clone(),
                    format!("{n} is not between {min} and {max}"),
                );
                None
            }
            None => self.wrong_type("a whole number", &self.node.value, errors),
        }
    }

    /// Any number that is finite as an `f32`.
    pub fn number(&self, errors: &mut Errors) -> Option<f64> {
        let number: Option<f64> = match &self.node.value {
            Value::Integer(n) => Some(*n as f64),
            Value::Float(n) => Some(*n),
            Value::Variable(text) => text.value.trim().parse().ok(),
            _ => None,
        };
        let Some(number) = number else {
            return self.wrong_type("a number", &self.node.value, errors);
        };
        if !(number as f32).is_finite() {
            self.error(errors, "expected a finite number");
            return None;
        }
        Some(number)
    }

    /// A number in that range.
    pub fn within(&self, range: RangeInclusive<f32>, errors: &mut Errors) -> Option<f32> {
        let number = self.number(errors)? as f32;
        if !range.contains(&number) {
            let (min, max) = (range.start(), range.end());
            let message = format!("{} is not between {min} and {max}", self.shown(number));
            errors.add(self.node.at, self.key.clone(), message);
            return None;
        }
        Some(number)
    }

    /// Any value at all, as long as JSON can say it.
    pub fn json(&self, errors: &mut Errors) -> Option<serde_json::Value> {
        Some(match &self.node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Integer(n) => match (i64::try_from(*n), u64::try_from(*n)) {
                (Ok(n), _) => n.into(),
                (_, Ok(n)) => n.into(),
                (Err(_), Err(_)) => (*n as f64).into(),
            },
            Value::Float(n) => match serde_json::Number::from_f64(*n) {
                Some(n) => n.into(),
                None => {
                    self.error(errors, "expected a finite number (JSON has no other)");
                    return None;
                }
            },
            Value::Text(text) => text.as_str().into(),
            Value::Variable(_) => {
                self.error(errors, SHOWN_TO_CLIENTS);
                return None;
            }
            Value::List(_) => {
                let items = self.items(errors)?;
                items.iter().filter_map(|item| item.json(errors)).collect()
            }
            Value::Map(_) => self.json_object(errors)?.into(),
        })
    }

    pub fn json_object(
        &self,
        errors: &mut Errors,
    ) -> Option<serde_json::Map<String, serde_json::Value>> {
        let entries = self.entries(errors)?;
        let value = |entry: &'a Entry, errors: &mut Errors| {
            let field = Field { node: &entry.value, key: self.key.key(&entry.key) };
            Some((entry.key.clone(), field.json(errors)?))
        };
        Some(entries.iter().filter_map(|entry| value(entry, errors)).collect())
    }

    fn wrong_type<T>(&self, expected: &str, found: &Value, errors: &mut Errors) -> Option<T> {
        let message = format!("expected {expected}, found {}", describe(found));
        errors.add(self.node.at, self.key.clone(), message);
        None
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(value) => format!("{value}"),
        Value::Integer(n) => format!("the number {n}"),
        Value::Float(n) => format!("the number {n}"),
        Value::Variable(text) if !text.is_public() => format!("the value of '{}'", text.written),
        Value::Text(text) | Value::Variable(Expanded { value: text, .. })
            if text.chars().count() > 40 =>
        {
            let start: String = text.chars().take(40).collect();
            format!("the text '{start}…'")
        }
        Value::Text(text) | Value::Variable(Expanded { value: text, .. }) => {
            format!("the text '{text}'")
        }
        Value::List(_) => "a list".into(),
        Value::Map(_) => "a mapping".into(),
    }
}
