//! Until when jobs may wait, be drawn and have ended. Pure: the time is told to it.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use crate::{
    job::{Job, JobId, Terms},
    request::GenerateRequest,
};

/// What a job has a limited time for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// To have ended.
    Deadline,
    /// To be begun, while its caller waits.
    Admission,
    /// To be begun, of a switch.
    Switch,
    /// To be drawn, from when that began.
    Drawing,
    /// To be drawn, by the measured pace of its kind.
    Pace,
    /// For the worker, to stop it after it was told to.
    Stopping,
}

/// Now, by the machine's clock, which may be set, and by one that never is.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub unix_ms: u64,
    pub steady_ms: u64,
}

/// How long a generation may be drawn under `timeout: auto`, if it is expected to take so long.
/// `None` for one whose images are enlarged, too: the pace of drawing says nothing of that.
pub fn limit_by_pace(request: &GenerateRequest, expected: Duration) -> Option<Duration> {
    const AT_LEAST: Duration = Duration::from_secs(600);
    const TIMES: u32 = 20;
    request.superres.is_none().then(|| AT_LEAST.max(TIMES * expected))
}

/// All limits of all jobs that have not ended, in milliseconds of the clock that is never set.
#[derive(Debug, Default)]
pub struct Limits {
    by_time: BTreeSet<(u64, JobId, Limit)>,
    by_job: HashMap<JobId, Vec<(Limit, u64)>>,
}

impl Limits {
    /// What was agreed on for a job that waits from now on.
    pub fn add(&mut self, id: JobId, job: &Job, terms: &Terms, now: Now) {
        let switch = match job {
            Job::ModeSwitch { timeout_secs, .. } => *timeout_secs,
            Job::Generation { .. }
            | Job::Load { .. }
            | Job::Unload { .. }
            | Job::Custom { .. }
            | Job::Upscale { .. } => None,
        };
        let ms = |secs: u32| 1000 * u64::from(secs);
        for (limit, in_ms) in [
            (Limit::Deadline, terms.deadline_unix_ms.map(|at| at.saturating_sub(now.unix_ms))),
            (Limit::Admission, terms.admission_secs.map(ms)),
            (Limit::Switch, switch.map(ms)),
        ] {
            in_ms.into_iter().for_each(|ms| self.set(id, limit, now.steady_ms.saturating_add(ms)));
        }
    }

    /// One of a kind for each job: the last one that is set.
    pub fn set(&mut self, id: JobId, limit: Limit, at_ms: u64) {
        self.lift(id, limit);
        self.by_time.insert((at_ms, id, limit));
        self.by_job.entry(id).or_default().push((limit, at_ms));
    }

    pub fn lift(&mut self, id: JobId, limit: Limit) {
        let Some(limits) = self.by_job.get_mut(&id) else { return };
        limits.retain(|(of, at_ms)| *of != limit || !self.by_time.remove(&(*at_ms, id, limit)));
        if limits.is_empty() {
            self.by_job.remove(&id);
        }
    }

    /// The job is begun: it waits no more.
    pub fn begun(&mut self, id: JobId) {
        self.lift(id, Limit::Admission);
        self.lift(id, Limit::Switch);
    }

    /// The job has ended.
    pub fn forget(&mut self, id: JobId) {
        for (limit, at_ms) in self.by_job.remove(&id).unwrap_or_default() {
            self.by_time.remove(&(at_ms, id, limit));
        }
    }

    /// When the next one is reached.
    pub fn next_ms(&self) -> Option<u64> {
        self.by_time.first().map(|(at_ms, ..)| *at_ms)
    }

    /// Takes out one that is reached, the earliest first.
    pub fn take_reached(&mut self, now_ms: u64) -> Option<(JobId, Limit)> {
        let (_, id, limit) = *self.by_time.first().filter(|(at_ms, ..)| *at_ms <= now_ms)?;
        self.lift(id, limit);
        Some((id, limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Superres;

    fn reached(limits: &mut Limits, now_ms: u64) -> Vec<(JobId, Limit)> {
        std::iter::from_fn(|| limits.take_reached(now_ms)).collect()
    }

    #[test]
    fn limits_are_reached_in_the_order_of_time_and_once() {
        let (a, b) = (JobId::new(), JobId::new());
        let mut limits = Limits::default();
        limits.set(a, Limit::Deadline, 30);
        limits.set(b, Limit::Admission, 20);
        limits.set(b, Limit::Deadline, 10);
        assert_eq!(limits.next_ms(), Some(10));
        assert_eq!(reached(&mut limits, 9), []);
        assert_eq!(reached(&mut limits, 20), [(b, Limit::Deadline), (b, Limit::Admission)]);
        assert_eq!(limits.next_ms(), Some(30));
        assert_eq!(reached(&mut limits, 30), [(a, Limit::Deadline)]);
        assert_eq!((limits.next_ms(), limits.by_job.len()), (None, 0));
    }

    #[test]
    fn a_job_may_take_twenty_times_as_long_as_its_kind_and_ten_minutes() {
        let plain = GenerateRequest::of("a", "x");
        let enlarged = GenerateRequest {
            superres: Some(Superres { magnitude: 2, model: None, format: None }),
            ..plain.clone()
        };
        let secs = Duration::from_secs;
        for (request, expected, limit) in [
            (&plain, 1, Some(600)),
            (&plain, 30, Some(600)),
            (&plain, 31, Some(620)),
            (&plain, 3600, Some(72_000)),
            (&enlarged, 31, None),
        ] {
            assert_eq!(limit_by_pace(request, secs(expected)), limit.map(secs), "{expected} s");
        }
    }

    #[test]
    fn a_limit_that_is_set_again_is_moved_and_one_that_is_lifted_is_gone() {
        let id = JobId::new();
        let mut limits = Limits::default();
        limits.set(id, Limit::Drawing, 10);
        limits.set(id, Limit::Drawing, 30);
        limits.set(id, Limit::Stopping, 40);
        assert_eq!(reached(&mut limits, 29), []);
        limits.lift(id, Limit::Drawing);
        assert_eq!(limits.next_ms(), Some(40));
        limits.forget(id);
        assert_eq!((reached(&mut limits, 99), limits.by_job.len()), (vec![], 0));
    }

    #[test]
    fn what_was_agreed_on_counts_from_when_it_waits() {
        let id = JobId::new();
        let terms = Terms {
            deadline_unix_ms: Some(7000),
            admission_secs: Some(2),
            timeout_secs: Some(1),
            ..Terms::default()
        };
        let job = Job::Custom { name: "x".to_owned(), args: Default::default() };
        let mut limits = Limits::default();
        // The machine's clock was set back by a second since the daemon's start.
        limits.add(id, &job, &terms, Now { unix_ms: 4000, steady_ms: 5000 });
        assert_eq!(limits.next_ms(), Some(7000));
        limits.begun(id);
        assert_eq!(reached(&mut limits, 7999), [], "what has begun waits no more");
        assert_eq!(reached(&mut limits, 8000), [(id, Limit::Deadline)]);
    }
}
