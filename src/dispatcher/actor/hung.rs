//! A worker that has hung, or does not stop: another one takes its place.

use tokio::time::Instant;

use super::{
    Actor,
    running::{Phase, Running},
};
use crate::{
    dispatcher::{
        Outcome,
        watchdog::{Activity, Verdict},
    },
    job::JobId,
    vram::ledger::Held,
};

impl Actor {
    pub(super) fn on_tick(&mut self) {
        let elapsed = self.ticked.elapsed();
        self.ticked = Instant::now();
        if !self.worker.is_alive() {
            return;
        }
        let verdict = self.watchdog.tick(elapsed, self.activity());
        let was_silent = std::mem::replace(&mut self.worker_silent, verdict == Verdict::Quiet);
        match verdict {
            Verdict::Well => {}
            Verdict::Quiet if was_silent => {}
            Verdict::Quiet => tracing::warn!("the worker is silent"),
            Verdict::Silent(silent) => {
                let secs = silent.as_secs();
                let reason = format!("it was silent for {secs} s (--worker-silence)");
                self.worker.replace_hung(&reason);
                self.on_worker_death();
            }
            Verdict::Stalled(stalled) => {
                let secs = stalled.as_secs();
                self.worker.replace_hung(&format!("it made no progress for {secs} s"));
                self.on_worker_death();
            }
        }
    }

    fn activity(&self) -> Activity {
        if !self.worker.is_ready() {
            return Activity::Starting;
        }
        match &self.running {
            None => Activity::Idle,
            Some(Running { phase, longest_step, .. }) => match phase {
                Phase::AwaitsJournal | Phase::AwaitsWorker | Phase::Custom(_) => Activity::Idle,
                Phase::Loading(_) | Phase::Unloading(_) => Activity::Loading,
                Phase::Drawing(_) | Phase::Upscaling => {
                    Activity::Drawing { longest_step: *longest_step }
                }
            },
        }
    }

    /// The worker was told to stop the job, and has not within the grace period.
    pub(super) fn replace_stubborn_worker(&mut self, id: JobId) {
        let is_working = |running: &Running| match running.phase {
            Phase::AwaitsJournal | Phase::AwaitsWorker | Phase::Custom(_) => false,
            Phase::Loading(_) | Phase::Unloading(_) | Phase::Drawing(_) | Phase::Upscaling => {
                running.id() == id
            }
        };
        if !self.running.as_ref().is_some_and(is_working) {
            return;
        }
        tracing::error!(job = %id, "the worker does not stop the job, and is killed");
        self.worker.replace();
        self.forget_worker();
        self.finish_running(Outcome::Cancelled);
    }

    /// The process is gone, with everything that it had loaded.
    pub(super) fn forget_worker(&mut self) {
        self.watchdog.reset();
        self.worker_silent = false;
        self.note_lost();
        self.reconcile(Held::default());
    }
}
