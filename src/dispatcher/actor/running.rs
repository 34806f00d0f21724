//! The job whose turn it is, on its way through the worker or its handler.
//!
//! A generation: the worker is awaited if it is not there, loads the pipeline unless it has it,
//! and draws. A switch ends where a generation begins to be drawn. Where the worker dies on the
//! way, it begins again, once.

use std::future::pending;

use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};

use super::Actor;
use crate::{
    dispatcher::{
        DrawnImages, FailureKind, JobContext, JobFailure, Outcome, custom::HandlerResult,
    },
    job::{Job, JobId, JobState},
    modes::LoraReport,
    queue::{Entry, Target},
    vram::{ResidentModel, host, resident_cost},
    worker::{
        protocol::{DrawnReport, FromWorker, LoadReport, ToWorker, WorkerError, WorkerErrorKind},
        supervisor,
    },
};

/// How often a job is begun before a worker that dies on it is the job's failure.
const MAX_ATTEMPTS: u32 = 2;

/// The job whose turn it is.
pub struct Running {
    entry: Entry,
    attempts: u32,
    phase: Phase,
    /// It will end as cancelled, whatever comes of it.
    cancelled: bool,
    since: Instant,
}

/// How far it is.
enum Phase {
    /// The worker is being started.
    AwaitsWorker,
    /// The worker loads the job's pipeline; what it had in RAM before, in bytes.
    Loading {
        resident_before: u64,
    },
    Drawing,
    Custom(JoinHandle<HandlerResult>),
}

impl Running {
    pub fn id(&self) -> JobId {
        self.entry.id
    }
}

/// The end of the running custom job, if one runs.
pub async fn custom_end(running: &mut Option<Running>) -> Result<HandlerResult, JoinError> {
    match running {
        Some(Running { phase: Phase::Custom(handler), .. }) => handler.await,
        Some(_) | None => pending().await,
    }
}

impl Actor {
    pub(super) fn begin(&mut self, entry: Entry) {
        let phase = match &entry.job {
            Job::Generation { .. } | Job::ModeSwitch { .. } => {
                self.jobs.begin(entry.id, JobState::Loading);
                Phase::AwaitsWorker
            }
            Job::Custom { name, args } => {
                self.jobs.begin(entry.id, JobState::Running { step: 0, steps: 1 });
                let context = JobContext { id: entry.id };
                Phase::Custom(self.custom.spawn(name, context, args.clone()))
            }
        };
        self.running =
            Some(Running { entry, attempts: 1, phase, cancelled: false, since: Instant::now() });
        self.drive();
    }

    /// Asks the worker for the next thing that the running job needs of it.
    fn drive(&mut self) {
        let Some(running) = &mut self.running else { return };
        let Some(target) = Target::of(&running.entry.job) else { return };
        let id = running.entry.id;
        if !self.worker.is_ready() {
            running.phase = Phase::AwaitsWorker;
            return self.jobs.set_state(id, JobState::Loading);
        }
        let held = self.queue.loaded().filter(|loaded| loaded.pipeline == target.pipeline);
        let Some(held) = held else {
            let resident_before = self.worker.pid().and_then(host::resident_bytes).unwrap_or(0);
            running.phase = Phase::Loading { resident_before };
            self.jobs.set_state(id, JobState::Loading);
            return self.worker.send(ToWorker::Load { job: id, pipeline: target.pipeline });
        };
        // The same pipeline may serve several modes.
        self.registry.hand_over(&held.mode, &target.mode);
        self.queue.set_loaded(Some(target));
        match &running.entry.job {
            Job::Generation { request, .. } => {
                running.phase = Phase::Drawing;
                self.jobs.set_state(id, JobState::Running { step: 0, steps: request.steps });
                self.worker.send(ToWorker::Generate { job: id, request: request.clone() });
            }
            Job::ModeSwitch { .. } | Job::Custom { .. } => self.finish_running(Outcome::Switched),
        }
    }

    fn finish_running(&mut self, outcome: Outcome) {
        let Some(running) = self.running.take() else { return };
        let succeeded = match &outcome {
            Outcome::Images(_) | Outcome::Switched | Outcome::Custom(_) => true,
            Outcome::Failed(_) | Outcome::Cancelled => false,
        };
        if succeeded {
            self.pace.record(running.since.elapsed());
            if !matches!(running.phase, Phase::Custom(_)) {
                self.worker.has_proved_itself();
            }
        }
        self.queue.finish_running(succeeded);
        let outcome = if running.cancelled { Outcome::Cancelled } else { outcome };
        self.conclude(running.entry.id, outcome);
    }

    /// Whether the running job will end as cancelled.
    pub(super) fn cancel_running(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        match &running.phase {
            Phase::AwaitsWorker => {
                self.finish_running(Outcome::Cancelled);
                return true;
            }
            // A load cannot be stopped. A generation ends behind it; a switch is done by then.
            Phase::Loading { .. } if matches!(running.entry.job, Job::ModeSwitch { .. }) => {
                return false;
            }
            Phase::Loading { .. } => {}
            Phase::Drawing => self.worker.send(ToWorker::Cancel { job: running.entry.id }),
            Phase::Custom(handler) => handler.abort(),
        }
        running.cancelled = true;
        true
    }

    /// The daemon shuts down, and nobody needs what a switch loads.
    pub(super) fn give_up_switch(&mut self) {
        let running = self.running.as_ref();
        if running.is_some_and(|running| matches!(running.entry.job, Job::ModeSwitch { .. })) {
            self.give_up_running();
        }
    }

