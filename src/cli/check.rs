//! `diffused check`: is the configuration right?

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::EXIT_CONFIG;
use crate::config::{Diagnostic, Excerpt, ModeConfigManager, source_of};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The configuration file
    #[arg(default_value = "modes.yaml", env = "MODES_CONFIG")]
    file: PathBuf,
    /// How to say it: for people, or for programs
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Each line that is wrong, and what is wrong with it
    Text,
    /// A JSON object: {"ok", "modes", "diagnostics": [{"severity", "line", "column", …}]}
    Json,
}

pub fn run(arguments: Arguments) -> ExitCode {
    let Arguments { file, format } = arguments;
    let source = source_of(&file);
    let (modes, diagnostics): (Option<Vec<String>>, _) = match ModeConfigManager::load(&file) {
        Ok(config) => {
            let names = config.current().modes.keys().cloned().collect();
            (Some(names), config.warnings().to_vec())
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

fn count(errors: &[Diagnostic]) -> String {
    match errors.len() {
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
