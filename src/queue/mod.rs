//! The order of the work: one bounded line for all kinds of jobs.
//!
//! Owns which job is next (`order` has the rules) and which mode switches stand between the jobs.
//! Decides purely: it must not know a clock, a disk, a log or the worker; the dispatcher tells it
//! what time it is and what happened, and does what it decides.

use std::collections::VecDeque;

use crate::{
    job::{Job, JobId, SwitchOrigin, Terms},
    modes::{Modes, ModesDiff, Order},
};

mod entry;
mod order;
mod turns;
mod weight;

#[cfg(test)]
mod tests;

pub use entry::{Configured, Entry, Refused, Submitted, Target};
pub use order::Mended;
use order::{Situation, is_for_generations, mend, overtaking, place_of, remove_needless_switches};
use turns::Turns;
pub use weight::{MAX_ARGUMENT_BYTES, MAX_SOURCE_BYTES};

/// The line of waiting jobs, the one that is being worked on, and what is loaded.
#[derive(Debug)]
pub struct Queue {
    limit: usize,
    waiting: VecDeque<Entry>,
    running: Option<Entry>,
    loaded: Option<Target>,
    /// The mode of the last user's switch that succeeded, or the one that was selected at start.
    settled_mode: String,
    order: Order,
    now_ms: u64,
    paused: bool,
    turns: Turns,
    /// The generation for which the last switch was made: it is next.
    awaited: Option<JobId>,
}

impl Queue {
    /// A queue in which at most `limit` jobs wait, and never fewer than two: a generation may
    /// need a switch before it.
    pub fn new(limit: usize, selected_mode: String) -> Self {
        Self {
            limit: limit.max(2),
            waiting: VecDeque::new(),
            running: None,
            loaded: None,
            settled_mode: selected_mode,
            order: Order::default(),
            now_ms: 0,
            paused: false,
            turns: Turns::default(),
            awaited: None,
        }
    }

    /// What time it is, in milliseconds since the Unix epoch; it is never set back.
    pub fn at(&mut self, now_ms: u64) -> &mut Self {
        self.now_ms = now_ms;
        self
    }

    /// What the order goes by, from now on.
    pub fn set_order(&mut self, order: Order) {
        self.order = order;
    }

    /// While it is paused nothing becomes the running job.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// How many jobs may wait.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many jobs wait; the running one does not.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The job that is next, if nothing overtakes it.
    pub fn first_waiting(&self) -> Option<JobId> {
        self.waiting.front().map(|first| first.id)
    }

    pub fn running(&self) -> Option<&Entry> {
        self.running.as_ref()
    }

    pub fn loaded(&self) -> Option<&Target> {
        self.loaded.as_ref()
    }

    /// The mode of a request that names none: that of the last user's switch that is still on its
    /// way, else of the last one that succeeded. So a switch that fails reverts by itself.
    pub fn selected_mode(&self) -> &str {
        let on_their_way = self.waiting.iter().rev().chain(&self.running);
        on_their_way
            .filter_map(|entry| match &entry.job {
                Job::ModeSwitch { mode, asked_by: SwitchOrigin::User, .. } => Some(mode.as_str()),
                Job::ModeSwitch { .. }
                | Job::Generation { .. }
                | Job::Load { .. }
                | Job::Unload { .. }
                | Job::Custom { .. }
                | Job::Upscale { .. } => None,
            })
            .next()
            .unwrap_or(&self.settled_mode)
    }

    /// Puts a job behind those of its priority, and before a generation the switch that it needs:
    /// both or neither.
    pub fn submit(
        &mut self,
        job: Job,
        terms: Terms,
        mut new_id: impl FnMut() -> JobId,
    ) -> Result<Submitted, Refused> {
        let place = self.place_for(terms.priority);
        let switch = self.switch_before(&job, place)?;
        if self.waiting.len() + usize::from(switch.is_some()) + 1 > self.limit {
            return Err(Refused::Full);
        }
        weight::check(&job, self.waiting.iter())?;
        let switch = switch.map(|switch| (new_id(), switch)); // ids grow in the line's order
        let job = Entry { id: new_id(), job, terms, arrived_ms: self.now_ms };
        Ok(self.put_in(place, switch, job, new_id))
    }

    /// As [`Queue::submit`], of a job that was accepted by an earlier daemon, however many wait.
    pub fn restore(&mut self, job: Entry, mut new_id: impl FnMut() -> JobId) -> Submitted {
        let place = self.place_for(job.terms.priority);
        let switch = self.switch_before(&job.job, place).unwrap_or_default();
        let switch = switch.map(|switch| (new_id(), switch));
        self.put_in(place, switch, job, new_id)
    }

