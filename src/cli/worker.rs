//! `diffused worker`: the process that owns the accelerator.

use std::{path::PathBuf, process::ExitCode};

use super::EXIT_CONFIG;
use crate::{
    engine::{Backend, nn},
    modes::{Built, Compute, Device, EngineChoice, Precision},
    worker::{
        child,
        sandbox::{self, Sandbox},
    },
};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    #[arg(long, default_value = "auto")]
    device: Device,
    #[arg(long, default_value = "auto")]
    precision: Precision,
    /// What confines the process: auto, on or off
    #[arg(long, default_value_t = Sandbox::Off)]
    sandbox: Sandbox,
    /// What it may read within the sandbox
    #[arg(long, value_name = "PATH")]
    read: Vec<PathBuf>,
    /// Say what would compute, or why nothing can, and end
    #[arg(long)]
    describe: bool,
}

pub fn run(arguments: &Arguments) -> ExitCode {
    let &Arguments { engine, device, precision, sandbox, ref read, describe } = arguments;
    let compute = Compute { engine, device, precision };
    if !describe {
        let is_on_cpu = compute.is_candle_on_cpu(Built::IN);
        return child::run(|| sandbox::enter(sandbox, is_on_cpu, read), || open(compute));
    }
    match open(compute) {
        Ok(backend) => {
            let floats = backend.floats().unet.name();
            println!("{} on {}, {floats}", backend.engine(), backend.device());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn open(compute: Compute) -> Result<Backend, ExitCode> {
    let opened = nn::open(compute).map_err(|error| {
        eprintln!("{error}");
        ExitCode::from(EXIT_CONFIG)
    })?;
    for warning in opened.warnings {
        tracing::warn!("{warning}");
    }
    Ok(opened.backend)
}
