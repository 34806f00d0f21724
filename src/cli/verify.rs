//! The built-in custom job `verify_checkpoint`: reads all that a mode, or one model, is made of.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    dispatcher::{HandlerResult, JobContext, JobHandler},
    engine::verify::{VerifiedFile, verify},
    modes::CheckpointRef,
};

/// Folders of models are so deep at most.
const MAX_DEPTH: usize = 4;

pub struct VerifyCheckpoint;

/// What `http::custom` makes of a request: self-contained, as a job is.
#[derive(Deserialize)]
struct Args {
    /// Files, and folders of files.
    models: Vec<CheckpointRef>,
}

/// What a client finds as the job's `result`.
#[derive(Serialize)]
struct Report {
    verdict: &'static str,
    bytes: u64,
    files: Vec<VerifiedFile>,
}

impl JobHandler for VerifyCheckpoint {
    fn name(&self) -> &str {
        "verify_checkpoint"
    }

    async fn run(&self, context: JobContext, args: Value) -> HandlerResult {
        let Args { models } = serde_json::from_value(args)?;
        let report = tokio::task::spawn_blocking(move || look_through(&models, &context)).await?;
        Ok(serde_json::to_value(report.ok_or("it was cancelled")?)?)
    }
}

/// `None` where nobody waits for it any more.
fn look_through(models: &[CheckpointRef], context: &JobContext) -> Option<Report> {
    let files: Vec<CheckpointRef> = models.iter().flat_map(files_of).collect();
    let size = |file: &CheckpointRef| fs::metadata(&file.path).map_or(0, |about| about.len());
    let total: u64 = files.iter().map(size).sum();
    let mut read = 0;
    let mut on_read = |bytes| {
        read += bytes;
        // In MiB: so many bytes would be too many steps.
        context.progress((read >> 20) as u32, total.div_ceil(1 << 20) as u32);
        if context.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let files = files.iter().map(|file| verify(&file.name, &file.path, &mut on_read));
    let files: Vec<VerifiedFile> = files.collect::<Option<_>>()?;
    let is_whole = !files.is_empty() && files.iter().all(|file| file.problem.is_none());
    let bytes = files.iter().map(|file| file.bytes).sum();
    Some(Report { verdict: if is_whole { "ok" } else { "failed" }, bytes, files })
}

/// The file itself; or the files of tensors in a folder and in those below it, by their names. (A
/// folder without any is left as it is, to be found unreadable.)
fn files_of(model: &CheckpointRef) -> Vec<CheckpointRef> {
    let mut files = Vec::new();
    if model.path.is_dir() {
        collect(&model.path, MAX_DEPTH, &mut files);
    }
    if files.is_empty() {
        return vec![model.clone()];
    }
    files.sort();
    let named = files.into_iter().map(|path| {
        let below = path.strip_prefix(&model.path).unwrap_or(&path);
        CheckpointRef { name: format!("{}/{}", model.name, below.display()), path }
    });
    named.collect()
}

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if depth > 1 {
                collect(&path, depth - 1, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
}
