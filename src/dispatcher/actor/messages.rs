//! What the worker says, and what becomes of its job when it dies.

use std::{path::Path, sync::Arc};

use tokio::time::Instant;

use super::{
    Actor,
    running::{Phase, Running, begun},
    written::times,
};
use crate::{
    dispatcher::{DrawnImages, FailureKind, JobFailure, Outcome, Preview, limits::Limit},
    job::{Job, JobState},
    modes::gib,
    vram::{
        Reason,
        host::{self, HostMemory},
        ledger::Computing,
    },
    worker::{
        protocol::{DrawnReport, FromWorker, WorkerError, WorkerErrorKind},
        sandbox::files_of,
        supervisor,
    },
};

impl Actor {
    pub(super) fn on_worker(&mut self, event: supervisor::Event) {
        match event {
            supervisor::Event::Ready { computing } => {
                let Computing { engine, device, precision, name } = &computing;
                tracing::info!(engine, device, precision, name, "the worker is ready");
                self.watchdog.heard();
                self.watchdog.progressed();
                self.registry.set_computing(computing);
                self.oom_kills_at_start = host::oom_kills();
                self.memory_at_start = self.worker.pid().and_then(host::anonymous_bytes);
                self.drive();
            }
            supervisor::Event::Message(message, payload) => self.on_message(message, payload),
            supervisor::Event::Died => self.on_worker_death(),
        }
    }

    fn on_message(&mut self, message: FromWorker, payload: Vec<u8>) {
        self.watchdog.heard();
        if message == FromWorker::Alive {
            return;
        }
        self.watchdog.progressed();
        if let FromWorker::Unloaded { held } = message {
            return self.on_unloaded(held);
        }
        if let FromWorker::Holds { held } = message {
            return self.reconcile(held);
        }
        let running = self.running.as_ref().map(Running::id);
        let Some(job) = message.job().filter(|job| Some(*job) == running) else {
            return tracing::warn!(
                ?message,
                "ignoring a worker message for a job that is not running"
            );
        };
        match message {
            FromWorker::Alive
            | FromWorker::Ready { .. }
            | FromWorker::Unloaded { .. }
            | FromWorker::Holds { .. } => {}
            FromWorker::Prepared { estimate, .. } => self.on_prepared(estimate),
            FromWorker::Loading { fraction, .. } => {
                let percent = (100.0 * fraction).clamp(0.0, 100.0) as u8;
                self.jobs.set_state(job, JobState::Loading { percent });
            }
            FromWorker::Loaded { report, held, .. } => self.on_loaded(&report, held),
            FromWorker::Step { step, steps, .. } => {
                self.note_step(step, steps);
                self.jobs.set_state(job, JobState::Running { step, steps });
            }
            FromWorker::Probed { .. } => self.finish_running(Outcome::Loaded),
            FromWorker::Preview { job, step, steps, width, height } => {
                let preview = Preview { job, step, steps, width, height, rgb: payload };
                self.jobs.previews().show(preview);
            }
            FromWorker::Image { drawn, .. } => self.on_images(drawn, payload),
            FromWorker::Failed { error, held, .. } => {
                held.into_iter().for_each(|held| self.reconcile(held));
                match error.kind {
                    WorkerErrorKind::OutsideSandbox => self.widen_sandbox(error),
                    _ => self.on_failed(failure(error)),
                }
            }
            FromWorker::Cancelled { .. } => self.on_cancelled(),
        }
    }

    fn on_cancelled(&mut self) {
        let is_loading = |running: &Running| matches!(running.phase, Phase::Loading(_));
        match self.running.as_ref().is_some_and(is_loading) {
            true => self.on_load_cancelled(),
            false => self.finish_running(Outcome::Cancelled),
        }
    }

    fn note_step(&mut self, step: u32, steps: u32) {
        let Some(running) = &mut self.running else { return };
        let images = match &running.entry.job {
            Job::Generation { request, .. } => request.n.max(1),
            Job::ModeSwitch { .. }
            | Job::Load { .. }
            | Job::Unload { .. }
            | Job::Custom { .. }
            | Job::Upscale { .. } => 1,
        };
        running.is_decoding = step > 0 && step.is_multiple_of((steps / images).max(1));
        running.longest_step = running.longest_step.max(running.last_step.elapsed());
        running.last_step = Instant::now();
    }

    fn on_failed(&mut self, failure: JobFailure) {
        let Some(running) = &mut self.running else { return };
        let is_loading = matches!(running.phase, Phase::Loading(_));
        let may_try_again = !running.made_room && running.stopped.is_none();
        if failure.kind == FailureKind::OutOfMemory && may_try_again {
            running.made_room = true;
            let leaving = self.registry.evictable(self.clock.now_ms());
            let upscaler = self.registry.holds_upscaler();
            if !leaving.is_empty() || upscaler {
                tracing::warn!("{} pipelines leave for a second attempt: {failure}", leaving.len());
                self.let_go(&leaving, upscaler, Reason::OutOfMemory);
                return self.drive();
            }
        }
        match is_loading {
            true => self.on_load_failed(failure),
            false => self.finish_running(Outcome::Failed(failure)),
        }
    }