    /// The daemon shuts down, and has waited long enough.
    pub(super) fn give_up_running(&mut self) {
        if let Some(Running { phase: Phase::Custom(handler), .. }) = &self.running {
            handler.abort();
        }
        self.finish_running(Outcome::Failed(JobFailure::shutting_down()));
    }

    pub(super) fn on_custom_end(&mut self, result: Result<HandlerResult, JoinError>) {
        let failed = |message| Outcome::Failed(JobFailure { kind: FailureKind::Handler, message });
        self.finish_running(match result {
            Ok(Ok(value)) => Outcome::Custom(value),
            Ok(Err(message)) => failed(message),
            Err(error) if error.is_cancelled() => Outcome::Cancelled,
            Err(_) => failed("the job's handler panicked; the daemon's log says why".to_owned()),
        });
    }

    pub(super) fn on_worker(&mut self, event: supervisor::Event) {
        match event {
            supervisor::Event::Ready { device } => {
                tracing::info!(device, "the worker is ready");
                self.registry.set_device(&device);
                self.drive();
            }
            supervisor::Event::Message(message, payload) => self.on_message(message, payload),
            supervisor::Event::Died => self.on_worker_death(),
        }
    }

    fn on_message(&mut self, message: FromWorker, payload: Vec<u8>) {
        let running = self.running.as_ref().map(Running::id);
        let Some(job) = message.job().filter(|job| Some(*job) == running) else {
            return tracing::warn!(?message, "the worker speaks of a job that does not run");
        };
        match message {
            FromWorker::Ready { .. } | FromWorker::Loading { .. } => {}
            FromWorker::Loaded { report, .. } => self.on_loaded(&report),
            FromWorker::Step { step, steps, .. } => {
                self.jobs.set_state(job, JobState::Running { step, steps });
            }
            FromWorker::Image { drawn, .. } => self.on_images(drawn, payload),
            FromWorker::Failed { error, still_loaded, .. } => {
                if !still_loaded {
                    self.forget_loaded();
                }
                self.finish_running(Outcome::Failed(failure(error)));
            }
            FromWorker::Cancelled { .. } => self.finish_running(Outcome::Cancelled),
        }
    }

    fn on_images(&mut self, drawn: DrawnReport, rgb: Vec<u8>) {
        let asked = self.running.as_ref().map_or(0, |running| match &running.entry.job {
            Job::Generation { request, .. } => request.n,
            Job::ModeSwitch { .. } | Job::Custom { .. } => 0,
        });
        self.finish_running(images(drawn, asked, rgb));
    }

    fn on_loaded(&mut self, report: &LoadReport) {
        self.forget_loaded();
        let Some(running) = &self.running else { return };
        let (Phase::Loading { resident_before }, Some(target)) =
            (&running.phase, Target::of(&running.entry.job))
        else {
            return;
        };
        let resident = self.worker.pid().and_then(host::resident_bytes).unwrap_or(0);
        let grown_bytes = resident.saturating_sub(*resident_before);
        tracing::info!(mode = target.mode, family = report.family, ms = report.load_ms, "loaded");
        for LoraReport { name, merged, unmatched, skipped, .. } in &report.loras {
            match skipped {
                Some(reason) => tracing::warn!(lora = name, "left out: {reason}"),
                None => tracing::info!(lora = name, merged, unmatched, "merged"),
            }
        }
        self.loads += 1;
        self.registry.record_loaded(ResidentModel {
            mode: target.mode.clone(),
            model: target.pipeline.checkpoint.name.clone(),
            bytes: resident_cost(report.weights_bytes, grown_bytes),
            loras: report.loras.clone(),
        });
        self.queue.set_loaded(Some(target));
        if running.cancelled {
            return self.finish_running(Outcome::Cancelled);
        }
        self.drive();
    }

    /// The worker holds no pipeline any more.
    fn forget_loaded(&mut self) {
        if let Some(loaded) = self.queue.loaded() {
            self.registry.remove(&loaded.mode);
        }
        self.queue.set_loaded(None);
    }

    /// Another attempt for the job that it worked on, if there is one left.
    fn on_worker_death(&mut self) {
        self.forget_loaded();
        let Some(running) = &mut self.running else { return };
        if matches!(running.phase, Phase::Custom(_)) {
            return;
        }
        if running.cancelled {
            return self.finish_running(Outcome::Cancelled);
        }
        if running.attempts == MAX_ATTEMPTS {
            let message = "the worker process died, or would not start, twice in this job's turn; \
                           the daemon's log says why";
            return self.finish_running(Outcome::Failed(JobFailure {
                kind: FailureKind::WorkerDied,
                message: message.to_owned(),
            }));
        }
        running.attempts += 1;
        self.jobs.begin(running.entry.id, JobState::Loading);
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
    Outcome::Images(DrawnImages { rgb, report })
}

fn failure(error: WorkerError) -> JobFailure {
    let kind = match error.kind {
        WorkerErrorKind::UnusableModel => FailureKind::UnusableModel,
        WorkerErrorKind::UnusableLora { index } => FailureKind::UnusableLora { index },
        WorkerErrorKind::InvalidRequest { field } => FailureKind::InvalidRequest { field },
        WorkerErrorKind::Internal => FailureKind::Internal,
    };
    JobFailure { kind, message: error.message }
}
