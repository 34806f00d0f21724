//! Which ended jobs are still known, and which must go: by age, by number and by the bytes of their
//! records. Pure: the time is told to it.

use std::io;

use serde::Serialize;

use super::{job_view::JobView, kept::Line, limits::Now};
use crate::{job::JobId, modes::Retention};

/// Bounds of the bytes that records may take, in memory and in the journal alike, whatever `max_gb`
/// says: it may be 0, so that no image is kept, and more than memory.
const RECORD_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=256 << 20;
/// What a record takes beside its contents.
const RECORD_OVERHEAD: u64 = 1 << 10;
/// How long a daemon runs before jobs of an earlier one expire by age: the wall clock alone tells
/// their age, and it may be wrong, or have been, and be set soon.
const DOUBT_MS: u64 = 60 * 60 * 1000;

/// Jobs that have ended, oldest first.
#[derive(Default)]
pub struct RetainedJobs {
    line: Line<Now>,
    /// When the daemon started, on the clock that is never set.
    started_ms: u64,
}

impl RetainedJobs {
    pub fn push(&mut self, id: JobId, ended: Now, record_bytes: u64) {
        self.line.push(id, record_bytes, ended);
    }

    /// The daemon starts; all jobs of earlier ones are there.
    pub fn begin(&mut self, now: Now) {
        self.started_ms = now.steady_ms;
    }

    /// Takes out those that are too old, or too many.
    pub fn take_expired(&mut self, now: Now, retention: &Retention) -> Vec<JobId> {
        let mut expired = Vec::new();
        while let Some(ended) = self.line.front().map(|(_, ended)| *ended)
            && (self.line.len() > retention.max_jobs as usize
                || self.line.bytes() > max_record_bytes(retention)
                || self.expires_in_ms(ended, now, retention) == 0)
        {
            expired.extend(self.line.pop());
        }
        expired
    }

    /// How long the next one is kept, if nothing happens until then.
    pub fn next_expiry_in_ms(&self, now: Now, retention: &Retention) -> Option<u64> {
        self.line.front().map(|(_, ended)| self.expires_in_ms(*ended, now, retention))
    }

    /// What their images may take: records and images share `max_gb`.
    pub fn max_image_bytes(&self, retention: &Retention) -> u64 {
        retention.max_bytes.saturating_sub(self.line.bytes())
    }

    fn expires_in_ms(&self, ended: Now, now: Now, retention: &Retention) -> u64 {
        let max_age_ms = retention.max_age.duration().as_millis() as u64;
        let by_age = max_age_ms.saturating_sub(age_ms(ended, now));
        if ended.steady_ms >= self.started_ms {
            return by_age;
        }
        by_age.max((self.started_ms + DOUBT_MS).saturating_sub(now.steady_ms))
    }
}

/// The lesser of two ages, so that a wall clock that is set, forward or back, makes nothing older than
/// it is. (While the machine sleeps, the steady clock may stand: then it is too young.)
fn age_ms(ended: Now, now: Now) -> u64 {
    let by_wall = now.unix_ms.saturating_sub(ended.unix_ms);
    by_wall.min(now.steady_ms.saturating_sub(ended.steady_ms))
}

fn max_record_bytes(retention: &Retention) -> u64 {
    retention.max_bytes.clamp(*RECORD_BYTES.start(), *RECORD_BYTES.end())
}

/// What a job that has ended takes, in memory or in the journal.
pub fn record_bytes(view: &JobView) -> u64 {
    RECORD_OVERHEAD + json_bytes(&view.job) + json_bytes(&view.terms) + view.result_bytes
}

