//! A daemon of your own: all that `diffused` does, and a job that only you need.
//!
//! ```text
//! cargo run --release --example custom_job -- serve --config modes.yaml
//! curl -i -H 'content-type: application/json' http://127.0.0.1:4200/api/jobs/custom \
//!      -d '{"name": "disk_usage", "args": {"folder": "models"}}'
//! curl http://127.0.0.1:4200/api/jobs/…        # the address is in the answer's Location
//! ```
//!
//! The job waits in the same queue as the images and runs in its turn, beside nothing else: so it
//! may be the one that moves, cleans up or measures what the others use. A handler's error, and a
//! panic in it, fails its job and nothing more.
//!
//! The daemon starts this program again as its worker process; so leave the arguments to
//! [`diffused::cli::main`], and do nothing before it that only the daemon should do.

use std::{
    fs, io,
    path::{Component, Path},
    process::ExitCode,
};

use diffused::dispatcher::{CustomJobs, HandlerResult, JobContext, JobHandler};
use serde::{Deserialize, Serialize};
use serde_json::Value;

fn main() -> ExitCode {
    diffused::cli::main(CustomJobs::new().register(DiskUsage).register(Bug))
}

/// To see what becomes of a job whose handler has one.
struct Bug;

impl JobHandler for Bug {
    fn name(&self) -> &str {
        "bug"
    }

    async fn run(&self, _: JobContext, _: Value) -> HandlerResult {
        panic!("nobody has written this handler yet")
    }
}

struct DiskUsage;

/// What a client sends as `args`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Args {
    /// Below the folder that the daemon was started in.
    folder: String,
}

/// What it finds as `result` at `GET /api/jobs/{id}`.
#[derive(Default, Serialize)]
struct Usage {
    files: u64,
    bytes: u64,
}

impl JobHandler for DiskUsage {
    fn name(&self) -> &str {
        "disk_usage"
    }

    fn description(&self) -> &str {
        "Counts the files below a folder, and their bytes"
    }

    async fn run(&self, context: JobContext, args: Value) -> HandlerResult {
        let Args { folder } = serde_json::from_value(args)?;
        // Clients are not to look around on this machine.
        if !Path::new(&folder).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("{folder}: give a folder below the daemon's, without '..'").into());
        }
        tracing::info!(job = %context.id(), folder, "measuring");
        // What blocks belongs on a thread of its own, where the daemon's answers do not wait for it.
        let measured = tokio::task::spawn_blocking(move || {
            measure(Path::new(&folder), &context).map_err(|error| format!("{folder}: {error}"))
        });
        Ok(serde_json::to_value(measured.await??)?)
    }
}

/// Adds up the regular files below a folder. Symbolic links are not followed.
fn measure(folder: &Path, context: &JobContext) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut folders = vec![folder.to_owned()];
    // A step is a folder; how many there are is known when all have been seen.
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        // A thread cannot be cancelled from outside; so it asks.
        if context.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        context.progress(seen, seen + folders.len() as u32 + 1);
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let about = entry.metadata()?;
            if about.is_dir() {
                folders.push(entry.path());
            } else if about.is_file() {
                usage.files += 1;
                usage.bytes += about.len();
            }
        }
        seen += 1;
    }
    Ok(usage)
}
