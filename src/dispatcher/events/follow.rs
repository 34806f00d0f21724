//! A reader of the events.

use tokio::sync::watch;

use super::{Event, EventId, SharedLog};

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
    pub fn ready(&mut self) -> Option<Event> {
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
