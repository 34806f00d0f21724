//! `diffused check`: is the configuration right?

use std::{path::PathBuf, process::ExitCode};

use super::EXIT_CONFIG;
use crate::config::ModeConfigManager;

pub fn run(file: PathBuf) -> ExitCode {
    match ModeConfigManager::load(file) {
        Ok(config) => {
            config.warnings().iter().for_each(|warning| println!("{warning}"));
            let modes = config.current();
            let names: Vec<_> = modes.modes.keys().map(String::as_str).collect();
            println!("{}: ok, modes: {}", config.path().display(), names.join(", "));
            ExitCode::SUCCESS
        }
        Err(errors) => {
            println!("{errors}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
