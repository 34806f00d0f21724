//! `diffused supervise`: the process that ends a custom job's command with all that it has started.

use std::{ffi::OsString, process::ExitCode};

use crate::{dispatcher::supervise, worker::process};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> ExitCode {
    let [program, arguments @ ..] = &arguments.command[..] else { return ExitCode::FAILURE };
    process::take_name();
    match supervise(program, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the command cannot be supervised: {error}");
            ExitCode::FAILURE
        }
    }
}
