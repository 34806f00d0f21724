//! The sandbox around the worker, which reads files of strangers.
//!
//! - [`readable`]: which files the worker may read, on both sides of the socket;
//! - `landlock`: the kernel's rules for files, connections and signals;
//! - `syscalls`: system calls that the worker never needs.
//!
//! Both are Linux's, and best effort: what the kernel lacks is left out. The sandbox holds for the
//! thread that enters it and for those that it starts, so it is entered before there are others.

use std::{ffi::OsString, fmt, path::PathBuf, str::FromStr};

pub use self::readable::{Granted, Readable, files_of};

#[cfg(target_os = "linux")]
mod landlock;
mod readable;
#[cfg(target_os = "linux")]
mod syscalls;

#[cfg(all(test, target_os = "linux"))]
mod tests;

/// How far a worker is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sandbox {
    /// Files and system calls with candle on the CPU. Else system calls alone: libtorch, and a
    /// card's driver, open files of their own choice.
    #[default]
    Auto,
    /// Files and system calls, on a card too.
    On,
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no sandbox '{0}': write auto, on or off")]
pub struct InvalidSandbox(String);

impl FromStr for Sandbox {
    type Err = InvalidSandbox;

    fn from_str(text: &str) -> Result<Self, InvalidSandbox> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(InvalidSandbox(text.to_owned())),
        }
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl Sandbox {
    /// Whether the worker's files are confined.
    pub fn confines_files(self, is_on_cpu: bool) -> bool {
        match self {
            Self::Auto => is_on_cpu,
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// The arguments that name these paths to a worker.
pub fn arguments(readable: &[PathBuf]) -> impl Iterator<Item = OsString> {
    readable.iter().map(|path| {
        let mut argument = OsString::from("--read=");
        argument.push(path);
        argument
    })
}

/// Confines this thread, and those that it starts, to reading `readable` and the system's libraries.
/// Returns the granted files.
#[cfg(target_os = "linux")]
pub fn enter(sandbox: Sandbox, is_on_cpu: bool, readable: &[PathBuf]) -> Granted {
    if sandbox == Sandbox::Off {
        tracing::info!("the worker is not confined (--sandbox off)");
        return Granted::everything();
    }
    // First, since it sees identities of files that it may not open any more afterwards.
    let granted = Granted::of(readable);
    let files = match sandbox.confines_files(is_on_cpu) {
        true => landlock::enter(readable, !is_on_cpu),
        false => Ok("not confined: the engine's libraries open files of their own"),
    };
    let files = files.unwrap_or_else(|error| {
        tracing::warn!("the worker's files are not confined: {error}");
        landlock::NOT_ENFORCED
    });
    let calls = syscalls::enter(std::env::consts::ARCH, is_on_cpu).unwrap_or_else(|error| {
        tracing::warn!("the worker's system calls are not filtered: {error}");
        "not filtered"
    });
    tracing::info!(files, system_calls = calls, "the worker's sandbox");
    match [landlock::ENFORCED, landlock::PARTLY_ENFORCED].contains(&files) {
        true => granted,
        false => Granted::everything(),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn enter(_: Sandbox, _: bool, _: &[PathBuf]) -> Granted {
    Granted::everything()
}
