//! `modes.yaml` → a valid, immutable [`Modes`]: the one owner of that file.
//!
//! The way: bytes → `raw` (a tree with positions) → `resolve` (typed, or every error at once)
//! → `files` (warnings for what is not on disk) → the current snapshot, which a reload replaces
//! as a whole or not at all. Knows nothing of queue, worker or HTTP; who watches for changes
//! calls [`ModeConfigManager::reload`].

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::modes::Modes;

mod diagnostic;
mod diff;
mod files;
mod loras;
mod raw;
mod reader;
mod resolve;

pub use diagnostic::{Diagnostic, KeyPath, Position, Severity};
pub use diff::ModesDiff;
pub use loras::{UnknownLora, find_lora};

/// A larger file is a mistake.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Loads, validates and holds what `modes.yaml` says.
pub struct ModeConfigManager {
    path: PathBuf,
    current: RwLock<Snapshot>,
    /// Reloads one after the other, so that each reports the difference that it made.
    reloading: Mutex<()>,
}

#[derive(Clone)]
struct Snapshot {
    modes: Arc<Modes>,
    warnings: Arc<[Diagnostic]>,
}

/// What a successful reload did.
#[derive(Debug, Clone, PartialEq)]
pub struct ReloadReport {
    pub diff: ModesDiff,
    pub warnings: Arc<[Diagnostic]>,
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

impl ModeConfigManager {
    /// Reads `path`; its own folder is what `model_root` and `lora_root` are relative to.
    pub fn load(path: impl Into<PathBuf>) -> Result<Self, ConfigErrors> {
        let path = path.into();
        let current = RwLock::new(read(&path)?);
        Ok(Self { path, current, reloading: Mutex::new(()) })
    }

    /// The modes as of now. Whoever holds the snapshot keeps it through any reload.
    pub fn current(&self) -> Arc<Modes> {
        self.snapshot().modes
    }

    /// What the current snapshot's file gave reason to warn of.
    pub fn warnings(&self) -> Arc<[Diagnostic]> {
        self.snapshot().warnings
    }

    /// Reads the file again. On an error the last good snapshot stays. Blocks on the disk.
    pub fn reload(&self) -> Result<ReloadReport, ConfigErrors> {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let Snapshot { modes, warnings } = read(&self.path)?;
        let old = self.current();
        let diff = diff::diff(&old, &modes);
        let new = Snapshot { modes, warnings: warnings.clone() };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(ReloadReport { diff, warnings })
    }

    /// The file, as it was named to [`load`](Self::load).
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn snapshot(&self) -> Snapshot {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(path: &Path) -> Result<Snapshot, ConfigErrors> {
    let file: Arc<Path> = path.into();
    let fail = |at, message| ConfigErrors {
        diagnostics: vec![Diagnostic {
            severity: Severity::Error,
            file: file.clone(),
            at,
            key: KeyPath::default(),
            message,
            looked_for: None,
        }],
    };
    let text = read_text(path).map_err(|(at, message)| fail(at, message))?;
    let root = raw::parse(&text).map_err(|error| fail(error.at, error.message))?;
    // Absolute, because a job's paths travel to another process.
    let absolute = std::path::absolute(path).map_err(|error| fail(None, error.to_string()))?;
    let base = absolute.parent().unwrap_or(Path::new("/"));
    let resolved = resolve::resolve(&root, file.clone(), base)
        .map_err(|diagnostics| ConfigErrors { diagnostics })?;
    let warnings = files::check(&resolved.mentions, &file).into();
    Ok(Snapshot { modes: Arc::new(resolved.modes), warnings })
}

/// The file's text, or what is wrong with it as a whole.
fn read_text(path: &Path) -> Result<String, (Option<Position>, String)> {
    let whole = |message: String| (None, message);
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            let name = path.file_name().unwrap_or_default().display();
            whole(format!("there is no such file; make one with: cp modes.yaml.example {name}"))
        }
        _ => whole(format!("cannot be read: {error}")),
    };
    // Asked before it is opened: opening a named pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(whole("is a folder; the YAML file itself is expected".into()));
    }
    if !metadata.is_file() {
        return Err(whole("is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let limit = MAX_FILE_BYTES >> 20;
        return Err(whole(format!("is larger than {limit} MiB; that cannot be meant")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        (Some(end_of(&String::from_utf8_lossy(valid))), "is not UTF-8 text".into())
    })
}

/// The place just behind `text`.
fn end_of(text: &str) -> Position {
    let line = 1 + text.matches('\n').count() as u64;
    let last_line = text.rsplit('\n').next().unwrap_or_default();
    Position { line, column: 1 + last_line.chars().count() as u64 }
}

#[cfg(test)]
pub(crate) mod tests;
