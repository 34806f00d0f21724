//! The text that modes are declared in: where it comes from, and what it means.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    diagnostic::{ConfigErrors, Diagnostic, KeyPath, Position, Severity},
    files, raw,
    reader::Errors,
    resolve::{self, compute::Beside},
    stamp, variables,
};
use crate::modes::Modes;

/// A larger file is a mistake.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// What stands for a file where there is none: one mode, by environment variables.
pub const FROM_ENVIRONMENT: &str = "\
model_root: ${MODEL_ROOT}
lora_root: ${LORA_ROOT:-}
default_mode: default
watch: off
modes:
  default:
    model: ${MODEL}
    default_size: ${DEFAULT_SIZE:-}
    default_steps: ${DEFAULT_STEPS:-}
    default_guidance: ${DEFAULT_GUIDANCE:-}
";

/// What a text declares, and what in it will fail when it is used.
pub type Meaning = (Arc<Modes>, Arc<[Diagnostic]>);

/// Names a state of the file: SHA-256 of its bytes, the first 16 hexadecimal digits.
pub fn revision_of(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What a text means; `path` is where it stands.
pub fn understand(text: &str, path: &Path, beside: Beside) -> Result<Meaning, ConfigErrors> {
    check_length(text.len()).map_err(|failure| failure.of(path))?;
    let fail = |at, message| Unreadable { at, message }.of(path);
    let mut root = raw::parse(text).map_err(|error| fail(error.at, error.message))?;
    // Absolute, because a job's paths travel to another process.
    let absolute = std::path::absolute(path).map_err(|error| fail(None, error.to_string()))?;
    let base = absolute.parent().unwrap_or(Path::new("/"));
    let file: Arc<Path> = path.into();
    let mut errors = Errors::new(file.clone());
    variables::expand(&mut root, &|name| std::env::var(name).ok(), &mut errors);
    let diagnostics = errors.into_sorted();
    if !diagnostics.is_empty() {
        return Err(ConfigErrors { diagnostics });
    }
    let resolved = resolve::resolve_beside(&root, file.clone(), base, beside)
        .map_err(|diagnostics| ConfigErrors { diagnostics })?;
    let mut warnings = resolved.warnings;
    warnings.extend(files::check(&resolved.mentions, &file));
    warnings.sort_by_key(|warning| warning.at);
    let mut modes = resolved.modes;
    for mode in modes.modes.values_mut() {
        let mode = Arc::make_mut(mode);
        mode.pipeline.stamp = stamp::of_pipeline(&mode.pipeline);
    }
    Ok((Arc::new(modes), warnings.into()))
}

/// What is wrong with the file as a whole.
pub struct Unreadable {
    at: Option<Position>,
    pub message: String,
}

impl Unreadable {
    pub fn of(self, path: &Path) -> ConfigErrors {
        let Self { at, message } = self;
        ConfigErrors {
            diagnostics: vec![Diagnostic {
                severity: Severity::Error,
                file: path.into(),
                at,
                key: KeyPath::default(),
                message,
                looked_for: None,
            }],
        }
    }
}

/// The text of a configuration, as far as it is one: for [`Excerpt`](super::Excerpt).
pub fn source_of(path: &Path) -> String {
    read_text(path).unwrap_or_default()
}

/// The file's text, or what is wrong with it as a whole.
pub fn read_text(path: &Path) -> Result<String, Unreadable> {
    let whole = |message: String| Unreadable { at: None, message };
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
    check_length(bytes.len())?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let at = Some(end_of(&String::from_utf8_lossy(valid)));
        Unreadable { at, message: "is not UTF-8 text".into() }
    })
}

/// Whether a file of that many bytes is read at all.
pub fn check_length(bytes: usize) -> Result<(), Unreadable> {
    if bytes as u64 <= MAX_FILE_BYTES {
        return Ok(());
    }
    let message = format!("is larger than the limit of {} MiB", MAX_FILE_BYTES >> 20);
    Err(Unreadable { at: None, message })
}

/// The place just behind `text`.
fn end_of(text: &str) -> Position {
    let line = 1 + text.matches('\n').count() as u64;
    let last_line = text.rsplit('\n').next().unwrap_or_default();
    Position { line, column: 1 + last_line.chars().count() as u64 }
}
