//! `diffused check`: is the configuration right?

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{EXIT_CONFIG, compute};
use crate::{
    config::{Diagnostic, Excerpt, KeyPath, ModeConfigManager, Severity, source_of},
    modes::Modes,
};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The configuration file
    #[arg(default_value = "modes.yaml", env = "MODES_CONFIG")]
    file: PathBuf,
    /// How to say it: for people, or for programs
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    compute: compute::Arguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Each line that is wrong, and what is wrong with it
    Text,
    /// A JSON object: {"ok", "modes", "diagnostics": [{"severity", "line", "column", …}]}
    Json,
}

pub fn run(arguments: Arguments) -> ExitCode {
    let Arguments { file, format, compute } = arguments;
    let source = source_of(&file);
    let loaded = ModeConfigManager::load_with(&file, compute.wish());
    let (modes, diagnostics): (Option<Vec<String>>, _) = match loaded {
        Ok(config) => {
            let (modes, mut found) = (config.current(), config.warnings().to_vec());
            let missing = not_there(&modes, &file);
            let names = modes.modes.keys().cloned().collect();
            let names = missing.is_none().then_some(names);
            found.extend(missing);
            (names, found)
        }
        Err(errors) => (None, errors.diagnostics),
    };
    match format {
        Format::Text => {
            for diagnostic in &diagnostics {
                println!("{}", Excerpt { diagnostic, text: &source });
            }
            match &modes {
                Some(names) => println!("{}: ok, modes: {}", file.display(), names.join(", ")),
                None => println!("{}: {}", file.display(), count(&diagnostics)),
            }
        }
        Format::Json => println!("{}", as_json(modes.as_deref(), &diagnostics)),
    }
    if modes.is_some() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CONFIG) }
}

/// What the file asks for and the machine has not.
fn not_there(modes: &Modes, file: &Path) -> Option<Diagnostic> {
    match compute::look(modes.compute) {
        Ok(said) => {
            eprint!("{said}");
            None
        }
        Err(error) => Some(Diagnostic {
            severity: Severity::Error,
            file: file.into(),
            at: None,
            key: KeyPath::default(),
            message: error.to_string(),
            looked_for: None,
        }),
    }
}

fn count(found: &[Diagnostic]) -> String {
    match found.iter().filter(|it| it.severity == Severity::Error).count() {
        1 => "1 error".to_owned(),
        many => format!("{many} errors"),
    }
}

fn as_json(modes: Option<&[String]>, diagnostics: &[Diagnostic]) -> serde_json::Value {
    let diagnostics: Vec<_> = diagnostics
        .iter()
        .map(|diagnostic| {
            json!({
                "severity": diagnostic.severity.to_string(),
                "file": diagnostic.file.display().to_string(),
                "line": diagnostic.at.map(|at| at.line),
                "column": diagnostic.at.map(|at| at.column),
                "pointer": diagnostic.key.to_pointer(),
                "message": diagnostic.message,
            })
        })
        .collect();
    json!({"ok": modes.is_some(), "modes": modes, "diagnostics": diagnostics})
}
