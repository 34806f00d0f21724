//! What the journal has to do with it: a caller is told that its job is accepted, and everybody that
//! a job has ended, when that is on disk.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Actor;
use crate::{
    dispatcher::{
        FailureKind, JobFailure, Outcome, SubmitError, Ticket,
        clock::unix_ms,
        limits::Now,
        table::{Ended, Expired},
    },
    job::{Job, JobId, SwitchOrigin},
    journal::{Ending, Receipt, Record, Remembered},
    queue::{Entry, Submitted},
};

/// What is done when something is on disk.
pub enum Then {
    Nothing,
    Accept {
        ticket: Ticket,
        reply: oneshot::Sender<Result<Ticket, SubmitError>>,
    },
    SetOff {
        id: JobId,
    },
    Settle {
        id: JobId,
        outcome: Outcome,
        at_unix_ms: u64,
    },
    /// Somebody is told of what was written before.
    Tell(Box<dyn FnOnce() + Send>),
}

impl Actor {
    /// Appends a record that somebody waits for.
    pub(super) fn write(&mut self, record: Record, then: Then) {
        self.unwritten += 1;
        self.journal.append(record, then);
    }

    /// Appends a record that nobody waits for.
    pub(super) fn note(&mut self, record: Record) {
        self.write(record, Then::Nothing);
    }

    pub(super) fn on_receipt(&mut self, receipt: Receipt<Then>) {
        match receipt {
            Receipt::Written { token, image_bytes } => {
                self.unwritten -= 1;
                self.go_on(token, image_bytes);
            }
            Receipt::Refused(token) => {
                self.unwritten -= 1;
                match token {
                    Then::Accept { ticket, reply } => self.take_back(ticket, reply),
                    Then::Tell(_) => self.go_on(token, 0),
                    // What is known of it stays in memory until it can be written.
                    Then::Nothing | Then::SetOff { .. } | Then::Settle { .. } => {
                        self.is_held = true;
                        self.go_on(token, 0);
                    }
                }
            }
            Receipt::Recovered => self.is_held = false,
        }
    }

    fn go_on(&mut self, then: Then, image_bytes: u64) {
        match then {
            Then::Nothing => {}
            Then::Accept { ticket, reply } => {
                self.publish();
                let _ = reply.send(Ok(ticket));
            }
            Then::SetOff { id } => self.set_off(id),
            Then::Settle { id, outcome, at_unix_ms } => {
                self.settle(id, outcome, at_unix_ms, image_bytes);
            }
            Then::Tell(tell) => {
                self.publish();
                tell();
            }
        }
    }

    /// A job could not be written down, and so is not accepted.
    fn take_back(&mut self, ticket: Ticket, reply: oneshot::Sender<Result<Ticket, SubmitError>>) {
        let id = ticket.detach();
        self.refused.insert(id);
        self.outcomes.remove(&id);
        self.cancel(id);
        self.publish();
        let _ = reply.send(Err(SubmitError::NotWritten));
    }

    /// A job has ended, and this is on disk if it has to be: for all to see, and for its caller.
    pub(super) fn settle(
        &mut self,
        id: JobId,
        outcome: Outcome,
        at_unix_ms: u64,
        image_bytes: u64,
    ) {
        match self.refused.remove(&id) {
            true => self.jobs.forget(id),
            false => {
                let at = Now { unix_ms: at_unix_ms, steady_ms: self.clock.now_ms() };
                self.jobs.finish(id, Ended { outcome: &outcome, at, image_bytes });
            }
        }
        if let Some(view) = self.jobs.get(id) {
            (self.on_end)(view);
        }
        if let Some(caller) = self.outcomes.remove(&id) {
            self.to_tell.push((caller, outcome));
        }
        self.expire();
    }

    /// Forgets what is kept no longer.
    pub(super) fn expire(&mut self) {
        let Expired { jobs, images } = self.jobs.expire(self.clock.now(), &self.kept.retention);
        if !jobs.is_empty() {
            self.note(Record::Forgotten(jobs));
        }
        if !images.is_empty() {
            self.note(Record::ImagesForgotten(images));
        }
    }

    /// What is written of a durable job's end.
    pub(super) fn write_end(&mut self, entry: &Entry, outcome: Outcome) {
        let at_unix_ms = unix_ms();
        let (mut result, mut report, mut images) = (None, None, None);
        match &outcome {
            Outcome::Images(drawn) => {
                report = Some(drawn.report.clone());
                images = Some(Arc::clone(drawn));
            }
            Outcome::Custom(value) => result = Some(value.clone()),
            Outcome::Switched
            | Outcome::Loaded
            | Outcome::Unloaded(_)
            | Outcome::Failed(_)
            | Outcome::Cancelled => {}
        }
        let ending = Box::new(Ending {
            state: outcome.state(),
            finished_unix_ms: at_unix_ms,
            drawing_unix_ms: self.jobs.get(entry.id).and_then(|view| view.drawing_unix_ms),
            result,
            report,
            image_bytes: 0,
        });
        let mut entry = Box::new(entry.clone());
        entry.job.forget_inputs();
        let id = entry.id;
        let record = Record::Ended { entry, ending, images };
        self.write(record, Then::Settle { id, outcome, at_unix_ms });
    }

    /// Whether a job goes on in the next daemon, if it has not ended when this one does.
    pub(super) fn outlives_us(&self, entry: &Entry) -> bool {
        entry.terms.durable && self.journal.is_on()
    }

    /// Takes up what an earlier daemon has left. Whether a mode was to be switched to by a user.
    pub(super) fn restore(&mut self, remembered: Vec<Remembered>) -> bool {
        let mut selects = false;
        let (mut again, mut failed) = (0, 0);
        for job in remembered {
            if job.ending.is_some() {
                let (id, tells) =
                    (job.entry.id, !job.notified && job.entry.terms.webhook.is_some());
                self.jobs.restore(job);
                if let Some(view) = tells.then(|| self.jobs.get(id)).flatten() {
                    (self.on_end)(view);
                }
                continue;
            }
            let (entry, attempts) = (job.entry.clone(), job.attempts);
            self.jobs.restore(job);
            if attempts >= self.kept.max_attempts {
                failed += 1;
                self.conclude(&entry, Outcome::Failed(daemon_ended(attempts)));
                continue;
            }
            again += 1;
            selects |= matches!(entry.job, Job::ModeSwitch { asked_by: SwitchOrigin::User, .. });
            let now = self.clock.now();
            self.limits.add(entry.id, &entry.job, &entry.terms, now);
            let Submitted { switch, mended, .. } = self.queue.restore(entry, JobId::new);
            let switches = switch.into_iter().chain(mended.added);
            switches.for_each(|entry| self.jobs.insert(entry));
            for entry in mended.removed {
                self.conclude(&entry, Outcome::Cancelled);
            }
        }
        if again + failed > 0 {
            tracing::info!(
                "an earlier daemon left {again} jobs that go on now, and {failed} that were begun \
                 too often"
            );
        }
        self.jobs.restored(self.clock.now());
        self.expire();
        selects
    }
}

/// How often, in words.
pub fn times(count: u32) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        more => format!("{more} times"),
    }
}

fn daemon_ended(attempts: u32) -> JobFailure {
    let times = times(attempts);
    let message = format!("the daemon, or its worker, ended {times} in this job's turn");
    JobFailure { kind: FailureKind::WorkerDied, message }
}
