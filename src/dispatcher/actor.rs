//! The dispatcher's one task.
//!
//! It wakes for these reasons, and never waits for anything else (see [`Wake`]):
//!
//! - a command: somebody submits, cancels, has changed the modes or shuts down;
//! - the worker: it is ready, it answers, or it died (a restart that is due is awaited there too);
//! - a custom job's handler has ended;
//! - memory was measured anew;
//! - the time that a shutdown grants the running job is over.
//!
//! After each it starts what can be started and publishes how everything stands.

mod running;

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinError,
    time::{Instant, sleep_until},
};

use self::running::{Running, custom_end};
use super::{
    CustomJobs, DispatcherConfig, JobFailure, Outcome, Status, SubmitError, Ticket,
    custom::HandlerResult, pace::Pace, table::SharedJobs,
};
use crate::{
    job::{Job, JobId, SwitchOrigin},
    modes::{Modes, ModesDiff},
    queue::{self, Configured, Queue, Refused},
    vram::{VramRegistry, probe, probe::Readings},
    worker::supervisor::{self, Supervisor},
};

/// How long the running job may take to end when the daemon shuts down.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// What is asked of the dispatcher.
#[derive(Debug)]
pub enum Command {
    Submit {
        job: Box<Job>,
        /// Who drops the other end has lost interest: the ticket in it cancels the job.
        reply: oneshot::Sender<Result<Ticket, SubmitError>>,
        /// For the ticket to cancel with.
        commands: mpsc::UnboundedSender<Command>,
    },
    Cancel {
        id: JobId,
        reply: Option<oneshot::Sender<bool>>,
    },
    /// The modes were changed.
    Configure {
        diff: ModesDiff,
        modes: Arc<Modes>,
    },
    Drain,
}

/// Why the task woke up.
enum Wake {
    /// `None`: nobody is left who could give a command.
    Command(Option<Command>),
    Worker(supervisor::Event),
    CustomEnded(Result<HandlerResult, JoinError>),
    Measured,
    DrainLimit,
}

/// The task's state.
pub struct Actor {
    commands: mpsc::UnboundedReceiver<Command>,
    queue: Queue,
    jobs: SharedJobs,
    /// Where the outcomes go, of the jobs that have not ended.
    outcomes: HashMap<JobId, oneshot::Sender<Outcome>>,
    /// Outcomes of jobs that have ended since the last publication.
    to_tell: Vec<(oneshot::Sender<Outcome>, Outcome)>,
    running: Option<Running>,
    custom: CustomJobs,
    worker: Supervisor,
    registry: VramRegistry,
    /// Tells the probe whom to measure.
    worker_pid: watch::Sender<Option<u32>>,
    readings: watch::Receiver<Readings>,
    pace: Pace,
    /// How many times a pipeline was loaded.
    loads: u64,
    status: watch::Sender<Arc<Status>>,
    /// Set once the daemon shuts down.
    drain_until: Option<Instant>,
}

impl Actor {
    pub fn new(
        config: DispatcherConfig,
        worker: Supervisor,
        commands: mpsc::UnboundedReceiver<Command>,
        jobs: SharedJobs,
    ) -> (Self, watch::Receiver<Arc<Status>>) {
        let queue = Queue::new(config.queue_max, config.selected_mode);
        let registry = VramRegistry::default();
        let (worker_pid, pid_for_probe) = watch::channel(None);
        let readings = probe::watch(pid_for_probe);
        let (status, published) = watch::channel(Arc::default());
        let mut actor = Self {
            commands,
            queue,
            jobs,
            outcomes: HashMap::new(),
            to_tell: Vec::new(),
            running: None,
            custom: config.custom,
            worker,
            registry,
            worker_pid,
            readings,
            pace: Pace::default(),
            loads: 0,
            status,
            drain_until: None,
        };
        if let Some((mode, pipeline)) = config.preload {
            let asked_by = SwitchOrigin::User;
            // Into an empty queue; nobody waits for it, and if it fails the log has the reason.
            let _ = actor.enqueue(Job::ModeSwitch { mode, pipeline, asked_by });
        }
        actor.publish();
        (actor, published)
    }

