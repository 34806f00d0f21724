//! The job table: written by the dispatcher alone, read by everybody.
//!
//! It has every job that is known; the journal has those of them that are durable, and is read when
//! the daemon starts.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use super::{
    Outcome,
    clock::unix_ms,
    events::{Change, SharedLog},
    job_view::JobView,
    kept::{Kept, Line, Place},
    limits::Now,
    pace::Pace,
    previews::SharedPreviews,
    retention::{RetainedJobs, json_bytes, record_bytes},
};
use crate::{
    job::{Job, JobId, JobState},
    journal::{Ending, Remembered},
    modes::Retention,
    queue::Entry,
};

/// How many jobs that have ended are remembered of those whose callers have their answers.
const ANSWERED_KEPT: usize = 1000;
/// What the records of those may take.
const ANSWERED_BYTES: u64 = 64 << 20;

/// The table behind its lock, which is never held for longer than a look or a stroke.
#[derive(Clone, Default)]
pub struct SharedJobs(Arc<RwLock<JobTable>>);

#[derive(Default)]
struct JobTable {
    views: HashMap<JobId, JobView>,
    /// Durable ones that have ended.
    finished: RetainedJobs,
    /// The others that have ended.
    answered: Line<()>,
    kept: Kept,
    pace: Pace,
    previews: SharedPreviews,
    /// Written under this table's lock, so that the two agree for whoever holds it.
    events: SharedLog,
}

/// What is not to be known any more.
#[derive(Debug, Default, PartialEq)]
pub struct Expired {
    pub jobs: Vec<JobId>,
    /// Of jobs that are still known.
    pub images: Vec<JobId>,
}

/// How a job has ended.
pub struct Ended<'a> {
    pub outcome: &'a Outcome,
    pub at: Now,
    /// What its images take on disk; 0 where none are there.
    pub image_bytes: u64,
}

