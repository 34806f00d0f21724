//! What happens to one job, out of what happens to all.

use std::{collections::VecDeque, sync::Arc};

use super::{
    events::{Event, EventId, Events},
    table::SharedJobs,
};
use crate::job::JobId;

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
