//! Webhooks: tells others over HTTP that a job has ended.
//!
//! Owns the way of a delivery: its attempts (`attempt`), who is next (`agenda`), how long is waited
//! (`backoff`), its signature, and which addresses it may go to (`address`, `url`). It is given the
//! body and says what became of it; it knows nothing of queues, journals or the API.

mod address;
mod agenda;
mod attempt;
mod backoff;
mod signature;
mod url;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::sleep,
};

pub use self::url::check as check_url;
use self::{
    agenda::{Addresses, Agenda, Attempted, Outcome},
    attempt::{Attempt, attempt},
};
use crate::{
    job::{JobId, JobState},
    modes::Webhooks,
    request::Webhook,
};

/// What has happened to the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Done,
    Failed,
    Cancelled,
}

impl Event {
    /// `None`: nothing yet that is to be told.
    pub fn of(state: &JobState) -> Option<Self> {
        match state {
            JobState::Done => Some(Self::Done),
            JobState::Failed { .. } => Some(Self::Failed),
            JobState::Cancelled => Some(Self::Cancelled),
            JobState::Queued | JobState::Loading { .. } | JobState::Running { .. } => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Done => "job.done",
            Self::Failed => "job.failed",
            Self::Cancelled => "job.cancelled",
        }
    }
}

/// What is to be told, and whom. A job has one, and one only: so the job's id is the delivery's, too,
/// and stays it when the daemon is started anew.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub job: JobId,
    pub event: Event,
    pub webhook: Webhook,
    /// The job as JSON.
    pub body: Vec<u8>,
}

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Delivered,
    GaveUp,
}

/// Takes deliveries, and sees to them in a task of its own.
#[derive(Clone)]
pub struct Deliverer {
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    Deliver(Delivery),
    Configure(Webhooks),
    Finish(oneshot::Sender<()>),
}

impl Deliverer {
    /// `on_end` is told of each delivery, once, how it ended; it must not block. Must be called
    /// within a Tokio runtime.
    pub fn start(
        settings: Webhooks,
        on_end: impl Fn(JobId, Ended) + Send + Sync + 'static,
    ) -> Self {
        let (commands, to_do) = mpsc::unbounded_channel();
        let task = Task {
            commands: to_do,
            settings: Arc::new(settings),
            agenda: Agenda::default(),
            addresses: Arc::default(),
            attempts: JoinSet::new(),
            started: Instant::now(),
            finishing: Vec::new(),
            on_end: Box::new(on_end),
        };
        tokio::spawn(task.run());
        Self { commands }
    }

    pub fn deliver(&self, delivery: Delivery) {
        let _ = self.commands.send(Command::Deliver(delivery));
    }

    /// From the next attempt on.
    pub fn configure(&self, settings: Webhooks) {
        let _ = self.commands.send(Command::Configure(settings));
    }

    /// Returns when nothing is under way and nothing is due: what waits for another attempt later is
    /// not waited for.
    pub async fn finish(&self) {
        let (reply, finished) = oneshot::channel();
        let _ = self.commands.send(Command::Finish(reply));
        let _ = finished.await;
    }
}

/// A delivery on its way.
struct Pending {
    delivery: Arc<Delivery>,
    /// Begun so far.
    attempts: u32,
}

struct Task {
    commands: mpsc::UnboundedReceiver<Command>,
    settings: Arc<Webhooks>,
    agenda: Agenda<Pending>,
    addresses: Arc<Mutex<Addresses>>,
    attempts: JoinSet<(String, Pending, Attempt)>,
    started: Instant,
    finishing: Vec<oneshot::Sender<()>>,
    on_end: Box<dyn Fn(JobId, Ended) + Send + Sync>,
}

/// Why the task woke up.
enum Wake {
    /// `None`: nobody is left who could give a command.
    Command(Option<Command>),
    Attempted(Result<(String, Pending, Attempt), JoinError>),
    Due,
}

