//! What is wrong with a configuration file, and where: plain data and its one-line form.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One thing to say about the file, in the form in which compilers say it:
/// `modes.yaml:7:5: error: modes.portrait.default_stps: unknown key; did you mean 'default_steps'?`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The file as the user named it.
    pub file: Arc<Path>,
    /// `None` where the file as a whole is meant.
    pub at: Option<Position>,
    /// Empty where the file as a whole is meant.
    pub key: KeyPath,
    /// Names files as the configuration does, so that clients may read it.
    pub message: String,
    /// Where a file that is not there was looked for: for the operator's eyes.
    pub looked_for: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but something in it will fail when it is used.
    Warning,
}

/// A place in the file; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: u64,
    pub column: u64,
}

/// The way from the top of the file to a value: `modes.portrait.loras[1].strength`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPath(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Key(String),
    Index(usize),
}

impl KeyPath {
    pub fn key(&self, name: &str) -> Self {
        self.with(Segment::Key(name.to_owned()))
    }

    pub fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    /// The same as a JSON pointer (RFC 6901): `/modes/portrait/loras/1/strength`.
    pub fn to_pointer(&self) -> String {
        let segment = |segment: &Segment| match segment {
            Segment::Key(name) => format!("/{}", name.replace('~', "~0").replace('/', "~1")),
            Segment::Index(index) => format!("/{index}"),
        };
        self.0.iter().map(segment).collect()
    }

    fn with(&self, segment: Segment) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment);
        Self(segments)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(name) => {
                    let dot = if i == 0 { "" } else { "." };
                    let quote = if is_plain(name) { "" } else { "\"" };
                    write!(f, "{dot}{quote}{name}{quote}")?;
                }
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Whether a key can stand in a path without quotes.
fn is_plain(key: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || "._-".contains(c);
    key.contains(char::is_alphanumeric) && key.chars().all(plain)
}

impl Diagnostic {
    /// The message under its key, without file and position. It may quote the file, but brings
    /// none of its control characters to a terminal.
    pub fn text(&self) -> String {
        let text = match self.key.0.is_empty() {
            true => self.message.clone(),
            false => format!("{}: {}", self.key, self.message),
        };
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Position { line, column }) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}: {}", self.severity, self.text())?;
        match &self.looked_for {
            Some(path) => write!(f, " (looked for {})", path.display()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Everything that is wrong with a file, in its order; never empty.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub struct ConfigErrors {
    pub diagnostics: Vec<Diagnostic>,
}

impl fmt::Display for ConfigErrors {
    /// One line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            write!(f, "{}{diagnostic}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_path_reads_as_yaml_users_and_as_json_users_write_it() {
        let path = KeyPath::default().key("modes").key("a/b~c").key("loras").index(1);
        assert_eq!(path.to_string(), "modes.\"a/b~c\".loras[1]");
        assert_eq!(path.to_pointer(), "/modes/a~1b~0c/loras/1");
    }
}
