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

use diffused::dispatcher::{CustomJobs, JobContext};
use serde::{Deserialize, Serialize};
use serde_json::Value;

fn main() -> ExitCode {
    let custom = CustomJobs::new().register("disk_usage", disk_usage).register("bug", bug);
    diffused::cli::main(custom)
}

/// To see what becomes of a job whose handler has one.
async fn bug(_: JobContext, _: Value) -> Result<Value, String> {
    panic!("nobody has written this handler yet")
}

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

async fn disk_usage(context: JobContext, args: Value) -> Result<Value, String> {
    let Args { folder } = serde_json::from_value(args).map_err(|error| error.to_string())?;
    // Clients are not to look around on this machine.
    if !Path::new(&folder).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!("{folder}: give a folder below the daemon's, without '..'"));
    }
    tracing::info!(job = %context.id, folder, "measuring");
    // What blocks belongs on a thread of its own, where the daemon's answers do not wait for it.
    let measured = tokio::task::spawn_blocking(move || {
        let mut usage = Usage::default();
        match measure(Path::new(&folder), &mut usage) {
            Ok(()) => Ok(usage),
            Err(error) => Err(format!("{folder}: {error}")),
        }
    });
    let usage = measured.await.map_err(|error| error.to_string())??;
    serde_json::to_value(usage).map_err(|error| error.to_string())
}

/// Adds up the regular files below a folder. Symbolic links are not followed.
fn measure(folder: &Path, usage: &mut Usage) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_dir() {
            measure(&entry.path(), usage)?;
        } else if about.is_file() {
            usage.files += 1;
            usage.bytes += about.len();
        }
    }
    Ok(())
}
