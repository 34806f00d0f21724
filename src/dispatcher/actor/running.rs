//! The job whose turn it is, on its way through the worker or its handler.
//!
//! A generation: the worker is awaited if it is not there, the pipeline is loaded unless it is
//! (`loading`), and drawn with. A switch or a load ends where a generation begins to be drawn.
//! Where the worker dies on the way, it begins again, once.

use std::{future::pending, time::Duration};

use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};

use super::Actor;
use crate::{
    dispatcher::{
        FailureKind, JobContext, JobFailure, Outcome, custom::HandlerResult, limits::Limit,
    },
    job::{Job, JobId, JobState, SwitchOrigin, Unload},
    queue::{Entry, Target},
    vram::{
        Reason, host,
        ledger::{Estimate, PipelineId},
    },
    worker::protocol::ToWorker,
};

/// How often a job is begun before a worker that dies on it is the job's failure.
pub const MAX_ATTEMPTS: u32 = 2;

/// The job whose turn it is.
pub struct Running {
    pub entry: Entry,
    pub phase: Phase,
    /// The mode that was current when it began.
    pub before: Option<Target>,
    /// Why it fails, while the mode that was current before it is loaded again.
    pub failed: Option<JobFailure>,
    /// Memory ran out under it once, and all that may have left for it.
    pub made_room: bool,
    pub attempts: u32,
    /// What it will end as, whatever comes of it: it was cancelled, or its time is over.
    pub stopped: Option<Outcome>,
    /// It had its pipeline loaded.
    pub loaded: bool,
    /// What a step of it has taken at most, and when the last one was done.
    pub longest_step: Duration,
    pub last_step: Instant,
    since: Instant,
}

/// How far it is.
pub enum Phase {
    /// The worker is being started.
    AwaitsWorker,
    /// The worker loads its pipeline, or the one that was there before.
    Loading(Box<Loading>),
    Drawing(PipelineId),
    /// The worker gives back what these modes had loaded.
    Unloading(Vec<String>),
    Custom(JoinHandle<HandlerResult>),
}

/// A pipeline on its way.
pub struct Loading {
    pub id: PipelineId,
    pub target: Target,
    pub estimate: Estimate,
    /// Those who leave when it is there.
    pub after: Vec<PipelineId>,
}

impl Running {
    pub fn id(&self) -> JobId {
        self.entry.id
    }

    /// The mode in whose name it is done.
    pub fn mode(&self) -> String {
        self.goal().map(|goal| goal.mode).unwrap_or_default()
    }

    /// What must be loaded for it now.
    pub fn goal(&self) -> Option<Target> {
        match (&self.failed, &self.entry.job) {
            (Some(_), _) => self.before.clone(),
            (None, Job::Load { mode, pipeline }) => {
                Some(Target { mode: mode.clone(), pipeline: pipeline.clone() })
            }
            (None, job) => Target::of(job),
        }
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
        let (state, phase) = match &entry.job {
            Job::Generation { .. } | Job::ModeSwitch { .. } | Job::Load { .. } => {
                (JobState::Loading { percent: 0 }, Phase::AwaitsWorker)
            }
            Job::Unload { .. } => {
                (JobState::Running { step: 0, steps: 1 }, Phase::Unloading(Vec::new()))
            }
            Job::Custom { name, args } => {
                let context = JobContext { id: entry.id };
                let handler = self.custom.spawn(name, context, args.clone());
                (JobState::Running { step: 0, steps: 1 }, Phase::Custom(handler))
            }
        };
        self.limits.begun(entry.id);
        if let Job::ModeSwitch { asked_by: SwitchOrigin::Generation, .. } = &entry.job
            && let Some(next) = self.queue.first_waiting()
        {
            // What the switch is there for is next: its turn has come.
            self.limits.begun(next);
        }
        if let Some(waited) = self.jobs.begin(entry.id, state) {
            self.counters.waited(waited);
        }
        self.running = Some(Running {
            entry,
            phase,
            before: self.queue.loaded().cloned(),
            failed: None,
            made_room: false,
            attempts: 1,
            stopped: None,
            loaded: false,
            longest_step: Duration::ZERO,
            last_step: Instant::now(),
            since: Instant::now(),
        });
        self.begin_unloading();
        self.drive();
    }

    fn begin_unloading(&mut self) {
        let Some(Running { entry: Entry { job: Job::Unload { what }, .. }, phase, .. }) =
            &mut self.running
        else {
            return;
        };
        self.lost.clear();
        let ids = match what {
            Unload::All => self.registry.all(),
            Unload::Mode { mode, pipeline } => self.registry.of_mode(mode, pipeline),
        };
        let modes = self.registry.modes(&ids);
        if ids.is_empty() {
            return self.finish_running(Outcome::Unloaded(modes));
        }
        *phase = Phase::Unloading(modes);
        self.unload(&ids, Reason::Asked);
    }