impl SharedJobs {
    pub fn get(&self, id: JobId) -> Option<JobView> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut view = table.seen(table.views.get(&id)?);
        if view.state == JobState::Queued {
            // Ids grow with time. (With affinity or fair, it may be others in the end.)
            let turn =
                |of: &JobView| (of.state == JobState::Queued, Reverse(of.terms.priority), of.id);
            let before = table.views.values().filter(|other| turn(other) < turn(&view));
            let before: Vec<&JobView> = before.filter(|other| !other.state.is_terminal()).collect();
            view.jobs_before = before.len();
            // How long they take together is the same in any order.
            let waiting = before.into_iter().filter(|other| other.state == JobState::Queued);
            let estimates = table.estimates(waiting.chain([&view]));
            view.estimated_start_unix_ms = estimates.last().map(|(_, at_unix_ms)| *at_unix_ms);
        }
        Some(view)
    }

    /// How a job stands, and nothing of its place among the others.
    pub fn state(&self, id: JobId) -> Option<JobState> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.views.get(&id).map(|view| view.state.clone())
    }

    /// Whether there is a job like that which has not ended.
    pub fn awaits(&self, is: impl Fn(&Job) -> bool) -> bool {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.views.values().any(|view| !view.state.is_terminal() && is(&view.job))
    }

    /// Where a job's images are, if they are kept.
    pub fn images(&self, id: JobId) -> Option<Place> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).kept.find(id)
    }

    /// The newest first; fewer than the limit where they would take more than that in memory, but
    /// never none for it. And whether there are more.
    pub fn list(
        &self,
        before: Option<JobId>,
        (limit, max_bytes): (usize, u64),
        wanted: impl Fn(&JobView) -> bool,
    ) -> (Vec<JobView>, bool) {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let older = |view: &&JobView| before.is_none_or(|before| view.id < before);
        let mut ids: Vec<JobId> = table
            .views
            .values()
            .filter(older)
            .filter(|view| wanted(view))
            .map(|it| it.id)
            .collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        let all = ids.len();
        let mut bytes = 0_u64;
        let too_large = ids.iter().filter_map(|id| table.views.get(id)).position(|view| {
            let is_first = bytes == 0;
            bytes = bytes.saturating_add(view.bytes());
            bytes > max_bytes && !is_first
        });
        ids.truncate(too_large.unwrap_or(all).min(limit));
        let has_more = ids.len() < all;
        let mut views: Vec<JobView> =
            ids.iter().filter_map(|id| Some(table.seen(table.views.get(id)?))).collect();
        if views.iter().any(|view| view.state == JobState::Queued) {
            let estimates: HashMap<_, _> = table.estimates(table.waiting()).into_iter().collect();
            for view in &mut views {
                view.estimated_start_unix_ms = estimates.get(&view.id).copied();
            }
        }
        (views, has_more)
    }

    /// What happens to the jobs, one after the other.
    pub fn events(&self) -> SharedLog {
        self.0.read().unwrap_or_else(PoisonError::into_inner).events.clone()
    }

    pub fn previews(&self) -> SharedPreviews {
        self.0.read().unwrap_or_else(PoisonError::into_inner).previews.clone()
    }

    /// How a job stands, as the event after which whatever happens next has its number.
    pub fn present(&self, id: JobId) -> Option<Change> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let view = table.views.get(&id)?;
        Some(Change::of(table.events.last(), id, &view.job, &view.state))
    }

    pub fn insert(&self, entry: Entry) {
        let view = JobView::of(entry);
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.events.record(view.id, &view.job, &view.state);
        table.views.insert(view.id, view);
    }

    /// A job of an earlier daemon.
    pub fn restore(&self, remembered: Remembered) {
        let Remembered { entry, attempts, started_unix_ms, ending, notified: _ } = remembered;
        let id = entry.id;
        let result_bytes = ending.as_ref().and_then(|it| it.result.as_ref()).map(json_bytes);
        let mut view = JobView { attempts, started_unix_ms, ..JobView::of(entry) };
        view.result_bytes = result_bytes.unwrap_or(0);
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(ending) = ending {
            let Ending { state, finished_unix_ms, drawing_unix_ms, result, report, image_bytes } =
                ending;
            // The steady clock counts on from the time of day at the start.
            let at = Now { unix_ms: finished_unix_ms, steady_ms: finished_unix_ms };
            let finished_unix_ms = Some(finished_unix_ms);
            view = JobView { state, finished_unix_ms, drawing_unix_ms, result, report, ..view };
            table.finished.push(id, at, record_bytes(&view));
            if image_bytes > 0 {
                table.kept.on_disk(id, image_bytes);
            }
        }
        table.views.insert(id, view);
        if let Some(bytes) = result_bytes {
            table.keep_result(id, bytes);
        }
    }

    /// All jobs of the earlier daemon are there.
    pub fn restored(&self, now: Now) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).finished.begin(now);
    }

    /// An attempt at the job begins: how many that makes; and how long the job has waited, at the
    /// first one.
    pub fn begin(&self, id: JobId, state: JobState) -> (u32, Option<Duration>) {
        let (mut attempts, mut waited) = (1, None);
        self.update(id, |view| {
            view.attempts += 1;
            attempts = view.attempts;
            view.state = state;
            if view.started_unix_ms.is_none() {
                let now = unix_ms();
                view.started_unix_ms = Some(now);
                waited = Some(Duration::from_millis(now.saturating_sub(view.created_unix_ms)));
            }
        });
        (attempts, waited)
    }

    /// All that a generation needs is loaded.
    pub fn begin_drawing(&self, id: JobId, state: JobState) {
        self.update(id, |view| {
            view.state = state;
            view.drawing_unix_ms = Some(unix_ms());
        });
    }

    /// A job was done and took that long.
    pub fn record_pace(&self, job: &Job, took: Duration) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.pace.record(job, took);
    }

    /// How long a job will take by others of its kind and mode.
    pub fn measured(&self, job: &Job) -> Option<Duration> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.pace.measured(job)
    }

    pub fn retry_after_secs(&self) -> u64 {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.pace.retry_after_secs()
    }

    pub fn set_state(&self, id: JobId, state: JobState) {
        self.update(id, |view| view.state = state);
    }

    /// The job has ended.
    pub fn finish(&self, id: JobId, ended: Ended) {
        let Ended { outcome, at, image_bytes } = ended;
        let result_bytes =
            if let Outcome::Custom(value) = outcome { Some(json_bytes(value)) } else { None };
        self.update(id, |view| {
            view.finished_unix_ms = Some(at.unix_ms);
            view.state = outcome.state();
            match outcome {
                Outcome::Custom(value) => view.result = Some(value.clone()),
                Outcome::Images(images) => view.report = Some(images.report.clone()),
                Outcome::Switched
                | Outcome::Loaded
                | Outcome::Unloaded(_)
                | Outcome::Failed(_)
                | Outcome::Cancelled => {}
            }
            // Thousands of jobs are remembered; not the megabytes of each.
            view.job.forget_inputs();
        });
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = result_bytes {
            table.keep_result(id, bytes);
        }
        let Some(view) = table.views.get(&id) else { return };
        let bytes = record_bytes(view);
        if view.terms.durable {
            table.finished.push(id, at, bytes);
            match outcome {
                Outcome::Images(_) if image_bytes > 0 => table.kept.on_disk(id, image_bytes),
                Outcome::Images(images) => table.kept.in_memory(id, images.clone()),
                Outcome::Switched
                | Outcome::Loaded
                | Outcome::Unloaded(_)
                | Outcome::Custom(_)
                | Outcome::Failed(_)
                | Outcome::Cancelled => {}
            }
        } else {
            table.answered.push(id, bytes, ());
            while (table.answered.len() > ANSWERED_KEPT || table.answered.bytes() > ANSWERED_BYTES)
                && let Some(oldest) = table.answered.pop()
            {
                table.views.remove(&oldest);
                table.kept.forget(oldest);
            }
        }
    }

    /// A job that was not accepted in the end.
    pub fn forget(&self, id: JobId) {
        self.update(id, |view| view.state = JobState::Cancelled);
        self.0.write().unwrap_or_else(PoisonError::into_inner).views.remove(&id);
    }

    /// Forgets what is older, or more, than may be kept; says what that was.
    pub fn expire(&self, now: Now, retention: &Retention) -> Expired {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let jobs = table.finished.take_expired(now, retention);
        for id in &jobs {
            table.views.remove(id);
            table.kept.forget(*id);
        }
        let max_image_bytes = table.finished.max_image_bytes(retention);
        let images = table.kept.shrink(max_image_bytes);
        Expired { jobs, images }
    }

    /// In how long the next job is too old to be kept.
    pub fn next_expiry_in_ms(&self, now: Now, retention: &Retention) -> Option<u64> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.finished.next_expiry_in_ms(now, retention)
    }

    fn update(&self, id: JobId, change: impl FnOnce(&mut JobView)) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let JobTable { views, events, .. } = &mut *table;
        if let Some(view) = views.get_mut(&id) {
            change(view);
            events.record(id, &view.job, &view.state);
        }
    }
}

