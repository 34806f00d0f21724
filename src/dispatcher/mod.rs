//! Takes the next job, drives the worker and says what became of it: the one writer of job state.
//!
//! Owns the queue, the job table and the worker, in one task (`actor`) that is reached through
//! a [`Handle`]. Whatever that task is busy with, it answers at once; and what can be read
//! ([`Handle::status`], [`Handle::job`], [`Handle::events`]) is published, so that readers do not even ask it.
//! Knows nothing of HTTP, configuration files or the engine.

mod actor;
mod clock;
mod command;
mod counters;
mod custom;
mod events;
mod job_events;
mod job_view;
mod kept;
mod limits;
mod outcome;
mod pace;
mod previews;
mod retention;
mod table;
mod watchdog;

#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

pub use self::{
    clock::unix_ms,
    command::supervisor::{SUBCOMMAND as SUPERVISE, supervise},
    counters::{Counters, Ending, Stage, Times},
    custom::{CustomJobs, HandlerResult, JobContext, JobHandler},
    events::{Change, Event, EventId, Events},
    job_events::JobEvents,
    job_view::JobView,
    outcome::{FailureKind, JobFailure, KeptImage, Outcome, SubmitError},
    previews::{Preview, Previews},
};
pub use crate::worker::protocol::{DrawnImages, DrawnReport};
use crate::{
    job::{Job, JobId, JobState, Terms},
    journal::{Journal, JournalError, Results},
    modes::{Modes, ModesDiff},
    vram::{self, Cards},
    worker::{process::WorkerCommand, supervisor::Supervisor},
};
use actor::{Actor, Command};
use kept::Place;
use table::SharedJobs;

/// What a dispatcher needs to know to start.
pub struct DispatcherConfig {
    /// How many jobs may wait; at least 2, as a generation may bring a switch along.
    pub queue_max: usize,
    /// The program that is the worker, and its arguments.
    pub worker_command: WorkerCommand,
    pub modes: Arc<Modes>,
    /// The default mode is made the current one before anybody asks.
    pub switch_to_default: bool,
    /// Modes that are loaded before anybody asks.
    pub preload: Vec<String>,
    pub custom: CustomJobs,
    /// How long the running job may take to end when the daemon shuts down.
    pub drain_timeout: Duration,
    /// The folder of the journal and the images; `None`: nothing is written down.
    pub journal: Option<PathBuf>,
    /// Told of each job when it has ended; again in the next daemon, until [`Handle::notified`].
    pub on_end: EndListener,
    /// How long a worker may take to stop a job, at least two of its steps; then it is killed and
    /// another one is started.
    pub stop_grace: Duration,
    /// How long a worker may send nothing, not even a heartbeat.
    pub worker_silence: Duration,
    /// Whether the worker is told which files it may read.
    pub confines_files: bool,
    /// Who knows the cards of this machine.
    pub cards: Cards,
}

impl DispatcherConfig {
    pub const STOP_GRACE: Duration = Duration::from_secs(30);
    pub const WORKER_SILENCE: Duration = Duration::from_secs(15);
}

/// Is told of a job that has ended. It must not block.
pub type EndListener = Box<dyn Fn(JobView) + Send>;

/// Starts the dispatcher, and with it the worker. Must be called within a Tokio runtime.
///
/// # Errors
/// The journal cannot be used.
pub fn start(config: DispatcherConfig) -> Result<(Handle, DispatcherShutdown), JournalError> {
    let worker = Supervisor::new(config.worker_command.clone());
    start_with(config, worker)
}

fn start_with(
    config: DispatcherConfig,
    worker: Supervisor,
) -> Result<(Handle, DispatcherShutdown), JournalError> {
    let opened = match &config.journal {
        Some(folder) => Journal::open(folder)?,
        None => Journal::off(),
    };
    let (commands, to_do) = mpsc::unbounded_channel();
    let jobs = SharedJobs::default();
    let custom_jobs = config.custom.list().into();
    let results = opened.results.clone();
    let (actor, status) = Actor::new(config, worker, to_do, jobs.clone(), opened);
    let end_of_events = jobs.events().ends_with_this();
    let task = tokio::spawn(async move {
        let _end_of_events = end_of_events;
        actor.run().await;
    });
    let handle = Handle { commands: commands.clone(), jobs, results, status, custom_jobs };
    Ok((handle, DispatcherShutdown { commands, task }))
}

