//! Jobs whose time is over: those that wait leave the queue, the running one is stopped.

use super::Actor;
use crate::{
    dispatcher::{FailureKind, JobFailure, Outcome, limits::Limit},
    job::JobId,
};

impl Actor {
    pub(super) fn on_limits(&mut self) {
        while let Some((id, limit)) = self.limits.take_reached(self.clock.now_ms()) {
            match limit {
                Limit::Deadline
                | Limit::Admission
                | Limit::Switch
                | Limit::Drawing
                | Limit::Pace => self.out_of_time(id, overdue(limit)),
                Limit::Stopping => self.replace_stubborn_worker(id),
            }
        }
    }

    fn out_of_time(&mut self, id: JobId, failure: JobFailure) {
        if self.running.as_ref().is_some_and(|running| running.id() == id) {
            self.stop_running(Outcome::Failed(failure));
            return;
        }
        for entry in self.queue.cancel(id) {
            let outcome = match entry.id == id {
                true => Outcome::Failed(failure.clone()),
                false => Outcome::Cancelled,
            };
            self.conclude(&entry, outcome);
        }
    }
}

fn overdue(limit: Limit) -> JobFailure {
    let (kind, message) = match limit {
        Limit::Deadline => (FailureKind::DeadlinePassed, "its deadline has passed"),
        Limit::Admission => {
            (FailureKind::NotAdmitted, "it waited longer than it may; try again later")
        }
        Limit::Switch => (
            FailureKind::TimedOut,
            "the jobs before this switch took longer than its timeout_secs; nothing was switched",
        ),
        Limit::Drawing | Limit::Stopping => {
            (FailureKind::DrawingTimedOut, "drawing took longer than its timeout")
        }
        Limit::Pace => (
            FailureKind::DrawingTimedOut,
            "drawing took more than ten minutes, and more than twenty times as long as jobs like it \
             took before; 'timeout:' in the configuration sets another limit than 'auto'",
        ),
    };
    JobFailure { kind, message: message.to_owned() }
}
