//! How long jobs take lately, for those who ask when to come back, or when their job begins.
//! Functions of what was measured: the time is told to them.

use std::{collections::BTreeMap, time::Duration};

use crate::job::{Job, JobKind};

/// Means over the jobs that were done, in which the recent ones count most.
#[derive(Debug, Default, Clone)]
pub struct Pace {
    any: Mean,
    /// Of generations for a pixel and step, of the others for one job: by what they are about.
    kinds: BTreeMap<(JobKind, String), Mean>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Mean(Option<f64>);

impl Mean {
    fn record(&mut self, value: f64) {
        const WEIGHT: f64 = 0.2;
        let mean = self.0.unwrap_or(value);
        self.0 = Some(mean + WEIGHT * (value - mean));
    }
}

/// Names that were measured last; a queue of more modes than this is estimated by the mean of all.
const MAX_KINDS: usize = 1000;

impl Pace {
    /// A job was done and took that long, from its begin to its end.
    pub fn record(&mut self, job: &Job, took: Duration) {
        let secs = took.as_secs_f64();
        self.any.record(secs);
        let key = key(job);
        if self.kinds.len() < MAX_KINDS || self.kinds.contains_key(&key) {
            self.kinds.entry(key).or_default().record(secs / work(job));
        }
    }

    /// When a place in a full queue may be free, in whole seconds and at least one: as soon as
    /// one more job is done.
    pub fn retry_after_secs(&self) -> u64 {
        (self.any.0.unwrap_or(0.0).ceil() as u64).max(1)
    }

    /// How long a job will take by others of its kind and mode; `None` before the first of them.
    pub fn measured(&self, job: &Job) -> Option<Duration> {
        let mean = self.kinds.get(&key(job))?.0?;
        Duration::try_from_secs_f64(mean * work(job)).ok()
    }

    /// How many seconds a job will take, by others of its kind and mode, else by any; `None` while
    /// nothing has been measured.
    fn secs(&self, job: &Job) -> Option<f64> {
        let of_kind = self.kinds.get(&key(job)).and_then(|mean| mean.0);
        of_kind.map(|mean| mean * work(job)).or(self.any.0)
    }

