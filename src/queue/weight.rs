//! The memory that waiting jobs take by what their callers sent along.

use super::{Entry, Refused};
use crate::{job::Job, request::Source};

/// What the images that waiting jobs draw over may take together. Those of one job take a quarter.
pub const MAX_SOURCE_BYTES: usize = 256 << 20;
/// What the arguments of waiting custom jobs may take together. Those of one job take 1 MiB.
pub const MAX_ARGUMENT_BYTES: usize = 32 << 20;

/// Whether that job may wait beside those.
pub fn check<'a>(
    job: &Job,
    waiting: impl Iterator<Item = &'a Entry> + Clone,
) -> Result<(), Refused> {
    for (bytes, most, refused) in [
        (source_bytes as fn(&Job) -> usize, MAX_SOURCE_BYTES, Refused::TooManyImages),
        (argument_bytes, MAX_ARGUMENT_BYTES, Refused::TooManyArguments),
    ] {
        let brought = bytes(job);
        let held = || waiting.clone().map(|entry| bytes(&entry.job)).sum::<usize>();
        if brought > 0 && held() + brought > most {
            return Err(refused);
        }
    }
    Ok(())
}

fn source_bytes(job: &Job) -> usize {
    match job {
        Job::Generation { request, .. } => request.source.as_ref().map_or(0, Source::bytes),
        Job::Upscale { image, .. } => image.0.len(),
        Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => 0,
    }
}

fn argument_bytes(job: &Job) -> usize {
    match job {
        Job::Custom { args, .. } => args.bytes(),
        Job::Generation { .. }
        | Job::Upscale { .. }
        | Job::ModeSwitch { .. }
        | Job::Load { .. }
        | Job::Unload { .. } => 0,
    }
}