/// The dispatcher, to all who have work for it or want to know how it stands.
#[derive(Clone)]
pub struct Handle {
    // Unbounded, but never long: every sender waits for the answer, or has gone.
    commands: mpsc::UnboundedSender<Command>,
    jobs: SharedJobs,
    results: Option<Results>,
    status: watch::Receiver<Arc<Status>>,
    custom_jobs: Arc<[(String, String)]>,
}

impl Handle {
    /// Puts a job into the queue, and before a generation the switch that it needs: both or
    /// neither. If the caller loses interest before this returns, the job is cancelled.
    pub async fn submit(&self, job: Job) -> Result<Ticket, SubmitError> {
        self.submit_with(job, Terms::default()).await
    }

    /// The same, on terms of the caller's.
    pub async fn submit_with(&self, job: Job, terms: Terms) -> Result<Ticket, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let (job, commands) = (Box::new(job), self.commands.clone());
        let _ = self.commands.send(Command::Submit { job, terms, reply, commands });
        answer.await.unwrap_or(Err(SubmitError::ShuttingDown))
    }

    /// How a job stands; also one that has ended, for as long as it is kept.
    pub fn job(&self, id: JobId) -> Option<JobView> {
        Some(self.as_things_are(self.jobs.get(id)?))
    }

    /// While nothing is begun, nobody knows when it will be.
    fn as_things_are(&self, mut view: JobView) -> JobView {
        if self.status.borrow().paused {
            view.estimated_start_unix_ms = None;
        }
        view
    }

    /// The same without its place among the others, which takes a look at each of them.
    pub fn job_state(&self, id: JobId) -> Option<JobState> {
        self.jobs.state(id)
    }

    /// An image of a durable job ([`Terms::durable`]), for as long as it is kept. Opens a file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn image(&self, id: JobId, index: usize) -> io::Result<Option<KeptImage>> {
        match (self.jobs.images(id), &self.results) {
            (Some(Place::Memory(images)), _) => Ok(Some(KeptImage::Drawn(images))),
            (Some(Place::Disk), Some(results)) => Ok(results.file(id, index)?.map(KeptImage::Png)),
            (Some(Place::Disk), None) | (None, _) => Ok(None),
        }
    }

    /// The newest jobs that are `wanted`, up to a number and so many bytes in memory, of those
    /// older than `before`; and whether there are more.
    pub fn jobs(
        &self,
        before: Option<JobId>,
        limits: (usize, u64),
        wanted: impl Fn(&JobView) -> bool,
    ) -> (Vec<JobView>, bool) {
        let (views, has_more) = self.jobs.list(before, limits, wanted);
        (views.into_iter().map(|view| self.as_things_are(view)).collect(), has_more)
    }

    /// What happens to all jobs: from now on, or behind that event.
    pub fn events(&self, after: Option<EventId>) -> Events {
        self.jobs.events().follow(after)
    }

    /// What happens to one job, until it has ended: first how it stands, or what happened behind
    /// that event. `None`: nobody knows the job.
    pub fn job_events(&self, id: JobId, after: Option<EventId>) -> Option<JobEvents> {
        JobEvents::of(&self.jobs, id, after)
    }

    /// What images look like on their way, of one job or of all.
    pub fn previews(&self, job: Option<JobId>) -> Previews {
        self.jobs.previews().follow(job)
    }

    /// Cancels a job: one that waits is taken out of the queue, one that runs is stopped at its
    /// next step, tile or tensor. False if the job is unknown, has ended, or has failed while the
    /// mode before it is loaded again.
    pub async fn cancel(&self, id: JobId) -> bool {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Cancel { id, reply: Some(reply) });
        answer.await.unwrap_or(false)
    }

    /// While it is paused, nothing is begun; the running job goes on.
    ///
    /// # Errors
    /// The daemon is shutting down.
    pub async fn set_paused(&self, paused: bool) -> Result<(), SubmitError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Pause { paused, reply });
        answer.await.map_err(|_| SubmitError::ShuttingDown)
    }

    /// Cancels all jobs that wait, and says how many.
    ///
    /// # Errors
    /// The daemon is shutting down.
    pub async fn clear(&self) -> Result<usize, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Clear { reply });
        answer.await.map_err(|_| SubmitError::ShuttingDown)
    }

    /// The modes are now those. Where what is loaded, or will be, is not what its mode says any
    /// more, it is loaded anew behind all that waits; a job that is submitted after this stands
    /// behind that. What was accepted before is drawn as it was accepted.
    pub fn configure(&self, diff: ModesDiff, modes: Arc<Modes>) {
        let _ = self.commands.send(Command::Configure { diff, modes });
    }

    /// All jobs that are known, in the order in which they were accepted.
    pub fn all_jobs(&self) -> Vec<JobView> {
        let (mut views, _) = self.jobs.list(None, (usize::MAX, u64::MAX), |_| true);
        views.reverse();
        views
    }

    /// Whoever had to be told of a job's end was told, or never will be.
    pub fn notified(&self, id: JobId) {
        let _ = self.commands.send(Command::Notified { id });
    }

    /// Whether a job like that waits or runs.
    pub fn awaits(&self, is: impl Fn(&Job) -> bool) -> bool {
        self.jobs.awaits(is)
    }

    /// How everything stands.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// The names under which custom jobs were registered, sorted, and what each says of itself.
    pub fn custom_jobs(&self) -> &[(String, String)] {
        &self.custom_jobs
    }
}

