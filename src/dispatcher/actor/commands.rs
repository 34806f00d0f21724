//! What is asked of the dispatcher: submitted, cancelled, paused, configured, drained.

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Actor, Command, written::Then};
use crate::{
    dispatcher::{JobFailure, Outcome, SubmitError, Ticket},
    job::{Job, JobId, SwitchOrigin, Terms},
    journal::Record,
    modes::{Jobs, Modes},
    queue::{self, Configured, Entry, Refused, Submitted},
    worker::sandbox::Readable,
};

impl Actor {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Submit { job, terms, reply, commands } => {
                self.submit(*job, terms, (commands, reply));
            }
            Command::Cancel { id, reply } => {
                let will_be = self.cancel(id);
                self.publish();
                if let Some(reply) = reply {
                    let tell = move || _ = reply.send(will_be);
                    self.write(Record::Mark, Then::Tell(Box::new(tell)));
                }
            }
            // Nothing is loaded any more.
            Command::Configure { .. } if self.drain_until.is_some() => {}
            Command::Configure { diff, modes } => {
                self.registry.configure(&diff, &modes);
                self.keep_as(modes.jobs);
                self.custom.configure(&modes);
                if let Some(readable) = self.worker.readable_mut() {
                    *readable = Readable::of(&modes);
                }
                self.lost.retain(|target| !diff.touches(&target.mode));
                let queue = self.queue.at(self.clock.now_ms());
                let Configured { superseded, switch } = queue.configure(&diff, &modes, JobId::new);
                if let Some(entry) = superseded {
                    self.conclude(&entry, Outcome::Cancelled);
                }
                match switch {
                    Some(entry) => self.jobs.insert(entry),
                    None => self.try_to_heal(&modes),
                }
            }
            Command::Pause { paused, reply } => {
                tracing::info!("{}", if paused { "paused" } else { "not paused" });
                self.queue.set_paused(paused);
                self.publish();
                let _ = reply.send(());
            }
            Command::Clear { reply } => {
                let removed = self.queue.drain();
                for entry in &removed {
                    self.conclude(entry, Outcome::Cancelled);
                }
                self.publish();
                let count = removed.len();
                let tell = move || _ = reply.send(count);
                self.write(Record::Mark, Then::Tell(Box::new(tell)));
            }
            Command::Notified { id } => self.note(Record::Notified(id)),
            Command::Drain => {
                self.drain_until.get_or_insert_with(|| Instant::now() + self.drain_timeout);
                for entry in self.queue.drain() {
                    if !self.outlives_us(&entry) {
                        self.conclude(&entry, Outcome::Failed(JobFailure::shutting_down()));
                    }
                }
                self.give_up_loading();
            }
        }
    }

    /// Where no mode is current because none could be loaded, the one that is selected is tried
    /// again: what was wrong with it may have been mended.
    fn try_to_heal(&mut self, modes: &Modes) {
        if self.degraded.is_none() || self.queue.waiting() > 0 || self.running.is_some() {
            return;
        }
        let mode = modes.modes.get(self.queue.selected_mode());
        let Some(mode) = mode.or_else(|| modes.modes.get(&modes.default_mode)) else { return };
        self.append(Job::ModeSwitch {
            mode: mode.name.clone(),
            pipeline: mode.pipeline.clone(),
            asked_by: SwitchOrigin::Reload,
            timeout_secs: None,
        });
    }

    /// Puts a job of the daemon's own into queue and table.
    pub(super) fn append(&mut self, job: Job) {
        let entry = self.queue.at(self.clock.now_ms()).append(JobId::new(), job);
        self.jobs.insert(entry);
    }

    fn submit(
        &mut self,
        job: Job,
        terms: Terms,
        (commands, reply): (
            mpsc::UnboundedSender<Command>,
            oneshot::Sender<Result<Ticket, SubmitError>>,
        ),
    ) {
        let durable = terms.durable;
        let entry = match self.accept(job, terms) {
            Ok(entry) => entry,
            Err(error) => {
                self.publish();
                let _ = reply.send(Err(error));
                return;
            }
        };
        let (sender, outcome) = oneshot::channel();
        self.outcomes.insert(entry.id, sender);
        let ticket = Ticket { id: entry.id, outcome, commands: Some(commands) };
        match durable {
            true => {
                self.write(Record::Accepted(Box::new(entry)), Then::Accept { ticket, reply });
            }
            false => {
                self.publish();
                let _ = reply.send(Ok(ticket));
            }
        }
    }

    fn accept(&mut self, job: Job, terms: Terms) -> Result<Entry, SubmitError> {
        if self.drain_until.is_some() {
            return Err(SubmitError::ShuttingDown);
        }
        if self.is_held {
            return Err(SubmitError::NotWritten);
        }
        if let Job::Custom { name, .. } = &job {
            self.custom.check(name)?;
        }
        let entry = self.enqueue(job, terms).map_err(|refused| match refused {
            Refused::Full => SubmitError::QueueFull {
                limit: self.queue.limit(),
                retry_after_secs: self.jobs.retry_after_secs(),
            },
            Refused::TooManyImages => SubmitError::TooMuchToHold {
                what: "the images that waiting jobs draw over",
                limit_bytes: queue::MAX_SOURCE_BYTES,
                retry_after_secs: self.jobs.retry_after_secs(),
            },
            Refused::TooManyArguments => SubmitError::TooMuchToHold {
                what: "the arguments of waiting custom jobs",
                limit_bytes: queue::MAX_ARGUMENT_BYTES,
                retry_after_secs: self.jobs.retry_after_secs(),
            },
            Refused::AlreadyLoaded => SubmitError::AlreadyLoaded,
        })?;
        Ok(entry)
    }

    fn keep_as(&mut self, kept: Jobs) {
        if kept.journal != self.kept.journal {
            tracing::warn!(
                "'journal' is another than at the start: it counts from the next one on"
            );
        }
        self.kept = kept;
        self.expire();
    }

    /// Puts a job, and what it brings along, into queue and table.
    fn enqueue(&mut self, job: Job, terms: Terms) -> Result<Entry, Refused> {
        let queue = self.queue.at(self.clock.now_ms());
        let Submitted { switch, job, mended } = queue.submit(job, terms, JobId::new)?;
        let now = self.clock.now();
        self.limits.add(job.id, &job.job, &job.terms, now);
        let new = switch.into_iter().chain([job.clone()]).chain(mended.added);
        new.for_each(|entry| self.jobs.insert(entry));
        for entry in mended.removed {
            self.conclude(&entry, Outcome::Cancelled);
        }
        Ok(job)
    }

    /// Whether the job will end as cancelled.
    pub(super) fn cancel(&mut self, id: JobId) -> bool {
        if self.running.as_ref().is_some_and(|running| running.id() == id) {
            return self.stop_running(Outcome::Cancelled);
        }
        let removed = self.queue.cancel(id);
        for entry in &removed {
            self.conclude(entry, Outcome::Cancelled);
        }
        !removed.is_empty()
    }
}
