//! `diffused worker`: the process that owns the accelerator.

use std::process::ExitCode;

use super::EXIT_CONFIG;
use crate::{
    engine::nn,
    modes::{Compute, Device, EngineChoice, Precision},
    worker::child,
};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    #[arg(long, default_value = "auto")]
    device: Device,
    #[arg(long, default_value = "auto")]
    precision: Precision,
    /// Say what would compute, or why nothing can, and end
    #[arg(long)]
    describe: bool,
}

pub fn run(arguments: &Arguments) -> ExitCode {
    let Arguments { engine, device, precision, describe } = *arguments;
    let opened = match nn::open(Compute { engine, device, precision }) {
        Ok(opened) => opened,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let backend = opened.backend;
    for warning in opened.warnings {
        tracing::warn!("{warning}");
    }
    if describe {
        println!("{} on {}, {}", backend.engine(), backend.device(), backend.floats().unet.name());
        return ExitCode::SUCCESS;
    }
    child::run(backend)
}