    fn put_in(
        &mut self,
        place: usize,
        switch: Option<(JobId, Job)>,
        job: Entry,
        new_id: impl FnMut() -> JobId,
    ) -> Submitted {
        let switch = switch.map(|(id, switch)| Entry {
            id,
            job: switch,
            terms: job.terms.of_its_switch(),
            arrived_ms: job.arrived_ms,
        });
        let is_the_last = place == self.waiting.len();
        let new = switch.iter().chain([&job]).cloned().enumerate();
        new.for_each(|(at, entry)| self.waiting.insert(place + at, entry));
        let mended = match is_the_last {
            true => Mended::default(),
            false => {
                let there = self.at_the_front();
                mend(&mut self.waiting, there, new_id)
            }
        };
        Submitted { switch, job, mended }
    }

    /// The switch that a job needs at that place; and a user's switch may need no job at all.
    fn switch_before(&mut self, job: &Job, place: usize) -> Result<Option<Job>, Refused> {
        let target = Target::of(job);
        match job {
            Job::Generation { .. } if target == self.there_at(place) => Ok(None),
            Job::Generation { .. } => {
                Ok(target.map(|target| target.into_switch(SwitchOrigin::Generation)))
            }
            Job::ModeSwitch { asked_by: SwitchOrigin::User, .. } => {
                match target.is_some_and(|target| self.selects_without_a_switch(&target)) {
                    true => Err(Refused::AlreadyLoaded),
                    false => Ok(None),
                }
            }
            Job::ModeSwitch {
                asked_by: SwitchOrigin::Generation | SwitchOrigin::Reload, ..
            }
            | Job::Load { .. }
            | Job::Unload { .. }
            | Job::Upscale { .. }
            | Job::Custom { .. } => Ok(None),
        }
    }

    /// The modes were changed. Where what will be loaded when all that waits has been done is not
    /// what its mode says any more, the switch that mends this is put at the end, however many jobs
    /// wait: to the mode as it is now, or to the default mode where there is none of that name. It
    /// takes the place of one that an earlier change has put there. What waits is drawn as it was
    /// accepted.
    pub fn configure(
        &mut self,
        diff: &ModesDiff,
        modes: &Modes,
        new_id: impl FnOnce() -> JobId,
    ) -> Configured {
        self.order = modes.order;
        if !modes.modes.contains_key(&self.settled_mode) {
            self.settled_mode.clone_from(&modes.default_mode);
        }
        let is_superseded = self.waiting.back().is_some_and(|last| match &last.job {
            Job::ModeSwitch { mode, asked_by: SwitchOrigin::Reload, .. } => diff.touches(mode),
            Job::ModeSwitch { .. }
            | Job::Generation { .. }
            | Job::Load { .. }
            | Job::Unload { .. }
            | Job::Custom { .. }
            | Job::Upscale { .. } => false,
        });
        let superseded = if is_superseded { self.waiting.pop_back() } else { None };
        let there = self.there_at(self.waiting.len());
        let stale = there.filter(|there| is_superseded || diff.touches(&there.mode));
        let wanted = stale.as_ref().and_then(|there| {
            let mode = modes.modes.get(&there.mode);
            let mode = mode.or_else(|| modes.modes.get(&modes.default_mode))?;
            Some(Target { mode: mode.name.clone(), pipeline: mode.pipeline.clone() })
        });
        // Behind all that waits, whatever its priority.
        let priority = self.waiting.back().map_or(0, |last| last.terms.priority.min(0));
        let switch = wanted.filter(|wanted| Some(wanted) != stale.as_ref()).map(|wanted| Entry {
            id: new_id(),
            job: wanted.into_switch(SwitchOrigin::Reload),
            terms: Terms { priority, ..Terms::default() },
            arrived_ms: self.now_ms,
        });
        self.waiting.extend(switch.clone());
        Configured { superseded, switch }
    }

    /// Takes a waiting job out, and with it the switches that nobody needs any more. Returns what
    /// was taken out, the job itself first; nothing if it does not wait.
    pub fn cancel(&mut self, id: JobId) -> Vec<Entry> {
        let Some(at) = self.waiting.iter().position(|entry| entry.id == id) else {
            return Vec::new();
        };
        let mut removed: Vec<Entry> = self.waiting.remove(at).into_iter().collect();
        let there = self.at_the_front();
        removed.extend(remove_needless_switches(&mut self.waiting, there));
        removed
    }

    /// Puts a job of the daemon's own at the end, however many wait.
    pub fn append(&mut self, id: JobId, job: Job) -> Entry {
        let priority = self.waiting.back().map_or(0, |last| last.terms.priority.min(0));
        let terms = Terms { priority, ..Terms::default() };
        let entry = Entry { id, job, terms, arrived_ms: self.now_ms };
        self.waiting.push_back(entry.clone());
        entry
    }

