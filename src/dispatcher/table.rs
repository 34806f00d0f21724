//! The job table: written by the dispatcher alone, read by everybody.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use super::{
    DrawnImages, Outcome,
    clock::unix_ms,
    events::{Change, SharedLog},
    pace::Pace,
    previews::SharedPreviews,
};
use crate::{
    job::{Job, JobId, JobState, Terms},
    queue::Entry,
    worker::protocol::DrawnReport,
};

/// How many jobs that have ended are remembered.
const FINISHED_KEPT: usize = 1000;
/// What the images may take together that are kept of them.
const MAX_IMAGE_BYTES: usize = 512 << 20;

/// A job and how it stands. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    pub id: JobId,
    pub job: Job,
    pub terms: Terms,
    pub state: JobState,
    /// How many times it was begun: 2 if the worker died in the first attempt.
    pub attempts: u32,
    /// While it waits: how many jobs come before it, the running one included.
    pub jobs_before: usize,
    pub created_unix_ms: u64,
    pub started_unix_ms: Option<u64>,
    pub finished_unix_ms: Option<u64>,
    /// What a custom job returned. (An image goes to its caller and is not kept.)
    pub result: Option<serde_json::Value>,
    /// How the images of a generation came about, once they are drawn.
    pub report: Option<DrawnReport>,
    /// When its drawing began, of the last attempt: behind all loading.
    pub drawing_unix_ms: Option<u64>,
    /// While it waits: when it will be begun, by what jobs took lately; `None` while nothing has
    /// been measured.
    pub estimated_start_unix_ms: Option<u64>,
}

/// The table behind its lock, which is never held for longer than a look or a stroke.
#[derive(Clone, Default)]
pub struct SharedJobs(Arc<RwLock<JobTable>>);

#[derive(Default)]
struct JobTable {
    views: HashMap<JobId, JobView>,
    /// Those that have ended, oldest first.
    finished: VecDeque<JobId>,
    /// Of those that keep them, oldest first.
    images: VecDeque<(JobId, Arc<DrawnImages>)>,
    image_bytes: usize,
    pace: Pace,
    previews: SharedPreviews,
    /// Written under this table's lock, so that the two agree for whoever holds it.
    events: SharedLog,
}

impl JobTable {
    fn keep(&mut self, id: JobId, images: Arc<DrawnImages>) {
        self.image_bytes += images.rgb.len();
        self.images.push_back((id, images));
        while self.image_bytes > MAX_IMAGE_BYTES
            && let Some((_, oldest)) = self.images.pop_front()
        {
            self.image_bytes -= oldest.rgb.len();
        }
    }

    fn forget_images(&mut self, id: JobId) {
        if let Some(at) = self.images.iter().position(|(of, _)| *of == id)
            && let Some((_, images)) = self.images.remove(at)
        {
            self.image_bytes -= images.rgb.len();
        }
    }

    /// When those that wait will be begun.
    fn estimates(&self) -> HashMap<JobId, u64> {
        let now = unix_ms();
        let running = self.views.values().find(|view| view.is_begun());
        let running = running.map(|view| {
            let since = now.saturating_sub(view.started_unix_ms.unwrap_or(now));
            (&view.job, Duration::from_millis(since))
        });
        let waiting = self.views.values().filter(|view| view.state == JobState::Queued);
        let mut waiting: Vec<&JobView> = waiting.collect();
        waiting.sort_unstable_by_key(|view| (Reverse(view.terms.priority), view.id));
        let waits = self.pace.waits_ms(running, waiting.iter().map(|view| (view.id, &view.job)));
        waits.into_iter().map(|(id, ms)| (id, now.saturating_add(ms))).collect()
    }
}

impl JobView {
    /// Whether it is neither waiting nor at its end.
    fn is_begun(&self) -> bool {
        self.state != JobState::Queued && !self.state.is_terminal()
    }
}

