//! What computes, and on what: what arguments say of it, and a look at what there is.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Stdio},
};

use clap::Args;

use super::EXIT_CONFIG;
use crate::{
    modes::{Built, Compute, ComputeWish, Device, EngineChoice, Precision},
    worker::process,
};

#[derive(Debug, Args)]
// Another `Arguments` is flattened beside it, and groups are named by their types.
#[group(skip)]
pub struct Arguments {
    /// The library that the networks run by, whatever the file says: auto, candle or libtorch
    #[arg(long, env = "ENGINE")]
    engine: Option<EngineChoice>,
    /// Where they run, whatever the file says: auto, cpu, cuda, cuda:1 or metal
    #[arg(long, env = "DEVICE")]
    device: Option<Device>,
    /// How their numbers are stored and multiplied, whatever the file says: auto, fp32, bf16 or fp16
    #[arg(long, env = "PRECISION")]
    precision: Option<Precision>,
}

impl Arguments {
    pub fn wish(&self) -> ComputeWish {
        let Self { engine, device, precision } = *self;
        ComputeWish { engine, device, precision }
    }
}

/// Why there is nothing that computes as it was wished.
#[derive(Debug, thiserror::Error)]
pub enum NotThere {
    /// A sentence for users.
    #[error("{0}")]
    Unavailable(String),
    #[error("what this machine computes on cannot be found out: {0}")]
    Failed(String),
}

/// The arguments of a worker that computes like that.
pub fn worker_arguments(compute: Compute) -> Vec<OsString> {
    let Compute { engine, device, precision } = compute;
    let arguments = [
        "worker".to_owned(),
        format!("--engine={engine}"),
        format!("--device={device}"),
        format!("--precision={precision}"),
    ];
    arguments.map(OsString::from).into()
}

/// Has a worker look whether the machine has what was wished, and say what that is; no look is needed
/// where only the CPU can come of it. Returns what it said to the log on its way.
///
/// # Errors
/// It is not there.
pub fn look(compute: Compute) -> Result<String, NotThere> {
    if compute.is_candle_on_cpu(Built::IN) {
        return Ok(String::new());
    }
    let program = std::env::current_exe().map_err(|error| NotThere::Failed(error.to_string()))?;
    ask(&program, compute)
}

fn ask(program: &Path, compute: Compute) -> Result<String, NotThere> {
    let mut worker = Command::new(program);
    worker.args(worker_arguments(compute)).arg("--describe").stdin(Stdio::null());
    // As the worker itself will be started: it shall see the same cards.
    process::prepare(&mut worker);
    let output = worker.output().map_err(|error| NotThere::Failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let last = said.trim_end().lines().next_back().unwrap_or_default().to_owned();
    match output.status.code() {
        Some(code) if code == i32::from(EXIT_CONFIG) => Err(NotThere::Unavailable(last)),
        _ => Err(NotThere::Failed(format!("{}; {last}", process::describe(output.status)))),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        compute: Arguments,
    }

    #[test]
    fn a_worker_is_told_what_was_wished() {
        let program =
            Program::try_parse_from(["x", "--device", "cuda:1", "--precision", "bf16"]).unwrap();
        let compute = Compute::default().with(program.compute.wish());
        assert_eq!(
            worker_arguments(compute),
            ["worker", "--engine=auto", "--device=cuda:1", "--precision=bf16"]
        );
        for wrong in ["gpu", "cuda:x", ""] {
            assert!(Program::try_parse_from(["x", "--device", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nobody_is_asked_about_the_cpu() {
        // (The tests' own program is no worker, and would say something else.)
        let cpu = Compute { device: Device::Cpu, ..Compute::default() };
        assert_eq!(look(cpu).unwrap(), "");
    }

    #[test]
    fn what_a_worker_finds_is_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        // What a process wrote must be closed in all others, too, before it can be run.
        let program = folder.path().join("worker");
        let ask = |script: &str| {
            let text = format!("#!/bin/sh\n{script}\n");
            fs::write(&program, text).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            loop {
                match ask(&program, Compute::default()) {
                    Err(NotThere::Failed(why)) if why.contains("busy") => {}
                    other => return other,
                }
            }
        };
        let said = ask("echo slow >&2; [ \"$1 $5\" = 'worker --describe' ]").unwrap();
        assert_eq!(said, "slow\n");
        let error = ask("echo starting >&2; echo no driver >&2; exit 78").unwrap_err();
        assert!(matches!(&error, NotThere::Unavailable(why) if why == "no driver"), "{error:?}");
        let error = ask("echo bad >&2; exit 3").unwrap_err().to_string();
        assert!(error.ends_with("found out: it exited with status 3; bad"), "{error}");
        let error = ask("kill -9 $$").unwrap_err();
        assert!(matches!(&error, NotThere::Failed(why) if why.contains("signal 9")), "{error:?}");
    }
}
