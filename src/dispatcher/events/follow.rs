//! Readers of the events: of all jobs, of one.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::watch;

use super::{Event, EventId, SharedLog};
use crate::{dispatcher::table::SharedJobs, job::JobId};

/// What happens to all jobs, until the daemon ends.
pub struct Events {
    log: SharedLog,
    ended: watch::Receiver<bool>,
    /// The number that it is behind; `None`: it comes from another daemon.
    after: Option<u64>,
}

impl Events {
    pub(super) fn new(log: SharedLog, ended: watch::Receiver<bool>, after: Option<u64>) -> Self {
        Self { log, ended, after }
    }

    /// The next event; `None` once there will be none. Nothing is lost if this is not awaited to
    /// its end.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            // In this order: behind the end nothing is written any more.
            let ended = *self.ended.borrow_and_update();
            if let Some(event) = self.ready() {
                return Some(event);
            }
            if ended {
                return None;
            }
            self.ended.changed().await.ok()?;
        }
    }

    /// The next event, if it is there already.
    fn ready(&mut self) -> Option<Event> {
        let event = self.log.next(self.after)?;
        self.after = Some(match &event {
            Event::Changed(change) => change.id.number,
            Event::Missed { to, .. } => to.number,
        });
        Some(event)
    }

    /// The last event that it was told of, or that came before what it is told of.
    pub fn behind(&self) -> Option<EventId> {
        self.after.map(|number| EventId { number, ..self.log.last() })
    }
}

/// What happens to one job, until it has ended.
pub struct JobEvents {
    jobs: SharedJobs,
    id: JobId,
    /// What is known already.
    ready: VecDeque<Event>,
    /// Where the rest comes from; `None` once the job has ended.
    rest: Option<Events>,
}

impl JobEvents {
    pub fn of(jobs: &SharedJobs, id: JobId, after: Option<EventId>) -> Option<Self> {
        let has_ended = jobs.present(id)?.state.is_terminal();
        let rest = Some(jobs.events().follow(after));
        let mut events = Self { jobs: jobs.clone(), id, ready: VecDeque::new(), rest };
        match after {
            None => events.begin_with_the_present(),
            // All that there is to tell has happened.
            Some(_) if has_ended => events.take_what_is_there(),
            Some(_) => {}
        }
        Some(events)
    }

    /// Whether there is nothing to tell, now and later: the job has ended, and who asks knows it.
    pub fn is_over(&self) -> bool {
        self.ready.is_empty() && self.rest.is_none()
    }

    /// The next event; `None` behind the job's end, or the daemon's.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let event = self.rest.as_mut()?.next().await?;
            self.sort(event);
        }
    }

    fn take_what_is_there(&mut self) {
        while let Some(event) = self.rest.as_mut().and_then(Events::ready) {
            self.sort(event);
        }
        self.rest = None;
    }

    /// Keeps an event if it is the job's.
    fn sort(&mut self, event: Event) {
        match &event {
            Event::Changed(change) if change.job == self.id => {
                if change.state.is_terminal() {
                    self.rest = None;
                }
                self.ready.push_back(event);
            }
            Event::Changed(_) => {}
            // What it missed may have been the job's end.
            Event::Missed { .. } => {
                self.ready.push_back(event);
                self.begin_with_the_present();
            }
        }
    }

    /// Tells how the job stands, and then what happens behind that.
    fn begin_with_the_present(&mut self) {
        let present = self.jobs.present(self.id);
        let goes_on = present.as_ref().filter(|present| !present.state.is_terminal());
        self.rest = goes_on.map(|present| self.jobs.events().follow(Some(present.id)));
        self.ready.extend(present.map(|present| Event::Changed(Arc::new(present))));
    }
}
