//! The dispatcher's one task.
//!
//! It wakes for these reasons, and never waits for anything else (see [`Wake`]):
//!
//! - a command: somebody submits, cancels, holds the work back, has changed the modes or shuts down;
//! - the worker: it is ready, it answers, or it died (a restart that is due is awaited there too);
//! - a custom job says how far it is, or has ended;
//! - something was written down, or cannot be;
//! - memory was measured anew;
//! - a tick: whether the worker is heard of and gets on (`hung`);
//! - some job's time is over: to be begun, to be drawn, to have ended (`limits`);
//! - a pipeline has been idle for as long as it may;
//! - a job that has ended has been kept for as long as it may;
//! - the time that a shutdown grants the running job is over.
//!
//! After each it starts what can be started and publishes how everything stands.

mod commands;
mod ending;
mod hung;
mod limits;
mod loading;
mod messages;
mod running;
mod written;

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::{
    running::{Running, custom_event},
    written::Then,
};
use super::{
    Counters, DispatcherConfig, EndListener, Outcome, Status, SubmitError, Ticket,
    clock::{Clock, unix_ms},
    custom::{CustomEvent, Runnable},
    limits::Limits,
    table::SharedJobs,
    watchdog::Watchdog,
};
use crate::{
    job::{Job, JobId, SwitchOrigin, Terms},
    journal::{Journal, Opened, Receipt},
    modes::{Jobs, Modes, ModesDiff},
    queue::{Entry, Queue, Target},
    vram::{Cards, VramRegistry, host, probe, probe::Readings},
    worker::{
        sandbox::Readable,
        supervisor::{self, Supervisor},
    },
};

/// What is asked of the dispatcher.
#[derive(Debug)]
pub enum Command {
    Submit {
        job: Box<Job>,
        terms: Terms,
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
    Pause {
        paused: bool,
        reply: oneshot::Sender<()>,
    },
    /// All that waits is to be cancelled.
    Clear {
        reply: oneshot::Sender<usize>,
    },
    /// Nobody is to be told of that job's end any more.
    Notified {
        id: JobId,
    },
    Drain,
}

/// Why the task woke up.
enum Wake {
    /// `None`: nobody is left who could give a command.
    Command(Option<Command>),
    Worker(supervisor::Event),
    Custom(CustomEvent),
    Receipt(Receipt<Then>),
    Measured,
    Tick,
    JobLimit,
    Idle,
    Expiry,
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
    journal: Journal<Then>,
    receipts: mpsc::UnboundedReceiver<Receipt<Then>>,
    /// How many records are on their way to the disk.
    unwritten: usize,
    /// Jobs that could not be written down, and are on their way out.
    refused: HashSet<JobId>,
    /// What has happened cannot be written down: nothing is begun, and nothing accepted.
    is_held: bool,
    /// What is kept of jobs, and how often they are begun.
    kept: Jobs,
    running: Option<Running>,
    custom: Runnable,
    worker: Supervisor,
    registry: VramRegistry,
    /// Tells the probe whom to measure.
    worker_pid: watch::Sender<Option<u32>>,
    readings: watch::Receiver<Readings>,
    cards: Cards,
    /// What the worker process had of its own in RAM when it was ready, in bytes.
    memory_at_start: Option<u64>,
    /// How many processes the kernel had ended for want of memory by then, or at our own start.
    oom_kills_at_start: u64,
    /// Why no mode is current, after a switch that could not be taken back.
    degraded: Option<String>,
    /// Until when jobs may wait, be drawn and have ended.
    limits: Limits,
    /// What a worker that died had loaded and that should be there: the current mode's pipeline,
    /// and pinned ones.
    lost: Vec<Target>,
    clock: Clock,
    counters: Counters,
    status: watch::Sender<Arc<Status>>,
    /// How long the running job may take to end when the daemon shuts down.
    drain_timeout: Duration,
    /// Set once the daemon shuts down.
    drain_until: Option<Instant>,
    /// Of jobs with a webhook.
    on_end: EndListener,
    /// How long the worker may take to stop a job.
    stop_grace: Duration,
    watchdog: Watchdog,
    /// When the watchdog ticked last.
    ticked: Instant,
    /// Heartbeats are missing.
    worker_silent: bool,
}

impl Actor {
    pub(super) fn new(
        config: DispatcherConfig,
        mut worker: Supervisor,
        commands: mpsc::UnboundedReceiver<Command>,
        jobs: SharedJobs,
        opened: Opened<Then>,
    ) -> (Self, watch::Receiver<Arc<Status>>) {
        let modes = config.modes;
        let mut queue = Queue::new(config.queue_max, modes.default_mode.clone());
        queue.set_order(modes.order);
        let registry = VramRegistry::new(&modes);
        let (worker_pid, pid_for_probe) = watch::channel(None);
        let readings = probe::watch(pid_for_probe, config.cards.clone());
        let (status, published) = watch::channel(Arc::default());
        if config.confines_files {
            worker.confine(Readable::of(&modes));
        }
        let mut actor = Self {
            commands,
            queue,
            jobs,
            outcomes: HashMap::new(),
            to_tell: Vec::new(),
            journal: opened.journal,
            receipts: opened.receipts,
            unwritten: 0,
            refused: HashSet::new(),
            is_held: false,
            kept: modes.jobs,
            running: None,
            custom: Runnable::new(config.custom, &modes),
            worker,
            registry,
            worker_pid,
            readings,
            cards: config.cards,
            memory_at_start: None,
            oom_kills_at_start: host::oom_kills(),
            degraded: None,
            limits: Limits::default(),
            lost: Vec::new(),
            clock: Clock::default(),
            counters: Counters::default(),
            status,
            drain_timeout: config.drain_timeout,
            drain_until: None,
            on_end: config.on_end,
            stop_grace: config.stop_grace,
            watchdog: Watchdog::new(config.worker_silence),
            ticked: Instant::now(),
            worker_silent: false,
        };
        let selects = actor.restore(opened.remembered);
        // Nobody waits for these; if one fails, the log has the reason.
        let default =
            (config.switch_to_default && !selects).then(|| modes.modes.get(&modes.default_mode));
        let switch = default.flatten().map(|mode| Job::ModeSwitch {
            mode: mode.name.clone(),
            pipeline: mode.pipeline.clone(),
            asked_by: SwitchOrigin::User,
            timeout_secs: None,
        });
        let loads = config.preload.iter().filter_map(|name| {
            let mode = modes.modes.get(name)?;
            Some(Job::Load {
                mode: mode.name.clone(),
                pipeline: mode.pipeline.clone(),
                warm_up: false,
            })
        });
        switch.into_iter().chain(loads).for_each(|job| actor.append(job));
        actor.publish();
        (actor, published)
    }