    /// Asks the worker for the next thing that the running job needs of it.
    pub(super) fn drive(&mut self) {
        let Some(running) = &mut self.running else { return };
        let Some(goal) = running.goal() else { return };
        if !self.worker.is_ready() {
            running.phase = Phase::AwaitsWorker;
            let id = running.id();
            return self.jobs.set_state(id, JobState::Loading { percent: 0 });
        }
        match self.registry.find(&goal.pipeline) {
            Some(id) => self.on_there(id, goal),
            None => self.prepare(goal),
        }
    }

    /// The pipeline is loaded that the running job needs.
    fn on_there(&mut self, id: PipelineId, target: Target) {
        let Some(running) = &mut self.running else { return };
        self.registry.touch(id, &target.mode, self.clock.now_ms());
        if !running.loaded {
            self.registry.count_hit(&target.mode);
        }
        if let Some(failure) = running.failed.clone() {
            tracing::info!(mode = target.mode, "is the current mode again");
            self.activate(id, target);
            return self.finish_running(Outcome::Failed(failure));
        }
        if running.stopped.is_some() {
            self.activate(id, target);
            return self.finish_running(Outcome::Cancelled);
        }
        let outcome = match &running.entry.job {
            Job::Generation { request, .. } => {
                let (job, request) = (running.entry.id, request.clone());
                running.phase = Phase::Drawing(id);
                running.last_step = Instant::now();
                if let Some(secs) = running.entry.terms.timeout_secs {
                    let until_ms = self.clock.now_ms() + 1000 * u64::from(secs);
                    self.limits.set(job, Limit::Drawing, until_ms);
                }
                self.jobs.begin_drawing(job, JobState::Running { step: 0, steps: request.steps });
                let limit_bytes = self.registry.limit(host::available_to(self.worker.pid()));
                self.worker.send(ToWorker::Generate { job, pipeline: id, request, limit_bytes });
                None
            }
            Job::Load { .. } => return self.finish_running(Outcome::Loaded),
            Job::ModeSwitch { .. } | Job::Unload { .. } | Job::Custom { .. } => {
                Some(Outcome::Switched)
            }
        };
        self.activate(id, target);
        self.degraded = None;
        outcome.into_iter().for_each(|outcome| self.finish_running(outcome));
    }

    pub(super) fn finish_running(&mut self, outcome: Outcome) {
        let Some(running) = self.running.take() else { return };
        let succeeded = match &outcome {
            Outcome::Images(_)
            | Outcome::Switched
            | Outcome::Loaded
            | Outcome::Unloaded(_)
            | Outcome::Custom(_) => true,
            Outcome::Failed(_) | Outcome::Cancelled => false,
        };
        if succeeded {
            self.jobs.record_pace(&running.entry.job, running.since.elapsed());
            if !matches!(running.phase, Phase::Custom(_)) {
                self.worker.has_proved_itself();
            }
        }
        self.queue.finish_running(succeeded);
        self.jobs.previews().clear();
        let outcome = running.stopped.unwrap_or(outcome);
        // Those behind a switch that has failed would try in vain what it has just tried.
        if let (Job::ModeSwitch { .. }, Outcome::Failed(failure)) = (&running.entry.job, &outcome)
            && failure.kind != FailureKind::ShuttingDown
            && let Some(target) = Target::of(&running.entry.job)
        {
            for entry in self.queue.take_followers(&target) {
                self.conclude(&entry, Outcome::Failed(failure.clone()));
            }
        }
        self.conclude(&running.entry, outcome);
    }

    /// Whether the running job will end as cancelled.
    pub(super) fn cancel_running(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        match (&running.phase, &running.entry.job) {
            (Phase::AwaitsWorker, _) => {
                self.finish_running(Outcome::Cancelled);
                return true;
            }
            // A load cannot be stopped. A generation ends behind it; a switch is done by then.
            (Phase::Loading(_), Job::Generation { .. }) => {}
            (Phase::Loading(_) | Phase::Unloading(_), _) => return false,
            (Phase::Drawing(_), _) => {
                self.worker.send(ToWorker::Cancel { job: running.entry.id });
            }
            (Phase::Custom(handler), _) => handler.abort(),
        }
        running.stopped.get_or_insert(Outcome::Cancelled);
        true
    }

    /// The daemon shuts down, and nobody needs what a switch loads.
    pub(super) fn give_up_loading(&mut self) {
        let is_loading = self.running.as_ref().is_some_and(|running| match &running.entry.job {
            Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } => true,
            Job::Generation { .. } | Job::Custom { .. } => false,
        });
        if is_loading {
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
}