impl Task {
    async fn run(mut self) {
        loop {
            self.begin_what_is_due();
            let wait = self.next_ms().map(|at_ms| at_ms.saturating_sub(self.now_ms()));
            let due = async {
                match wait {
                    Some(wait_ms) => sleep(Duration::from_millis(wait_ms)).await,
                    None => std::future::pending().await,
                }
            };
            let wake = tokio::select! {
                command = self.commands.recv() => Wake::Command(command),
                Some(attempted) = self.attempts.join_next() => Wake::Attempted(attempted),
                () = due => Wake::Due,
            };
            match wake {
                Wake::Command(Some(Command::Deliver(delivery))) => {
                    let receiver = url::receiver(&delivery.webhook.url);
                    let pending = Pending { delivery: Arc::new(delivery), attempts: 0 };
                    self.agenda.add(&receiver, pending, self.now_ms(), Attempted::Never);
                }
                Wake::Command(Some(Command::Configure(settings))) => {
                    self.settings = Arc::new(settings);
                }
                Wake::Command(Some(Command::Finish(reply))) => self.finishing.push(reply),
                Wake::Command(None) => break,
                Wake::Attempted(Ok((receiver, pending, attempt))) => {
                    self.on_attempted(&receiver, pending, attempt);
                }
                // An attempt does not panic; if it did, its receiver would keep a place less.
                Wake::Attempted(Err(error)) => tracing::error!("a webhook's attempt: {error}"),
                Wake::Due => {}
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn begin_what_is_due(&mut self) {
        while let Some((receiver, mut pending)) = self.begin() {
            pending.attempts += 1;
            let (settings, addresses) = (self.settings.clone(), self.addresses.clone());
            self.attempts.spawn_blocking(move || {
                let attempted = attempt(&pending.delivery, &settings, &addresses);
                (receiver, pending, attempted)
            });
        }
        if self.attempts.is_empty() {
            self.finishing.drain(..).for_each(|reply| {
                let _ = reply.send(()); // who asked may have gone
            });
        }
    }

    fn begin(&mut self) -> Option<(String, Pending)> {
        let now_ms = self.now_ms();
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        self.agenda.begin(now_ms, &addresses)
    }

    fn next_ms(&self) -> Option<u64> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        self.agenda.next_ms(self.now_ms(), &addresses)
    }

    /// Of a receiver the log names the host alone: a URL may have a password in it.
    fn on_attempted(&mut self, receiver: &str, mut pending: Pending, attempt: Attempt) {
        let outcome = match attempt {
            Attempt::Delivered => Outcome::Delivered,
            Attempt::Failed(_) | Attempt::Refused(_) => Outcome::Failed,
            Attempt::TimedOut(_) => Outcome::TimedOut,
            Attempt::NoPlace(_) => Outcome::NotAsked,
        };
        let now_ms = self.now_ms();
        self.agenda.end(receiver, outcome, now_ms);
        let (job, attempts) = (pending.delivery.job, pending.attempts);
        let (reason, is_over) = match attempt {
            Attempt::Delivered => {
                tracing::info!(%job, receiver, attempts, "webhook delivered");
                return (self.on_end)(job, Ended::Delivered);
            }
            Attempt::NoPlace(address) => {
                pending.attempts -= 1;
                let attempted =
                    if pending.attempts == 0 { Attempted::Never } else { Attempted::Before };
                return self.agenda.put_back(receiver, pending, now_ms, attempted, address);
            }
            Attempt::Failed(reason) | Attempt::TimedOut(reason) => {
                (reason, attempts >= self.settings.max_attempts)
            }
            Attempt::Refused(reason) => (reason, true),
        };
        if is_over {
            tracing::warn!(%job, receiver, attempts, "webhook given up: {reason}");
            return (self.on_end)(job, Ended::GaveUp);
        }
        let first = self.settings.first_retry.duration();
        // Without chance all wait their full time.
        let wait = backoff::wait(attempts, first, getrandom::u32().unwrap_or(u32::MAX));
        tracing::warn!(%job, receiver, attempts, "webhook failed, again in {wait:.1?}: {reason}");
        let due_ms = now_ms + wait.as_millis() as u64;
        self.agenda.add(receiver, pending, due_ms, Attempted::Before);
    }
}