    /// In how many milliseconds each job that waits is begun, the running one, which has run for
    /// so long, and those that wait being given in their order. Nothing while nothing has been
    /// measured.
    pub fn waits_ms<'j, T>(
        &self,
        running: Option<(&Job, Duration)>,
        waiting: impl IntoIterator<Item = (T, &'j Job)>,
    ) -> Vec<(T, u64)> {
        let rest = running
            .map(|(job, since)| self.secs(job).map(|secs| (secs - since.as_secs_f64()).max(0.0)));
        let mut until = rest.unwrap_or(Some(0.0)).filter(|_| self.any.0.is_some());
        let begun = |(of, job): (T, &Job)| {
            let begins = until?;
            until = self.secs(job).map(|secs| begins + secs);
            Some((of, (begins * 1000.0).round() as u64))
        };
        waiting.into_iter().map_while(begun).collect()
    }
}

fn key(job: &Job) -> (JobKind, String) {
    let name = match job {
        Job::Custom { name, .. } => name,
        Job::Generation { .. }
        | Job::ModeSwitch { .. }
        | Job::Load { .. }
        | Job::Unload { .. }
        | Job::Upscale { .. } => job.mode().unwrap_or_default(),
    };
    (job.kind(), name.to_owned())
}

/// What its time grows with.
fn work(job: &Job) -> f64 {
    match job {
        Job::Generation { request, .. } => {
            request.size.pixels() as f64 * f64::from(request.steps) * f64::from(request.n)
        }
        Job::ModeSwitch { .. }
        | Job::Load { .. }
        | Job::Unload { .. }
        | Job::Custom { .. }
        | Job::Upscale { .. } => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::SwitchOrigin,
        modes::{CheckpointRef, PipelineSpec, Size},
        request::GenerateRequest,
    };

    fn pipeline() -> PipelineSpec {
        PipelineSpec::of(CheckpointRef { name: "x".into(), path: "x".into() })
    }

    fn generation(mode: &str, side: u32, steps: u32) -> Job {
        let size = Size { width: side, height: side };
        let request = GenerateRequest { size, steps, ..GenerateRequest::of(mode, "") };
        Job::Generation { request, pipeline: pipeline() }
    }

    /// `a` and `b` are generations in these modes, `a2` one of twice as many steps, `A` one of four
    /// times as many pixels, `>a` a switch, `*` a custom job.
    fn job(word: &str) -> Job {
        match word.split_at(1) {
            (">", mode) => Job::ModeSwitch {
                mode: mode.to_owned(),
                pipeline: pipeline(),
                asked_by: SwitchOrigin::Generation,
                timeout_secs: None,
            },
            ("*", _) => Job::Custom { name: "x".to_owned(), args: Default::default() },
            ("A", _) => generation("a", 128, 10),
            (mode, "2") => generation(mode, 64, 20),
            (mode, _) => generation(mode, 64, 10),
        }
    }

    fn pace(measured: &[(&str, f64)]) -> Pace {
        let mut pace = Pace::default();
        measured
            .iter()
            .for_each(|(of, secs)| pace.record(&job(of), Duration::from_secs_f64(*secs)));
        pace
    }

    #[test]
    fn who_is_told_to_come_back_is_told_the_pace() {
        for (took, estimate) in
            [(&[][..], 1), (&[0.01], 1), (&[7.2], 8), (&[10.0, 10.0, 10.0], 10), (&[10.0, 0.0], 8)]
        {
            let took: Vec<_> = took.iter().map(|secs| ("a", *secs)).collect();
            assert_eq!(pace(&took).retry_after_secs(), estimate, "{took:?}");
        }
    }

    #[test]
    fn when_jobs_begin_is_what_those_before_them_take() {
        let known = [("a", 2.0), (">b", 5.0)];
        // (measured, running and for how long, waiting, in how many seconds each begins)
        for (measured, running, waiting, begins) in [
            (&[][..], None, "a", &[][..]),
            (&[], Some(("a", 1.0)), "a", &[]),
            (&known, None, "a a a", &[0.0, 2.0, 4.0]),
            (&known, Some(("a", 0.5)), "a a", &[1.5, 3.5]),
            // It should have been done by now.
            (&known, Some(("a", 9.0)), "a a", &[0.0, 2.0]),
            (&known, None, "a2 A a", &[0.0, 4.0, 12.0]),
            (&known, Some((">b", 1.0)), "a", &[4.0]),
            // Of what was never measured, the mean of all: 2 + (5 - 2) / 5.
            (&known, None, "b * a", &[0.0, 2.6, 5.2]),
            // The recent ones count most, by the work that they were.
            (&[("a", 2.0), ("a2", 9.0)], None, "a a", &[0.0, 2.5]),
        ] {
            let pace = pace(measured);
            let running = running.map(|(word, secs)| (job(word), Duration::from_secs_f64(secs)));
            let jobs: Vec<Job> = waiting.split(' ').map(job).collect();
            let running = running.as_ref().map(|(job, since)| (job, *since));
            let waits: Vec<f64> = pace
                .waits_ms(running, jobs.iter().map(|job| ((), job)))
                .iter()
                .map(|((), ms)| *ms as f64 / 1000.0)
                .collect();
            assert_eq!(waits, begins, "{measured:?} {waiting}");
        }
    }

    #[test]
    fn only_a_kind_that_was_measured_has_an_expected_time() {
        let pace = pace(&[("a", 2.0), ("*", 9.0)]);
        for (word, secs) in [("a", Some(2)), ("a2", Some(4)), ("A", Some(8)), ("b", None)] {
            assert_eq!(pace.measured(&job(word)), secs.map(Duration::from_secs), "{word}");
        }
    }

    #[test]
    fn names_are_remembered_within_bounds() {
        let mut pace = Pace::default();
        for i in 0..2 * MAX_KINDS {
            pace.record(&generation(&i.to_string(), 64, 1), Duration::from_secs(1));
        }
        assert_eq!(pace.kinds.len(), MAX_KINDS);
    }
}