    /// Takes out the generations at the front that need what a switch has just failed to load.
    pub fn take_followers(&mut self, failed: &Target) -> Vec<Entry> {
        let follows = |entry: &Entry| {
            matches!(entry.job, Job::Generation { .. })
                && Target::of(&entry.job).as_ref() == Some(failed)
        };
        let count = self.waiting.iter().take_while(|entry| follows(entry)).count();
        self.waiting.drain(..count).collect()
    }

    /// Brings the job to the front whose turn it is to overtake. Returns what became of the
    /// switches, since it goes first.
    pub fn bring_forward(&mut self, new_id: impl FnMut() -> JobId) -> Mended {
        let is_awaited = self.awaited.is_some() && self.awaited == self.first_waiting();
        if self.running.is_some() || self.paused || is_awaited {
            return Mended::default();
        }
        let situation = Situation {
            order: self.order,
            loaded: self.loaded.as_ref(),
            now_ms: self.now_ms,
            turns: &self.turns,
        };
        let at = overtaking(&self.waiting, situation);
        let Some(job) = at.and_then(|at| self.waiting.remove(at)) else {
            return Mended::default();
        };
        self.waiting.push_front(job);
        mend(&mut self.waiting, self.loaded.clone(), new_id)
    }

    /// Makes the first job the running one, if none runs yet.
    pub fn start_next(&mut self) -> Option<&Entry> {
        if self.running.is_some() || self.paused {
            return None;
        }
        self.running = self.waiting.pop_front();
        let running = self.running.as_ref()?;
        self.awaited = None;
        match &running.job {
            Job::ModeSwitch { asked_by: SwitchOrigin::Generation, .. } => {
                self.awaited = self.waiting.front().map(|next| next.id);
            }
            Job::Generation { .. } | Job::Custom { .. } | Job::Upscale { .. }
                if self.order.fair =>
            {
                self.turns.take(&running.terms.client);
            }
            Job::Generation { .. }
            | Job::Custom { .. }
            | Job::Upscale { .. }
            | Job::ModeSwitch { asked_by: SwitchOrigin::User | SwitchOrigin::Reload, .. }
            | Job::Load { .. }
            | Job::Unload { .. } => {}
        }
        self.running.as_ref()
    }

    /// The running job has ended.
    pub fn finish_running(&mut self, succeeded: bool) -> Option<Entry> {
        let entry = self.running.take()?;
        if let Job::ModeSwitch { mode, asked_by: SwitchOrigin::User, .. } = &entry.job
            && succeeded
        {
            self.settled_mode.clone_from(mode);
        }
        Some(entry)
    }

    /// What the worker holds now.
    pub fn set_loaded(&mut self, target: Option<Target>) {
        self.loaded = target;
    }

    /// Takes all waiting jobs out.
    pub fn drain(&mut self) -> Vec<Entry> {
        self.waiting.drain(..).collect()
    }

    /// What will be loaded when the first waiting job's turn comes.
    fn at_the_front(&self) -> Option<Target> {
        let running = self.running.as_ref().and_then(|entry| Target::of(&entry.job));
        running.or_else(|| self.loaded.clone())
    }

    /// What will be loaded when the turn comes of what is put in at that place.
    fn there_at(&self, place: usize) -> Option<Target> {
        let before = self.waiting.iter().take(place).rev();
        let last = before.map(|entry| Target::of(&entry.job)).find(Option::is_some).flatten();
        last.or_else(|| self.at_the_front())
    }

    /// Where a job of that priority belongs: not between the running switch and its generation.
    fn place_for(&self, priority: i8) -> usize {
        let begun = self.running.as_ref().filter(|running| is_for_generations(&running.job));
        let target = begun.and_then(|running| Target::of(&running.job));
        let next = self.waiting.front().and_then(|next| Target::of(&next.job));
        let first = usize::from(target.is_some() && target == next);
        place_of(&self.waiting, priority).max(first)
    }

    /// Whether a user's switch to that target needs no job: it is loaded, and nothing that waits
    /// or runs will change that. Where it was loaded for the sake of a generation that named it, to
    /// select it is all there is to do.
    fn selects_without_a_switch(&mut self, target: &Target) -> bool {
        let mut on_their_way = self.waiting.iter().chain(&self.running);
        let stays = on_their_way.all(|entry| match &entry.job {
            Job::Generation { .. } => Target::of(&entry.job).as_ref() == Some(target),
            Job::ModeSwitch { .. } | Job::Unload { .. } => false,
            Job::Load { .. } | Job::Custom { .. } | Job::Upscale { .. } => true,
        });
        let needless = stays && self.loaded.as_ref() == Some(target);
        if needless {
            self.settled_mode.clone_from(&target.mode);
        }
        needless
    }
}
