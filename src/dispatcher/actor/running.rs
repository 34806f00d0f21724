//! The job whose turn it is, on its way through the worker or its handler.
//!
//! A generation: the worker is awaited if it is not there, the pipeline is loaded unless it is
//! (`loading`), and drawn with. A switch or a load ends where a generation begins to be drawn.
//! Where the worker dies on the way, it begins again, once.

use std::{future::pending, time::Duration};

use tokio::time::Instant;

use super::{Actor, written::Then};
use crate::{
    dispatcher::{
        FailureKind, JobFailure, Outcome,
        clock::unix_ms,
        custom::{BEGUN, CustomEvent, CustomRun},
        limits::{Limit, limit_by_pace},
    },
    job::{Job, JobId, JobState, SwitchOrigin, Unload},
    journal::Record,
    queue::{Entry, Target},
    vram::{
        Reason,
        ledger::{Estimate, PipelineId},
    },
    worker::protocol::ToWorker,
};

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
    /// The worker was started with its files among those that it may read.
    pub is_readable: bool,
    /// It had its pipeline loaded.
    pub loaded: bool,
    /// What a step of it has taken at most, and when the last one was done.
    pub longest_step: Duration,
    pub last_step: Instant,
    /// The last step of an image is done. Decoding follows, which does not look whether the job is
    /// cancelled.
    pub is_decoding: bool,
    since: Instant,
}

/// How far it is.
pub enum Phase {
    /// Its attempt is being written down.
    AwaitsJournal,
    /// The worker is being started.
    AwaitsWorker,
    /// The worker loads its pipeline, or the one that was there before.
    Loading(Box<Loading>),
    Drawing(PipelineId),
    /// The worker makes an image larger.
    Upscaling,
    /// The worker gives back what these modes had loaded.
    Unloading(Vec<String>),
    Custom(CustomRun),
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
            (None, Job::Load { mode, pipeline, .. }) => {
                Some(Target { mode: mode.clone(), pipeline: pipeline.clone() })
            }
            (None, job) => Target::of(job),
        }
    }
}

/// What is written of an attempt.
pub fn begun(id: JobId, attempts: u32) -> Record {
    Record::Begun { id, attempts, at_unix_ms: unix_ms() }
}

/// What the running custom job says, if one runs.
pub async fn custom_event(running: &mut Option<Running>) -> CustomEvent {
    match running {
        Some(Running { phase: Phase::Custom(run), .. }) => run.next().await,
        Some(_) | None => pending().await,
    }
}

impl Actor {
    pub(super) fn begin(&mut self, entry: Entry) {
        let state = match &entry.job {
            Job::Generation { .. }
            | Job::ModeSwitch { .. }
            | Job::Load { .. }
            | Job::Upscale { .. } => JobState::Loading { percent: 0 },
            Job::Unload { .. } | Job::Custom { .. } => BEGUN.into(),
        };
        self.limits.begun(entry.id);
        if let Job::ModeSwitch { asked_by: SwitchOrigin::Generation, .. } = &entry.job
            && let Some(next) = self.queue.first_waiting()
        {
            // What the switch is there for is next: its turn has come.
            self.limits.begun(next);
        }
        let (attempts, waited) = self.jobs.begin(entry.id, state);
        if let Some(waited) = waited {
            self.counters.waited(waited);
        }
        let (id, durable) = (entry.id, entry.terms.durable);
        self.running = Some(Running {
            entry,
            phase: Phase::AwaitsJournal,
            before: self.queue.loaded().cloned(),
            failed: None,
            made_room: false,
            attempts,
            stopped: None,
            is_readable: false,
            loaded: false,
            longest_step: Duration::ZERO,
            last_step: Instant::now(),
            is_decoding: false,
            since: Instant::now(),
        });
        match durable {
            // It may be what ends the daemon: the attempt counts before it is made.
            true => self.write(begun(id, attempts), Then::SetOff { id }),
            false => self.set_off(id),
        }
    }