    /// Works until it is drained.
    pub async fn run(mut self) {
        let mut ticks = interval(Watchdog::TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_what_can_be_started();
            self.when_idle();
            self.publish();
            if self.drain_until.is_some() && self.running.is_none() && self.unwritten == 0 {
                break;
            }
            let job_limit = self.limits.next_ms().map(|at_ms| self.instant(at_ms));
            let (idle_at, expiry) = (self.idle_at(), self.expiry());
            let wake = tokio::select! {
                command = self.commands.recv() => Wake::Command(command),
                event = self.worker.next() => Wake::Worker(event),
                event = custom_event(&mut self.running) => Wake::Custom(event),
                Some(receipt) = self.receipts.recv() => Wake::Receipt(receipt),
                Ok(()) = self.readings.changed() => Wake::Measured,
                _ = ticks.tick() => Wake::Tick,
                () = limit(job_limit) => Wake::JobLimit,
                () = limit(idle_at) => Wake::Idle,
                () = limit(expiry) => Wake::Expiry,
                () = limit(self.drain_until) => Wake::DrainLimit,
            };
            match wake {
                Wake::Command(Some(command)) => self.on_command(command),
                Wake::Command(None) => break,
                Wake::Worker(event) => self.on_worker(event),
                Wake::Custom(event) => self.on_custom(event),
                Wake::Receipt(receipt) => self.on_receipt(receipt),
                Wake::Expiry => self.expire(),
                // Published with the rest; and idle pipelines go when there is nothing else to do.
                Wake::Measured | Wake::Idle => {}
                Wake::Tick => self.on_tick(),
                Wake::JobLimit => self.on_limits(),
                Wake::DrainLimit => self.give_up_running(),
            }
        }
        self.worker.end().await;
        let journal = self.journal;
        let closing = tokio::task::spawn_blocking(|| journal.close());
        if let Err(panicked) = closing.await {
            tracing::error!("{panicked}");
        }
    }

    /// When the next job that has ended is not to be known any more.
    fn expiry(&self) -> Option<Instant> {
        let in_ms = self.jobs.next_expiry_in_ms(self.clock.now(), &self.kept.retention)?;
        Some(self.instant(self.clock.now_ms() + in_ms))
    }

    /// When something has been idle for long enough, if nothing happens until then.
    fn idle_at(&self) -> Option<Instant> {
        if self.running.is_some() || self.queue.waiting() > 0 || !self.worker.is_ready() {
            return None;
        }
        self.registry.next_idle_ms().map(|at_ms| self.instant(at_ms))
    }

    /// When the clock will say that; now, if it has.
    fn instant(&self, at_ms: u64) -> Instant {
        // The longest that a timer takes is not much longer than this.
        const YEAR_MS: u64 = 365 * 24 * 60 * 60 * 1000;
        let from_now = at_ms.saturating_sub(self.clock.now_ms()).min(YEAR_MS);
        Instant::now() + Duration::from_millis(from_now)
    }

    fn start_what_can_be_started(&mut self) {
        // A job may be done as soon as it is begun: a switch to what is loaded.
        while self.running.is_none() && !self.is_held {
            let mended = self.queue.at(self.clock.now_ms()).bring_forward(JobId::new);
            mended.added.into_iter().for_each(|entry| self.jobs.insert(entry));
            for entry in mended.removed {
                self.conclude(&entry, Outcome::Cancelled);
            }
            let Some(entry) = self.queue.start_next().cloned() else { return };
            self.begin(entry);
        }
    }

    /// A job has ended: writes it down for all, and for who waits for it.
    fn conclude(&mut self, entry: &Entry, outcome: Outcome) {
        let id = entry.id;
        match &outcome {
            Outcome::Images(_)
            | Outcome::Switched
            | Outcome::Loaded
            | Outcome::Unloaded(_)
            | Outcome::Custom(_) => tracing::info!(job = %id, "done"),
            Outcome::Failed(failure) => tracing::warn!(job = %id, "failed: {failure}"),
            Outcome::Cancelled => tracing::info!(job = %id, "cancelled"),
        }
        self.counters.ended(&entry.job, &outcome);
        self.limits.forget(id);
        match entry.terms.durable {
            true => self.write_end(entry, outcome),
            false => self.settle(id, outcome, unix_ms(), 0),
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
            paused: self.queue.is_paused(),
            running: self.running.as_ref().map(Running::id),
            vram: self.registry.snapshot(&self.readings.borrow()),
            counters: self.counters.clone(),
            degraded: self.degraded.clone(),
            worker_ready: self.worker.is_ready(),
            worker_silent: self.worker_silent,
            draining: self.drain_until.is_some(),
            storage_fails: self.is_held,
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
