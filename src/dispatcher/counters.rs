//! What has happened since the daemon's start, in numbers.

use std::{collections::BTreeMap, time::Duration};

use super::Outcome;
use crate::{
    job::{Job, JobKind},
    worker::protocol::{DrawnReport, LoadReport},
};

/// Sums and counts, for means over any time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Counters {
    pub jobs: BTreeMap<(JobKind, Ending), u64>,
    /// From when a job was accepted until it was begun.
    pub waits: Times,
    pub stages: BTreeMap<Stage, Times>,
    /// One denoising step.
    pub steps: Times,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    Done,
    Failed,
    Cancelled,
}

impl Ending {
    pub const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::Cancelled];

    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Load,
    /// Of a load, what merging LoRAs took.
    Merge,
    Encode,
    Denoise,
    Decode,
    /// Making images larger.
    Superres,
}

impl Stage {
    pub const ALL: [Self; 6] =
        [Self::Load, Self::Merge, Self::Encode, Self::Denoise, Self::Decode, Self::Superres];

    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Merge => "merge",
            Self::Encode => "encode",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
            Self::Superres => "superres",
        }
    }
}

/// How often, and how long together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    pub count: u64,
    pub total: Duration,
}

impl Times {
    fn add(&mut self, count: u64, took: Duration) {
        self.count += count;
        self.total += took;
    }
}

impl Counters {
    pub fn ended(&mut self, job: &Job, outcome: &Outcome) {
        let ending = match outcome {
            Outcome::Failed(_) => Ending::Failed,
            Outcome::Cancelled => Ending::Cancelled,
            Outcome::Images(_)
            | Outcome::Switched
            | Outcome::Loaded
            | Outcome::Unloaded(_)
            | Outcome::Custom(_) => Ending::Done,
        };
        *self.jobs.entry((job.kind(), ending)).or_default() += 1;
    }

    pub fn waited(&mut self, time: Duration) {
        self.waits.add(1, time);
    }

    pub fn loaded(&mut self, report: &LoadReport) {
        self.stage(Stage::Load, report.load_ms);
        self.stage(Stage::Merge, report.merge_ms);
    }

    pub fn drawn(&mut self, report: &DrawnReport) {
        if let Some(superres) = &report.superres {
            self.stage(Stage::Superres, superres.superres_ms);
        }
        // An image that was sent was not drawn.
        if report.scheduler.is_none() {
            return;
        }
        self.stage(Stage::Encode, report.encode_ms);
        self.stage(Stage::Denoise, report.denoise_ms);
        self.stage(Stage::Decode, report.decode_ms);
        self.steps.add(u64::from(report.steps), Duration::from_millis(report.denoise_ms));
    }

    fn stage(&mut self, stage: Stage, millis: u64) {
        self.stages.entry(stage).or_default().add(1, Duration::from_millis(millis));
    }
}