/// How long something is as JSON.
pub fn json_bytes(value: &impl Serialize) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    let _ = serde_json::to_writer(&mut count, value); // counting cannot fail
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Job, Terms},
        modes::Time,
        queue::Entry,
    };

    const HOUR: u64 = 60 * 60 * 1000;
    const DAY: u64 = 24 * HOUR;
    const WEEK: Retention =
        Retention { max_age: Time::of_secs(7 * 86_400), max_jobs: 10, max_bytes: 1 << 30 };

    fn at(unix_ms: u64, steady_ms: u64) -> Now {
        Now { unix_ms, steady_ms }
    }

    /// How long a job is kept that ended at `ended`, in a daemon that started at `start`.
    fn kept_for(start: Now, ended: Now, now: Now) -> u64 {
        let mut jobs = RetainedJobs::default();
        jobs.begin(start);
        jobs.push(JobId::new(), ended, 0);
        let kept_for = jobs.next_expiry_in_ms(now, &WEEK).unwrap();
        assert_eq!(jobs.take_expired(now, &WEEK).len(), usize::from(kept_for == 0));
        kept_for
    }

    #[test]
    fn no_jump_of_the_wall_clock_makes_a_job_older() {
        let noon = 1000 * DAY;
        let start = at(noon, noon);
        let later = |wall: u64, steady: u64| at(noon + wall, noon + steady);
        for (what, ended, now, expected) in [
            ("time passes", later(0, 0), later(DAY, DAY), 6 * DAY),
            ("its age is reached", later(0, 0), later(7 * DAY, 7 * DAY), 0),
            ("forward by 8 days", later(0, 0), later(8 * DAY, 1), 7 * DAY - 1),
            ("forward, and time passes", later(0, 0), later(15 * DAY, 7 * DAY), 0),
            ("back by a day", later(0, 0), at(noon - DAY, noon), 7 * DAY),
            ("back before it ended", later(9 * DAY, 0), later(HOUR, HOUR), 7 * DAY),
            ("asleep for 8 days", later(0, 0), later(8 * DAY, HOUR), 7 * DAY - HOUR),
            ("of an earlier daemon", at(noon - DAY, noon - DAY), later(DAY, DAY), 5 * DAY),
        ] {
            assert_eq!(kept_for(start, ended, now), expected, "{what}");
        }
    }

    #[test]
    fn a_job_of_an_earlier_daemon_expires_by_age_an_hour_after_the_start_at_the_soonest() {
        let noon = 1000 * DAY;
        let old = at(noon - 8 * DAY, noon - 8 * DAY);
        let half = HOUR / 2;
        for (what, ended, now, expected) in [
            ("at the start", old, at(noon, noon), HOUR),
            ("half an hour later", old, at(noon + half, noon + half), half),
            ("an hour later", old, at(noon + HOUR, noon + HOUR), 0),
            ("set back meanwhile", old, at(noon - 6 * DAY, noon + HOUR), 5 * DAY),
            ("set forward meanwhile", old, at(noon + DAY, noon + half), half),
            ("of the future", at(noon + DAY, noon + DAY), at(noon, noon), 7 * DAY),
        ] {
            assert_eq!(kept_for(at(noon, noon), ended, now), expected, "{what}");
        }
        let short = Retention { max_age: Time::of_secs(60), ..WEEK };
        let mut jobs = RetainedJobs::default();
        jobs.begin(at(noon, noon));
        jobs.push(JobId::new(), at(noon, noon), 0);
        let now = at(noon + 60_000, noon + 60_000);
        assert_eq!(jobs.take_expired(now, &short).len(), 1, "of this daemon: at its age");
    }

    #[test]
    fn number_and_bytes_count_at_once_after_a_start() {
        let noon = 1000 * DAY;
        let mut jobs = RetainedJobs::default();
        let ids: Vec<JobId> = (0..3).map(|_| JobId::new()).collect();
        ids.iter().for_each(|id| jobs.push(*id, at(0, 0), 0));
        jobs.begin(at(noon, noon));
        let two = Retention { max_jobs: 2, ..WEEK };
        assert_eq!(jobs.take_expired(at(noon, noon), &two), ids[..1]);
    }

    #[test]
    fn jobs_and_their_records_are_bounded_by_number_and_bytes() {
        let mut jobs = RetainedJobs::default();
        let ids: Vec<JobId> = (0..12).map(|_| JobId::new()).collect();
        ids.iter().for_each(|id| jobs.push(*id, at(0, 0), 4 << 20));
        assert_eq!(jobs.take_expired(at(0, 0), &WEEK), ids[..2], "10 are the most");
        assert_eq!(jobs.max_image_bytes(&WEEK), (1 << 30) - (40 << 20));
        let small = Retention { max_bytes: 24 << 20, ..WEEK };
        assert_eq!(jobs.take_expired(at(0, 0), &small), ids[2..6], "they take max_gb");
        assert_eq!(jobs.max_image_bytes(&small), 0);
        let nothing = Retention { max_bytes: 0, ..WEEK };
        assert_eq!(jobs.take_expired(at(0, 0), &nothing), ids[6..8], "16 MiB are always theirs");
        ids.iter().for_each(|id| jobs.push(*id, at(0, 0), 128 << 20));
        let all = Retention { max_bytes: 1 << 40, max_jobs: 1000, ..WEEK };
        jobs.take_expired(at(0, 0), &all);
        assert_eq!(jobs.line.len(), 2, "256 MiB are the most");
    }

    #[test]
    fn a_record_counts_its_texts_and_its_result() {
        let bytes = |prompt: &str, result_bytes| {
            let terms = Terms { prompt: prompt.to_owned(), ..Terms::default() };
            let job = Job::Custom { name: "x".to_owned(), args: Default::default() };
            let entry = Entry { id: JobId::new(), job, terms, arrived_ms: 0 };
            record_bytes(&JobView { result_bytes, ..JobView::of(entry) })
        };
        let none = bytes("", 0);
        assert!((1000..2000).contains(&none), "{none}");
        assert_eq!(bytes(&"x".repeat(1000), 5000), none + 6000);
    }
}