impl SharedJobs {
    pub fn get(&self, id: JobId) -> Option<JobView> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut view = table.views.get(&id)?.clone();
        if view.state == JobState::Queued {
            // Ids grow with time. (With affinity or fair, it may be others in the end.)
            let turn =
                |of: &JobView| (of.state == JobState::Queued, Reverse(of.terms.priority), of.id);
            let before = table.views.values().filter(|other| turn(other) < turn(&view));
            view.jobs_before = before.filter(|other| !other.state.is_terminal()).count();
            view.estimated_start_unix_ms = table.estimates().get(&id).copied();
        }
        Some(view)
    }

    /// Whether there is a job like that which has not ended.
    pub fn awaits(&self, is: impl Fn(&Job) -> bool) -> bool {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.views.values().any(|view| !view.state.is_terminal() && is(&view.job))
    }

    pub fn images(&self, id: JobId) -> Option<Arc<DrawnImages>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let images = table.images.iter().find(|(of, _)| *of == id);
        images.map(|(_, images)| images.clone())
    }

    /// The newest first.
    pub fn list(
        &self,
        before: Option<JobId>,
        limit: usize,
        wanted: impl Fn(&JobView) -> bool,
    ) -> Vec<JobView> {
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
        ids.truncate(limit);
        let mut views: Vec<JobView> =
            ids.iter().filter_map(|id| table.views.get(id).cloned()).collect();
        if views.iter().any(|view| view.state == JobState::Queued) {
            let estimates = table.estimates();
            for view in &mut views {
                view.estimated_start_unix_ms = estimates.get(&view.id).copied();
            }
        }
        views
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
        let view = JobView {
            id: entry.id,
            job: entry.job,
            terms: entry.terms,
            state: JobState::Queued,
            attempts: 0,
            jobs_before: 0,
            created_unix_ms: unix_ms(),
            started_unix_ms: None,
            finished_unix_ms: None,
            result: None,
            report: None,
            drawing_unix_ms: None,
            estimated_start_unix_ms: None,
        };
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.events.record(view.id, &view.job, &view.state);
        table.views.insert(view.id, view);
    }

    /// An attempt at the job begins; says how long it has waited, at the first one.
    pub fn begin(&self, id: JobId, state: JobState) -> Option<Duration> {
        let mut waited = None;
        self.update(id, |view| {
            view.attempts += 1;
            view.state = state;
            if view.started_unix_ms.is_none() {
                let now = unix_ms();
                view.started_unix_ms = Some(now);
                waited = Some(Duration::from_millis(now.saturating_sub(view.created_unix_ms)));
            }
        });
        waited
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

    pub fn retry_after_secs(&self) -> u64 {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.pace.retry_after_secs()
    }

    pub fn set_state(&self, id: JobId, state: JobState) {
        self.update(id, |view| view.state = state);
    }

    /// The job has ended; if too many have, the oldest of them is forgotten.
    pub fn finish(&self, id: JobId, outcome: &Outcome) {
        self.update(id, |view| {
            view.finished_unix_ms = Some(unix_ms());
            view.state = match outcome {
                Outcome::Images(_)
                | Outcome::Switched
                | Outcome::Loaded
                | Outcome::Unloaded(_)
                | Outcome::Custom(_) => JobState::Done,
                Outcome::Failed(failure) => JobState::Failed { reason: failure.message.clone() },
                Outcome::Cancelled => JobState::Cancelled,
            };
            match outcome {
                Outcome::Custom(value) => view.result = Some(value.clone()),
                Outcome::Images(images) => view.report = Some(images.report.clone()),
                Outcome::Switched
                | Outcome::Loaded
                | Outcome::Unloaded(_)
                | Outcome::Failed(_)
                | Outcome::Cancelled => {}
            }
            // A thousand jobs are remembered; not the megabytes of each.
            if let Job::Generation { request, .. } = &mut view.job
                && let Some(source) = &mut request.source
            {
                source.forget_images();
            }
        });
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let keeps = table.views.get(&id).is_some_and(|view| view.terms.durable);
        if let Outcome::Images(images) = outcome
            && keeps
        {
            table.keep(id, images.clone());
        }
        table.finished.push_back(id);
        if table.finished.len() > FINISHED_KEPT
            && let Some(oldest) = table.finished.pop_front()
        {
            table.views.remove(&oldest);
            table.forget_images(oldest);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn custom() -> Entry {
        let job = Job::Custom { name: "test".to_owned(), args: serde_json::Value::Null };
        Entry { id: JobId::new(), job, terms: Terms::default(), arrived_ms: 0 }
    }

    #[test]
    fn only_the_last_finished_jobs_are_remembered() {
        let jobs = SharedJobs::default();
        let waiting = custom();
        jobs.insert(waiting.clone());
        let finished: Vec<JobId> = (0..FINISHED_KEPT + 2)
            .map(|_| {
                let entry = custom();
                jobs.insert(entry.clone());
                jobs.finish(entry.id, &Outcome::Cancelled);
                entry.id
            })
            .collect();
        let known: Vec<bool> = finished.iter().map(|id| jobs.get(*id).is_some()).collect();
        assert_eq!(known.iter().position(|known| *known), Some(2));
        assert!(known[2..].iter().all(|known| *known));
        assert!(jobs.get(waiting.id).is_some(), "one that waits is never forgotten");
    }

    #[test]
    fn images_are_kept_for_who_asks_later_and_within_bounds() {
        use crate::modes::{SchedulerId, Size};
        let drawn = |bytes: usize| {
            let report = DrawnReport {
                size: Size { width: 8, height: 8 },
                images: 1,
                prompt_truncated: None,
                skipped_loras: vec![],
                scheduler: SchedulerId::Ddim,
                encode_ms: 0,
                denoise_ms: 0,
                decode_ms: 0,
                peak_bytes: 0,
                steps: 1,
            };
            Outcome::Images(Arc::new(DrawnImages { rgb: vec![0; bytes], report }))
        };
        let jobs = SharedJobs::default();
        let finish = |durable: bool, bytes: usize| {
            let entry = Entry { terms: Terms { durable, ..Terms::default() }, ..custom() };
            jobs.insert(entry.clone());
            jobs.finish(entry.id, &drawn(bytes));
            entry.id
        };
        let gone = finish(false, 10);
        let kept: Vec<JobId> =
            [10, MAX_IMAGE_BYTES - 15, 10].map(|bytes| finish(true, bytes)).into();
        assert!(jobs.images(gone).is_none(), "nobody has asked for it to be kept");
        let there: Vec<bool> = kept.iter().map(|id| jobs.images(*id).is_some()).collect();
        assert_eq!(there, [false, true, true], "the oldest goes");
        for _ in 0..FINISHED_KEPT {
            finish(false, 1);
        }
        assert!(kept.iter().all(|id| jobs.images(*id).is_none()), "they go with their jobs");
    }

    #[test]
    fn jobs_are_listed_from_the_newest_on() {
        let jobs = SharedJobs::default();
        let ids: Vec<JobId> = (0..5)
            .map(|_| {
                let entry = custom();
                jobs.insert(entry.clone());
                entry.id
            })
            .collect();
        jobs.finish(ids[1], &Outcome::Cancelled);
        let list = |before, limit, state: Option<JobState>| -> Vec<JobId> {
            let wanted = |view: &JobView| state.as_ref().is_none_or(|state| view.state == *state);
            jobs.list(before, limit, wanted).iter().map(|view| view.id).collect()
        };
        assert_eq!(list(None, 2, None), [ids[4], ids[3]]);
        assert_eq!(list(Some(ids[3]), 9, None), [ids[2], ids[1], ids[0]]);
        assert_eq!(list(Some(ids[3]), 9, Some(JobState::Queued)), [ids[2], ids[0]]);
        assert_eq!(list(Some(ids[0]), 9, None), []);
    }

    #[test]
    fn a_second_attempt_keeps_the_first_ones_start() {
        let jobs = SharedJobs::default();
        let entry = custom();
        jobs.insert(entry.clone());
        jobs.begin(entry.id, JobState::Loading { percent: 0 });
        let started = jobs.get(entry.id).unwrap().started_unix_ms;
        assert!(started.is_some());
        jobs.begin(entry.id, JobState::Loading { percent: 0 });
        let view = jobs.get(entry.id).unwrap();
        assert_eq!((view.attempts, view.started_unix_ms), (2, started));
    }
}
