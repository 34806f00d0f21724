//! What stands in the line, and what is said of it.

use super::order::Mended;
use crate::{
    job::{Job, JobId, SwitchOrigin, Terms},
    modes::PipelineSpec,
};

/// A mode and the pipeline that it needs: what a worker can have loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub mode: String,
    pub pipeline: PipelineSpec,
}

impl Target {
    /// What must be loaded for that job, if anything must.
    pub fn of(job: &Job) -> Option<Self> {
        match job {
            Job::Generation { request, pipeline } => {
                Some(Self { mode: request.mode.clone(), pipeline: pipeline.clone() })
            }
            Job::ModeSwitch { mode, pipeline, .. } => {
                Some(Self { mode: mode.clone(), pipeline: pipeline.clone() })
            }
            Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } | Job::Upscale { .. } => {
                None
            }
        }
    }

    /// The switch that makes it the current one.
    pub fn into_switch(self, asked_by: SwitchOrigin) -> Job {
        let Self { mode, pipeline } = self;
        Job::ModeSwitch { mode, pipeline, asked_by, timeout_secs: None }
    }
}

/// A job and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub id: JobId,
    pub job: Job,
    pub terms: Terms,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub arrived_ms: u64,
}

/// What was put into the queue for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The switch that a generation needed; it stands before it.
    pub switch: Option<Entry>,
    pub job: Entry,
    /// What became of the switches behind it, where it did not go to the end.
    pub mended: Mended,
}

/// What a change of the modes did to the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Configured {
    /// Taken out.
    pub superseded: Option<Entry>,
    /// Put in.
    pub switch: Option<Entry>,
}

/// Why nothing was put into the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As many jobs wait as may.
    Full,
    /// The images that waiting jobs draw over take as much memory as they may,
    /// [`MAX_SOURCE_BYTES`](super::MAX_SOURCE_BYTES).
    TooManyImages,
    /// The arguments of the waiting custom jobs take as much memory as they may,
    /// [`MAX_ARGUMENT_BYTES`](super::MAX_ARGUMENT_BYTES).
    TooManyArguments,
    /// A user's switch to what is loaded, and stays it until its turn would come.
    AlreadyLoaded,
}
