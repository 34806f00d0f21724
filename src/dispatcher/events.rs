//! What happens to the jobs, one event after the other, for whoever wants to follow it.
//!
//! Written by the job table, with every change of a state and under the table's lock; read by any
//! number of [`Events`], each at its own pace. A reader asks the log for what comes behind the last
//! event that it had, and is only woken by the writer, which therefore waits for nobody. Who is so
//! slow that the next event is gone is told so ([`Event::Missed`]).
//!
//! Knows nothing of the pipelines: what is in an event may be shown to clients.

mod follow;
mod log;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use tokio::sync::watch;

pub use self::follow::Events;
use self::log::Log;
use super::clock::unix_ms;
use crate::job::{Job, JobId, JobKind, JobState};

/// Names an event, for all time: numbers begin at 1 with each start of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    /// When the daemon was started that the event happened in, in milliseconds since 1970.
    pub daemon: u64,
    pub number: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.daemon, self.number)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event's id looks like 1767225600000-17")]
pub struct NoEventId;

impl FromStr for EventId {
    type Err = NoEventId;

    fn from_str(text: &str) -> Result<Self, NoEventId> {
        let (daemon, number) = text.split_once('-').ok_or(NoEventId)?;
        let number_of = |text: &str| text.parse().map_err(|_| NoEventId);
        Ok(Self { daemon: number_of(daemon)?, number: number_of(number)? })
    }
}

/// A job is in another state than before.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub id: EventId,
    pub job: JobId,
    pub kind: JobKind,
    /// That the job is about, if it is about one.
    pub mode: Option<String>,
    pub state: JobState,
}

impl Change {
    pub fn of(id: EventId, job_id: JobId, job: &Job, state: &JobState) -> Self {
        let mode = job.mode().map(str::to_owned);
        Self { id, job: job_id, kind: job.kind(), mode, state: state.clone() }
    }
}

/// What a reader is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Changed(Arc<Change>),
    /// The events with these numbers, both included, are not kept any more. `from` is 0 where the
    /// reader named an event of another daemon: nobody knows what came behind that one.
    Missed {
        from: u64,
        to: EventId,
    },
}

/// The log, its one writer and its readers.
#[derive(Clone)]
pub struct SharedLog {
    // Held for a look or a stroke.
    log: Arc<RwLock<Log>>,
    /// Wakes the readers; true once nothing more will be written.
    ended: Arc<watch::Sender<bool>>,
}

impl Default for SharedLog {
    fn default() -> Self {
        let log = Arc::new(RwLock::new(Log::new(unix_ms())));
        Self { log, ended: Arc::new(watch::Sender::new(false)) }
    }
}

impl SharedLog {
    /// A job's state was set. Not every one is news.
    pub fn record(&self, job_id: JobId, job: &Job, state: &JobState) {
        let mut log = self.log.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = log.record(job_id, job, state, Instant::now());
        drop(log);
        if is_news {
            self.ended.send_modify(|_| ());
        }
    }

    /// The last event that there was; with the number 0 if there was none.
    pub fn last(&self) -> EventId {
        self.log.read().unwrap_or_else(PoisonError::into_inner).last()
    }

    /// Follows what happens from now on, or behind that event.
    pub fn follow(&self, after: Option<EventId>) -> Events {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
        let after = match after {
            Some(id) => log.place(id),
            None => Some(log.last().number),
        };
        drop(log);
        Events::new(self.clone(), self.ended.subscribe(), after)
    }

    /// When that is dropped, the readers come to an end behind the last event.
    pub fn ends_with_this(&self) -> EndOfEvents {
        EndOfEvents(self.ended.clone())
    }

    fn next(&self, after: Option<u64>) -> Option<Event> {
        self.log.read().unwrap_or_else(PoisonError::into_inner).next(after)
    }
}

/// See [`SharedLog::ends_with_this`].
pub struct EndOfEvents(Arc<watch::Sender<bool>>);

impl Drop for EndOfEvents {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}
