//! How the running job ends before it is done: cancelled, given up, or left to the next daemon; and how
//! a custom job ends.

use tokio::time::Instant;

use super::{
    Actor,
    running::{Phase, Running},
};
use crate::{
    dispatcher::{
        FailureKind, JobFailure, Outcome, command::GRACE, custom::CustomEvent, limits::Limit,
        watchdog::Stopping,
    },
    job::Job,
    journal::Record,
    worker::protocol::ToWorker,
};

impl Actor {
    /// Tells the worker or handler to stop the running job, which ends as `outcome`. A worker that
    /// does not stop is replaced. False if the job has failed and the mode before it is loaded
    /// again.
    pub(super) fn stop_running(&mut self, outcome: Outcome) -> bool {
        let Some(running) = &mut self.running else { return false };
        if running.stopped.is_some() {
            return true;
        }
        match &mut running.phase {
            Phase::AwaitsJournal | Phase::AwaitsWorker => {
                self.finish_running(outcome);
                return true;
            }
            Phase::Loading(_) if running.failed.is_some() => return false,
            Phase::Loading(_) | Phase::Unloading(_) | Phase::Drawing(_) | Phase::Upscaling => {
                let id = running.entry.id;
                let stopping = Stopping {
                    longest_step: running.longest_step,
                    usual: self.jobs.measured(&running.entry.job).unwrap_or_default(),
                    is_decoding: running.is_decoding
                        && matches!(running.phase, Phase::Drawing(_) | Phase::Upscaling),
                };
                let grace = stopping.grace(self.stop_grace);
                let until_ms = self.clock.now_ms() + grace.as_millis() as u64;
                self.limits.set(id, Limit::Stopping, until_ms);
                self.worker.send(ToWorker::Cancel { job: id });
            }
            Phase::Custom(run) => run.stop(),
        }
        running.stopped = Some(outcome);
        true
    }

    /// The daemon shuts down, and nobody needs what a switch loads.
    pub(super) fn give_up_loading(&mut self) {
        let is_loading = self.running.as_ref().is_some_and(|running| match &running.entry.job {
            Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } => true,
            Job::Generation { .. } | Job::Custom { .. } | Job::Upscale { .. } => false,
        });
        if is_loading {
            self.give_up_running();
        }
    }

    /// The daemon shuts down, and has waited long enough.
    pub(super) fn give_up_running(&mut self) {
        let Some(running) = &mut self.running else { return };
        if let Phase::Custom(run) = &mut running.phase
            && !run.is_stopping()
        {
            // A command has a little time to end by itself; a handler is ended at its next await.
            run.stop();
            self.drain_until = Some(Instant::now() + 2 * GRACE);
            return;
        }
        self.leave_running();
    }

    /// The running job does not end any more in this daemon.
    fn leave_running(&mut self) {
        let Some(running) = &self.running else { return };
        if !self.outlives_us(&running.entry) || running.stopped.is_some() {
            return self.finish_running(Outcome::Failed(JobFailure::shutting_down()));
        }
        let (id, attempts) = (running.id(), running.attempts - 1);
        tracing::info!(job = %id, "goes on when the daemon is there again");
        self.note(Record::PutBack { id, attempts });
        self.running = None;
        self.queue.finish_running(false);
    }

    pub(super) fn on_custom(&mut self, event: CustomEvent) {
        let Some(Running { entry, phase: Phase::Custom(run), .. }) = &self.running else { return };
        let result = match event {
            CustomEvent::Progress(progress) => {
                return self.jobs.set_state(entry.id, progress.into());
            }
            CustomEvent::Ended(result) => result,
        };
        // It was stopped: for a shutdown, or because it was cancelled, which counts more.
        if run.is_stopping() && !matches!(result, Ok(Ok(_))) {
            return self.leave_running();
        }
        let failed = |message| Outcome::Failed(JobFailure { kind: FailureKind::Handler, message });
        self.finish_running(match result {
            Ok(Ok(value)) => Outcome::Custom(value),
            Ok(Err(message)) => failed(message),
            Err(error) if error.is_cancelled() => Outcome::Cancelled,
            Err(_) => failed("the job's handler panicked; the daemon's log says why".to_owned()),
        });
    }
}