impl JobTable {
    fn keep_result(&mut self, id: JobId, bytes: u64) {
        if let Some(view) = self.views.get_mut(&id) {
            view.result_bytes = bytes;
        }
        for oldest in self.kept.result(id, bytes) {
            if let Some(view) = self.views.get_mut(&oldest) {
                (view.result, view.result_bytes) = (None, 0);
            }
        }
    }

    /// Those that wait, in their order.
    fn waiting(&self) -> Vec<&JobView> {
        let waiting = self.views.values().filter(|view| view.state == JobState::Queued);
        let mut waiting: Vec<&JobView> = waiting.collect();
        waiting.sort_unstable_by_key(|view| (Reverse(view.terms.priority), view.id));
        waiting
    }

    /// When those that wait will be begun, the first ones of all being given in their order.
    fn estimates<'a>(&self, waiting: impl IntoIterator<Item = &'a JobView>) -> Vec<(JobId, u64)> {
        let now = unix_ms();
        let running = self.views.values().find(|view| view.is_begun());
        let running = running.map(|view| {
            let since = now.saturating_sub(view.started_unix_ms.unwrap_or(now));
            (&view.job, Duration::from_millis(since))
        });
        let waiting = waiting.into_iter().map(|view| (view.id, &view.job));
        let waits = self.pace.waits_ms(running, waiting);
        waits.into_iter().map(|(id, ms)| (id, now.saturating_add(ms))).collect()
    }

    fn seen(&self, view: &JobView) -> JobView {
        let report = view.report.as_ref().filter(|_| self.kept.find(view.id).is_some());
        JobView { images: report.map_or(0, |report| report.images), ..view.clone() }
    }
}

#[cfg(test)]
mod tests;
