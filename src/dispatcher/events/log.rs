//! The last events, and what is an event at all. Pure: the time is told to it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Change, Event, EventId};
use crate::job::{Job, JobId, JobState};

/// How many events can be had again: those of a hundred jobs or so, in a megabyte.
pub const KEPT: usize = 4096;
/// How far apart a job's steps and percents are at least, but for the last one.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The last events, with numbers that have no gaps.
pub struct Log {
    daemon: u64,
    last: u64,
    kept: VecDeque<Arc<Change>>,
    /// What the jobs that have not ended were last said to do, and when.
    told: HashMap<JobId, (JobState, Instant)>,
}

impl Log {
    pub fn new(daemon: u64) -> Self {
        Self { daemon, last: 0, kept: VecDeque::new(), told: HashMap::new() }
    }

    /// Whether that was news; if not, it leaves no trace.
    pub fn record(&mut self, job_id: JobId, job: &Job, state: &JobState, now: Instant) -> bool {
        let told = self.told.get(&job_id);
        if told.is_some_and(|(before, at)| !is_news(before, state, now.duration_since(*at))) {
            return false;
        }
        match state.is_terminal() {
            true => self.told.remove(&job_id),
            false => self.told.insert(job_id, (state.clone(), now)),
        };
        self.last += 1;
        self.kept.push_back(Arc::new(Change::of(self.last(), job_id, job, state)));
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
        true
    }

    /// The last event that there was.
    pub fn last(&self) -> EventId {
        EventId { daemon: self.daemon, number: self.last }
    }

    /// The number to go on behind; `None` if this daemon never gave such an id.
    pub fn place(&self, id: EventId) -> Option<u64> {
        (id.daemon == self.daemon && id.number <= self.last).then_some(id.number)
    }

    /// What to tell a reader who has had everything up to that number, or comes from another
    /// daemon; `None` while there is nothing to tell.
    pub fn next(&self, after: Option<u64>) -> Option<Event> {
        let gone = self.last - self.kept.len() as u64;
        let missed = |from| Event::Missed { from, to: EventId { number: gone, ..self.last() } };
        let Some(after) = after else { return Some(missed(0)) };
        match after.checked_sub(gone) {
            Some(index) => self.kept.get(index as usize).cloned().map(Event::Changed),
            None => Some(missed(after + 1)),
        }
    }
}

fn is_news(before: &JobState, state: &JobState, since: Duration) -> bool {
    if before == state {
        return false;
    }
    match (progress(before), progress(state)) {
        // Another kind of state, or begun anew, or at its goal: not just a bit further.
        (Some((doing, was, goal)), Some((does, is, now_goal))) => {
            let only_further = doing == does && goal == now_goal && was < is && is < goal;
            !only_further || since >= PROGRESS_INTERVAL
        }
        (None, _) | (_, None) => true,
    }
}

/// What is being done, how much of it, and how much there is to do.
fn progress(state: &JobState) -> Option<(&'static str, u32, u32)> {
    match state {
        JobState::Loading { percent } => Some((state.name(), u32::from(*percent), 100)),
        JobState::Running { step, steps } => Some((state.name(), *step, *steps)),
        JobState::Queued | JobState::Done | JobState::Failed { .. } | JobState::Cancelled => None,
    }
}