    /// Works until it is drained.
    pub async fn run(mut self) {
        loop {
            self.start_what_can_be_started();
            self.publish();
            if self.drain_until.is_some() && self.running.is_none() {
                break;
            }
            let wake = tokio::select! {
                command = self.commands.recv() => Wake::Command(command),
                event = self.worker.next() => Wake::Worker(event),
                result = custom_end(&mut self.running) => Wake::CustomEnded(result),
                Ok(()) = self.readings.changed() => Wake::Measured,
                () = limit(self.drain_until) => Wake::DrainLimit,
            };
            match wake {
                Wake::Command(Some(command)) => self.on_command(command),
                Wake::Command(None) => break,
                Wake::Worker(event) => self.on_worker(event),
                Wake::CustomEnded(result) => self.on_custom_end(result),
                // Published with the rest.
                Wake::Measured => {}
                Wake::DrainLimit => self.give_up_running(),
            }
        }
        self.worker.end().await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Submit { job, reply, commands } => {
                let result = self.submit(*job, commands);
                self.publish();
                let _ = reply.send(result);
            }
            Command::Cancel { id, reply } => {
                let will_be_cancelled = self.cancel(id);
                self.publish();
                if let Some(reply) = reply {
                    let _ = reply.send(will_be_cancelled);
                }
            }
            // Nothing is loaded any more.
            Command::Configure { .. } if self.drain_until.is_some() => {}
            Command::Configure { diff, modes } => {
                let Configured { superseded, switch } =
                    self.queue.configure(&diff, &modes, JobId::new);
                if let Some(entry) = superseded {
                    self.conclude(entry.id, Outcome::Cancelled);
                }
                switch.into_iter().for_each(|entry| self.jobs.insert(entry));
            }
            Command::Drain => {
                self.drain_until.get_or_insert_with(|| Instant::now() + DRAIN_LIMIT);
                for entry in self.queue.drain() {
                    self.conclude(entry.id, Outcome::Failed(JobFailure::shutting_down()));
                }
                self.give_up_switch();
            }
        }
    }

    fn submit(
        &mut self,
        job: Job,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Result<Ticket, SubmitError> {
        if self.drain_until.is_some() {
            return Err(SubmitError::ShuttingDown);
        }
        if let Job::Custom { name, .. } = &job {
            self.custom.check(name)?;
        }
        let id = self.enqueue(job).map_err(|refused| match refused {
            Refused::Full => SubmitError::QueueFull {
                limit: self.queue.limit(),
                retry_after_secs: self.pace.retry_after_secs(),
            },
            Refused::TooMuchToHold => SubmitError::TooMuchToHold {
                limit_bytes: queue::MAX_SOURCE_BYTES,
                retry_after_secs: self.pace.retry_after_secs(),
            },
            Refused::AlreadyLoaded => SubmitError::AlreadyLoaded,
        })?;
        let (sender, outcome) = oneshot::channel();
        self.outcomes.insert(id, sender);
        Ok(Ticket { id, outcome, commands: Some(commands) })
    }

    /// Puts a job, and what it brings along, into queue and table.
    fn enqueue(&mut self, job: Job) -> Result<JobId, Refused> {
        let submitted = self.queue.submit(job, JobId::new)?;
        let id = submitted.job.id;
        submitted
            .switch
            .into_iter()
            .chain([submitted.job])
            .for_each(|entry| self.jobs.insert(entry));
        Ok(id)
    }

    /// Whether the job will end as cancelled.
    fn cancel(&mut self, id: JobId) -> bool {
        if self.running.as_ref().is_some_and(|running| running.id() == id) {
            return self.cancel_running();
        }
        let removed = self.queue.cancel(id);
        for entry in &removed {
            self.conclude(entry.id, Outcome::Cancelled);
        }
        !removed.is_empty()
    }

    fn start_what_can_be_started(&mut self) {
        // A job may be done as soon as it is begun: a switch to what is loaded.
        while self.running.is_none() {
            let Some(entry) = self.queue.start_next().cloned() else { return };
            self.begin(entry);
        }
    }

    /// A job has ended: writes it down for all, and for who waits for it.
    fn conclude(&mut self, id: JobId, outcome: Outcome) {
        match &outcome {
            Outcome::Images(_) | Outcome::Switched | Outcome::Custom(_) => {
                tracing::info!(job = %id, "done");
            }
            Outcome::Failed(failure) => tracing::warn!(job = %id, "failed: {failure}"),
            Outcome::Cancelled => tracing::info!(job = %id, "cancelled"),
        }
        self.jobs.finish(id, &outcome);
        if let Some(caller) = self.outcomes.remove(&id) {
            self.to_tell.push((caller, outcome));
        }
    }

    /// Publishes how everything stands, and then tells the callers whose jobs have ended: what
    /// they read next is not older than what they were told.
    fn publish(&mut self) {
        let pid = self.worker.pid();
        self.worker_pid.send_if_modified(|known| std::mem::replace(known, pid) != pid);
        let status = Status {
            current_mode: self.queue.loaded().map(|loaded| loaded.mode.clone()),
            selected_mode: self.queue.selected_mode().to_owned(),
            queue_size: self.queue.waiting(),
            running: self.running.as_ref().map(Running::id),
            vram: self.registry.snapshot(&self.readings.borrow()),
            loads: self.loads,
            worker_restarts: self.worker.restarts(),
        };
        self.status.send_if_modified(|published| {
            let changed = **published != status;
            if changed {
                *published = Arc::new(status);
            }
            changed
        });
        for (caller, outcome) in self.to_tell.drain(..) {
            let _ = caller.send(outcome);
        }
    }
}

async fn limit(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