    /// The job's attempt is written down, if it has to be.
    pub(super) fn set_off(&mut self, job: JobId) {
        let Some(running) = &mut self.running else { return };
        if running.id() != job || !matches!(running.phase, Phase::AwaitsJournal) {
            return;
        }
        running.phase = match &running.entry.job {
            Job::Generation { .. }
            | Job::ModeSwitch { .. }
            | Job::Load { .. }
            | Job::Upscale { .. } => Phase::AwaitsWorker,
            Job::Unload { .. } => Phase::Unloading(Vec::new()),
            Job::Custom { name, args } => Phase::Custom(self.custom.start(name, job, args.value())),
        };
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
        let upscaler = *what == Unload::All && self.registry.holds_upscaler();
        if ids.is_empty() && !upscaler {
            return self.finish_running(Outcome::Unloaded(modes));
        }
        *phase = Phase::Unloading(modes);
        self.let_go(&ids, upscaler, Reason::Asked);
    }

    /// Asks the worker for the next thing that the running job needs of it.
    pub(super) fn drive(&mut self) {
        let Some(running) = &mut self.running else { return };
        if matches!(running.phase, Phase::AwaitsJournal) {
            return;
        }
        let goal = running.goal();
        if goal.is_none() && !matches!(running.entry.job, Job::Upscale { .. }) {
            return;
        }
        if !self.worker.is_ready() {
            running.phase = Phase::AwaitsWorker;
            let id = running.id();
            return self.jobs.set_state(id, JobState::Loading { percent: 0 });
        }
        let Some(goal) = goal else { return self.upscale() };
        match self.registry.find(&goal.pipeline) {
            Some(id) => self.on_there(id, goal),
            None => self.prepare(goal),
        }
    }

    /// The worker is there, which is all that an upscale needs.
    fn upscale(&mut self) {
        let Some(running) = &mut self.running else { return };
        let Job::Upscale { image, superres, .. } = &running.entry.job else { return };
        let (job, image, superres) = (running.entry.id, image.clone(), superres.clone());
        running.phase = Phase::Upscaling;
        running.is_decoding = false;
        self.jobs.set_state(job, JobState::Running { step: 0, steps: 1 });
        let limit_bytes = self.limit_bytes();
        self.worker.send(ToWorker::Upscale { job, image, superres, limit_bytes });
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
            // The load was done before it could be stopped.
            let is_beside = matches!(running.entry.job, Job::Load { .. });
            if !is_beside && self.registry.active().is_none() {
                self.activate(id, target);
            }
            return self.finish_running(Outcome::Cancelled);
        }
        let outcome = match &running.entry.job {
            Job::Generation { request, .. } => {
                let (job, request) = (running.entry.id, request.clone());
                running.phase = Phase::Drawing(id);
                running.last_step = Instant::now();
                running.is_decoding = false;
                let measured = self.jobs.measured(&running.entry.job);
                running.longest_step = measured.unwrap_or_default() / request.steps.max(1);
                let terms = &running.entry.terms;
                let by_pace = || limit_by_pace(&request, measured?);
                let timeout = terms.timeout_secs.map(|secs| Duration::from_secs(secs.into()));
                for (limit, after) in [
                    (Limit::Drawing, timeout),
                    (Limit::Pace, terms.timeout_by_pace.then(by_pace).flatten()),
                ] {
                    if let Some(after) = after {
                        let until_ms = self.clock.now_ms() + after.as_millis() as u64;
                        self.limits.set(job, limit, until_ms);
                    }
                }
                self.jobs.begin_drawing(job, JobState::Running { step: 0, steps: request.steps });
                let limit_bytes = self.limit_bytes();
                self.worker.send(ToWorker::Generate { job, pipeline: id, request, limit_bytes });
                None
            }
            Job::Load { warm_up: false, .. } => return self.finish_running(Outcome::Loaded),
            Job::Load { warm_up: true, .. } => {
                let job = running.entry.id;
                running.phase = Phase::Drawing(id);
                self.jobs.set_state(job, BEGUN.into());
                let limit_bytes = self.limit_bytes();
                return self.worker.send(ToWorker::Probe { job, pipeline: id, limit_bytes });
            }
            Job::ModeSwitch { .. }
            | Job::Unload { .. }
            | Job::Custom { .. }
            | Job::Upscale { .. } => Some(Outcome::Switched),
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
}
