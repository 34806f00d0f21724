//! Jobs whose time is over: those that wait leave the queue, the running one is stopped.

use super::{
    Actor,
    running::{Phase, Running},
};
use crate::{
    dispatcher::{FailureKind, JobFailure, Outcome, limits::Limit},
    job::JobId,
    vram::ledger::Held,
    worker::protocol::ToWorker,
};

impl Actor {
    pub(super) fn on_limits(&mut self) {
        while let Some((id, limit)) = self.limits.take_reached(self.clock.now_ms()) {
            match limit {
                Limit::Deadline | Limit::Admission | Limit::Switch | Limit::Drawing => {
                    self.out_of_time(id, overdue(limit));
                }
                Limit::Stopping => self.end_hung_worker(id),
            }
        }
    }

    fn out_of_time(&mut self, id: JobId, failure: JobFailure) {
        if self.running.as_ref().is_some_and(|running| running.id() == id) {
            return self.stop_running(failure);
        }
        for entry in self.queue.cancel(id) {
            let outcome = match entry.id == id {
                true => Outcome::Failed(failure.clone()),
                false => Outcome::Cancelled,
            };
            self.conclude(&entry, outcome);
        }
    }

    /// As a cancellation does; and the worker is not trusted to follow.
    fn stop_running(&mut self, failure: JobFailure) {
        let Some(running) = &mut self.running else { return };
        let outcome = Outcome::Failed(failure);
        match &mut running.phase {
            Phase::AwaitsJournal | Phase::AwaitsWorker => return self.finish_running(outcome),
            // What is being loaded is loaded to its end, and the job ends behind it.
            Phase::Loading(_) | Phase::Unloading(_) => {}
            Phase::Drawing(_) | Phase::Upscaling => {
                let id = running.id();
                let grace = self.stop_grace.max(2 * running.longest_step);
                let until_ms = self.clock.now_ms() + grace.as_millis() as u64;
                self.limits.set(id, Limit::Stopping, until_ms);
                self.worker.send(ToWorker::Cancel { job: id });
            }
            Phase::Custom(run) => run.stop(),
        }
        // What it was stopped for first is what it ends as.
        running.stopped.get_or_insert(outcome);
    }

    /// The worker was told to stop the job and has not: another one takes its place.
    fn end_hung_worker(&mut self, id: JobId) {
        let is_drawing = |running: &Running| {
            running.id() == id && matches!(running.phase, Phase::Drawing(_) | Phase::Upscaling)
        };
        if !self.running.as_ref().is_some_and(is_drawing) {
            return;
        }
        tracing::error!(job = %id, "the worker does not stop the job, and is ended");
        self.worker.replace();
        self.note_lost();
        self.reconcile(Held::default());
        self.finish_running(Outcome::Cancelled);
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
    };
    JobFailure { kind, message: message.to_owned() }
}
