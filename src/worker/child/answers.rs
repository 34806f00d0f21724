//! What the engine says, as the daemon is told it.

use std::{path::Path, time::Duration};

use super::upscaling::{self, Enlarged, Made};
use crate::{
    engine::{DrawError, checkpoint},
    job::JobId,
    modes::{LoraReport, PipelineSpec},
    worker::protocol::{DrawnReport, WorkerError, WorkerErrorKind},
};

pub fn internal(message: &str) -> WorkerError {
    WorkerError { kind: WorkerErrorKind::Internal, message: message.to_owned() }
}

/// The engine's reason; it names the file as the user does, and the log has its place as well.
pub fn unusable(spec: &PipelineSpec, error: &checkpoint::Error) -> WorkerError {
    unusable_file(&spec.checkpoint.path, error)
}

pub fn unusable_file(path: &Path, error: &checkpoint::Error) -> WorkerError {
    if !matches!(error, checkpoint::Error::Cancelled) {
        tracing::error!("{}: {error}", path.display());
    }
    let kind = match error {
        checkpoint::Error::Lora { index, .. } => WorkerErrorKind::UnusableLora { index: *index },
        checkpoint::Error::OutOfMemory(_) => WorkerErrorKind::OutOfMemory,
        _ => WorkerErrorKind::UnusableModel,
    };
    WorkerError { kind, message: error.to_string() }
}

pub fn draw_error(job: JobId, error: &DrawError) -> WorkerError {
    let kind = match (error, error.field()) {
        (_, Some(field)) => WorkerErrorKind::InvalidRequest { field },
        (DrawError::NotFinite, None) => WorkerErrorKind::UnusableModel,
        (DrawError::OutOfMemory(_), None) => WorkerErrorKind::OutOfMemory,
        (_, None) => {
            tracing::error!(%job, "drawing failed: {error}");
            return internal("drawing failed; the daemon's log says why");
        }
    };
    WorkerError { kind, message: error.to_string() }
}

pub fn report(made: Made, loras: &[LoraReport]) -> (DrawnReport, Vec<u8>) {
    let Made { drawn, steps, enlarged } = made;
    let skipped = loras.iter().filter(|lora| lora.skipped.is_some());
    let images = drawn.images.len() as u32;
    let (size, rgb, superres) = match enlarged {
        None => (drawn.size.into(), drawn.images.concat(), None),
        Some(Enlarged { images, report }) => {
            let (size, rgb) = upscaling::payload(images);
            (size, rgb, Some(report))
        }
    };
    let report = DrawnReport {
        size,
        images,
        prompt_truncated: drawn.prompt_truncated,
        skipped_loras: skipped.map(|lora| lora.name.clone()).collect(),
        scheduler: Some(drawn.scheduler),
        encode_ms: millis(drawn.encode),
        denoise_ms: millis(drawn.denoise),
        decode_ms: millis(drawn.decode),
        peak_bytes: 0,
        steps,
        superres,
    };
    (report, rgb)
}

pub fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