/// A caller's interest in a job: dropped before the outcome is there, the job is cancelled.
#[derive(Debug)]
pub struct Ticket {
    id: JobId,
    outcome: oneshot::Receiver<Outcome>,
    /// Where to cancel; `None` once that is not to be done any more.
    commands: Option<mpsc::UnboundedSender<Command>>,
}

impl Ticket {
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Waits until the job has ended.
    pub async fn outcome(mut self) -> Outcome {
        let outcome = (&mut self.outcome).await;
        self.commands = None;
        outcome.unwrap_or_else(|_| Outcome::Failed(JobFailure::shutting_down()))
    }

    /// Leaves the job to itself; it is done in its turn.
    pub fn detach(mut self) -> JobId {
        self.commands = None;
        self.id
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(Command::Cancel { id: self.id, reply: None });
        }
    }
}

/// How everything stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// The mode whose pipeline the worker holds.
    pub current_mode: Option<String>,
    /// The mode of requests that name none.
    pub selected_mode: String,
    /// How many jobs wait, without the running one.
    pub queue_size: usize,
    /// Whether nothing is begun.
    pub paused: bool,
    pub running: Option<JobId>,
    pub vram: vram::Snapshot,
    pub counters: Counters,
    /// Why no mode is current, where a switch has failed and the mode before it could not be
    /// loaded again either.
    pub degraded: Option<String>,
    /// Whether the worker is up; while it is started, jobs wait for it.
    pub worker_ready: bool,
    /// Whether the worker has not been heard of for a while; it is replaced if that goes on.
    pub worker_silent: bool,
    /// Whether the daemon is being shut down: nothing is accepted any more.
    pub draining: bool,
    /// Whether what has happened cannot be written down: nothing is begun or accepted until it can.
    pub storage_fails: bool,
    /// How many times the worker was started again.
    pub worker_restarts: u64,
}

/// Ends the dispatcher.
pub struct DispatcherShutdown {
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
}

impl DispatcherShutdown {
    /// From now on nothing is accepted, and what waits fails. Returns when the running job has
    /// ended, which it has `drain_timeout` for, and the worker with it.
    pub async fn drain(self) {
        let _ = self.commands.send(Command::Drain);
        if let Err(error) = self.task.await {
            tracing::error!("the dispatcher had failed before it was shut down: {error}");
        }
    }
}