    fn on_images(&mut self, drawn: DrawnReport, rgb: Vec<u8>) {
        let Some(running) = &self.running else { return };
        let asked = match &running.entry.job {
            Job::Generation { request, .. } => request.n,
            Job::Upscale { .. } => 1,
            Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => {
                0
            }
        };
        if let Phase::Drawing(id) = running.phase {
            self.registry.set_activation_peak(id, drawn.peak_bytes);
            self.registry.touch(id, &running.mode(), self.clock.now_ms());
        }
        self.counters.drawn(&drawn);
        self.finish_running(images(drawn, asked, rgb));
    }

    /// The sandbox holds for a process from its start on: another one is started that may read the
    /// running job's files.
    fn widen_sandbox(&mut self, error: WorkerError) {
        let Some(running) = &mut self.running else { return };
        // A job that was stopped needs no files, but the mode before it may be on its way back.
        let is_over = running.stopped.is_some() && running.failed.is_none();
        if running.is_readable || is_over {
            return self.on_failed(failure(error));
        }
        running.is_readable = true;
        // Drawing begins anew behind the load.
        let id = running.id();
        [Limit::Drawing, Limit::Pace].into_iter().for_each(|it| self.limits.lift(id, it));
        let goal = running.goal();
        let models = goal.iter().flat_map(|goal| files_of(&goal.pipeline)).map(Path::to_owned);
        let superres = match &running.entry.job {
            Job::Upscale { superres, .. } => Some(superres),
            Job::Generation { request, .. } => request.superres.as_ref(),
            Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => {
                None
            }
        };
        let upscaler = superres.and_then(|it| it.model.as_ref()).map(|model| model.path.clone());
        if let Some(readable) = self.worker.readable_mut() {
            readable.add(models.chain(upscaler));
        }
        tracing::info!(
            "restarting the worker so that it can read this job's files; all models are loaded again"
        );
        self.worker.start_anew();
        self.forget_worker();
        self.drive();
    }

    /// Another attempt for the job that it worked on, if there is one left.
    pub(super) fn on_worker_death(&mut self) {
        self.forget_worker();
        let Some(running) = &mut self.running else { return };
        match &mut running.phase {
            Phase::AwaitsJournal | Phase::Custom(_) => return,
            // It is all gone.
            Phase::Unloading(modes) => {
                let modes = std::mem::take(modes);
                return self.finish_running(Outcome::Unloaded(modes));
            }
            Phase::AwaitsWorker | Phase::Loading(_) | Phase::Drawing(_) | Phase::Upscaling => {}
        }
        if running.stopped.is_some() {
            return self.finish_running(Outcome::Cancelled);
        }
        let entry = running.entry.clone();
        [Limit::Drawing, Limit::Pace].into_iter().for_each(|it| self.limits.lift(entry.id, it));
        if running.attempts >= self.kept.max_attempts {
            let was_oom = host::oom_kills() > self.oom_kills_at_start;
            let failure = worker_died(running.attempts, was_oom);
            return match (&running.phase, &running.entry.job) {
                (Phase::Drawing(_), _) | (_, Job::Upscale { .. }) => {
                    self.finish_running(Outcome::Failed(failure));
                }
                _ => self.on_load_failed(failure),
            };
        }
        let (attempts, _) = self.jobs.begin(entry.id, JobState::Loading { percent: 0 });
        running.attempts = attempts;
        if entry.terms.durable {
            self.note(begun(entry.id, attempts));
        }
        self.drive();
    }
}

fn images(report: DrawnReport, asked: u32, rgb: Vec<u8>) -> Outcome {
    let expected = report.images as usize * report.image_bytes();
    if report.images != asked || rgb.len() != expected || expected == 0 {
        let (images, bytes) = (report.images, rgb.len());
        tracing::error!("{images} images in {bytes} bytes where {asked} in {expected} belong");
        let message = "the worker sent incomplete images".to_owned();
        return Outcome::Failed(JobFailure { kind: FailureKind::Internal, message });
    }
    Outcome::Images(Arc::new(DrawnImages { rgb, report }))
}

/// After the last attempt.
fn worker_died(attempts: u32, out_of_memory: bool) -> JobFailure {
    let times = times(attempts);
    if !out_of_memory {
        let message = format!(
            "the worker process died, hung or would not start {times} in this job's turn; the daemon's \
             log says why"
        );
        return JobFailure { kind: FailureKind::WorkerDied, message };
    }
    let HostMemory { total_bytes, used_bytes } = host::memory();
    let message = format!(
        "memory ran out, and the kernel ended the worker process, {times} in this job's turn; without it \
         {:.2} of {:.2} GiB are used",
        gib(used_bytes),
        gib(total_bytes)
    );
    JobFailure { kind: FailureKind::OutOfMemory, message }
}

fn failure(error: WorkerError) -> JobFailure {
    let kind = match error.kind {
        WorkerErrorKind::UnusableModel | WorkerErrorKind::OutsideSandbox => {
            FailureKind::UnusableModel
        }
        WorkerErrorKind::UnusableLora { index } => FailureKind::UnusableLora { index },
        WorkerErrorKind::InvalidRequest { field } => FailureKind::InvalidRequest { field },
        WorkerErrorKind::OutOfMemory => FailureKind::OutOfMemory,
        WorkerErrorKind::Internal => FailureKind::Internal,
    };
    JobFailure { kind, message: error.message }
}
