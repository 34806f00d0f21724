//! What is asked of the dispatcher: submitted, cancelled, paused, configured, drained.

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Actor, Command};
use crate::{
    dispatcher::{JobFailure, Outcome, SubmitError, Ticket, limits::Now, unix_ms},
    job::{Job, JobId, SwitchOrigin, Terms},
    modes::Modes,
    queue::{self, Configured, Refused, Submitted},
};

impl Actor {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Submit { job, terms, reply, commands } => {
                let result = self.submit(*job, terms, commands);
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
                self.registry.configure(&diff, &modes);
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
                let _ = reply.send(removed.len());
            }
            Command::Drain => {
                self.drain_until.get_or_insert_with(|| Instant::now() + self.drain_timeout);
                for entry in self.queue.drain() {
                    self.conclude(&entry, Outcome::Failed(JobFailure::shutting_down()));
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
        commands: mpsc::UnboundedSender<Command>,
    ) -> Result<Ticket, SubmitError> {
        if self.drain_until.is_some() {
            return Err(SubmitError::ShuttingDown);
        }
        if let Job::Custom { name, .. } = &job {
            self.custom.check(name)?;
        }
        let id = self.enqueue(job, terms).map_err(|refused| match refused {
            Refused::Full => SubmitError::QueueFull {
                limit: self.queue.limit(),
                retry_after_secs: self.jobs.retry_after_secs(),
            },
            Refused::TooMuchToHold => SubmitError::TooMuchToHold {
                limit_bytes: queue::MAX_SOURCE_BYTES,
                retry_after_secs: self.jobs.retry_after_secs(),
            },
            Refused::AlreadyLoaded => SubmitError::AlreadyLoaded,
        })?;
        let (sender, outcome) = oneshot::channel();
        self.outcomes.insert(id, sender);
        Ok(Ticket { id, outcome, commands: Some(commands) })
    }

    /// Puts a job, and what it brings along, into queue and table.
    fn enqueue(&mut self, job: Job, terms: Terms) -> Result<JobId, Refused> {
        let queue = self.queue.at(self.clock.now_ms());
        let Submitted { switch, job, mended } = queue.submit(job, terms, JobId::new)?;
        let id = job.id;
        let now = Now { unix_ms: unix_ms(), steady_ms: self.clock.now_ms() };
        self.limits.add(id, &job.job, &job.terms, now);
        let new = switch.into_iter().chain([job]).chain(mended.added);
        new.for_each(|entry| self.jobs.insert(entry));
        for entry in mended.removed {
            self.conclude(&entry, Outcome::Cancelled);
        }
        Ok(id)
    }

    /// Whether the job will end as cancelled.
    fn cancel(&mut self, id: JobId) -> bool {
        if self.running.as_ref().is_some_and(|running| running.id() == id) {
            return self.cancel_running();
        }
        let removed = self.queue.cancel(id);
        for entry in &removed {
            self.conclude(entry, Outcome::Cancelled);
        }
        !removed.is_empty()
    }
}
