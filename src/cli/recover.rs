//! `diffused recover`: makes jobs of images whose job the journal has lost.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    lock::{StateDir, StateDirError},
    print,
};
use crate::{
    dispatcher::unix_ms,
    journal::{self, JournalError, Recovery},
};

const HELP: &str = "\
A journal that was damaged, removed or replaced by an older copy knows nothing of some images. The
daemon deletes none of them: it moves them to DIR/orphaned and says so in its log. This command
puts each of them back into DIR/results and makes a finished job of it, so that GET /api/jobs lists
it and GET /api/jobs/{id}/image serves it after the next start.

An image says itself how it was drawn: prompt, seed, steps, size, model, LoRAs. The mode's name,
tags, source image and most times are lost; the model's name replaces the mode's. A job whose row in
the journal cannot be read is made again in the same way; the journal is copied before. Images with
another name than <job>-<index>.png stay where they are.

The jobs count as finished now, for 'jobs.retention' of modes.yaml: what is more than max_jobs or
max_gb allow is deleted by the next start, the oldest first. Raise these before, if need be.

Examples:
  diffused recover                          of the folder 'state', while no daemon uses it
  diffused recover --state-dir /var/lib/diffused
Running it again changes nothing.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// The folder that `diffused serve` was given; no daemon may be using it
    #[arg(long, value_name = "DIR", default_value = "state")]
    state_dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum RecoverError {
    #[error("there is no folder '{}'; --state-dir says where it is", .0.display())]
    Missing(PathBuf),
    #[error("{0}")]
    StateDir(#[from] StateDirError),
    #[error("{0}")]
    Journal(#[from] JournalError),
}

pub fn run(arguments: &Arguments) -> ExitCode {
    print(recover(arguments))
}

fn recover(Arguments { state_dir }: &Arguments) -> Result<String, RecoverError> {
    // Nothing is to be recovered from a folder that this creates.
    if !state_dir.is_dir() {
        return Err(RecoverError::Missing(state_dir.clone()));
    }
    let _state = StateDir::acquire(state_dir)?;
    Ok(report(&journal::recover(state_dir, unix_ms())?))
}

fn report(recovery: &Recovery) -> String {
    let Recovery { jobs, images, left, copy, ended: (ended, bytes) } = recovery;
    let mut text = match images {
        0 if left.is_empty() => {
            "nothing to recover: the journal knows the job of each image\n".to_owned()
        }
        0 => "nothing was recovered\n".to_owned(),
        _ => format!(
            "recovered {} of {}: the next daemon serves them\n\
             The journal has {ended} finished jobs now, with {:.2} GiB of images. Those recovered \
             count as finished now;\n'jobs.retention' of modes.yaml (max_age, max_jobs, max_gb) \
             applies to all of them from the next start on.\n",
            count(*images, "image"),
            count(*jobs, "job"),
            *bytes as f64 / f64::from(1 << 30),
        ),
    };
    if let Some(copy) = copy {
        text += &format!(
            "Jobs that could not be read were made again; '{}' is the journal from before.\n",
            copy.display()
        );
    }
    if !left.is_empty() {
        text += &format!("{} left in place:\n", count(left.len(), "file"));
    }
    for (path, reason) in left {
        text += &format!("  '{}': {reason}\n", path.display());
    }
    text
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
