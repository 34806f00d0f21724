//! The order of the work: one bounded first-in, first-out line for all kinds of jobs.
//!
//! Owns which job is next and which mode switches stand between the jobs. Decides purely: it must
//! not know a clock, a disk, a log or the worker; the dispatcher tells it what happened and does
//! what it decides.

use std::collections::VecDeque;

use crate::{
    job::{Job, JobId, SwitchOrigin, Terms},
    modes::{Modes, ModesDiff, PipelineSpec},
    request::Source,
};

#[cfg(test)]
mod tests;

/// What the images that waiting jobs draw over may take together. Those of one job take a quarter.
pub const MAX_SOURCE_BYTES: usize = 256 << 20;

/// A mode and the pipeline that it needs: what a worker can have loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub mode: String,
    pub pipeline: PipelineSpec,
}

impl Target {
    /// What must be loaded for that job, if anything must.
    pub fn of(job: &Job) -> Option<Self> {
        match job {
            Job::Generation { request, pipeline } => {
                Some(Self { mode: request.mode.clone(), pipeline: pipeline.clone() })
            }
            Job::ModeSwitch { mode, pipeline, .. } => {
                Some(Self { mode: mode.clone(), pipeline: pipeline.clone() })
            }
            Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => None,
        }
    }
}

/// A job and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub id: JobId,
    pub job: Job,
    pub terms: Terms,
}

/// What was put into the queue for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The switch that a generation needed; it stands before it.
    pub switch: Option<Entry>,
    pub job: Entry,
}

/// What a change of the modes did to the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Configured {
    /// Taken out.
    pub superseded: Option<Entry>,
    /// Put in.
    pub switch: Option<Entry>,
}

/// Why nothing was put into the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As many jobs wait as may.
    Full,
    /// What the waiting jobs draw over takes as much memory as it may, [`MAX_SOURCE_BYTES`].
    TooMuchToHold,
    /// A user's switch to what is loaded, and stays it until its turn would come.
    AlreadyLoaded,
}

/// The line of waiting jobs, the one that is being worked on, and what is loaded.
#[derive(Debug)]
pub struct Queue {
    limit: usize,
    waiting: VecDeque<Entry>,
    running: Option<Entry>,
    loaded: Option<Target>,
    /// The mode of the last user's switch that succeeded, or the one that was selected at start.
    settled_mode: String,
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
        }
    }

    /// How many jobs may wait.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many jobs wait; the running one does not.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
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
                | Job::Custom { .. } => None,
            })
            .next()
            .unwrap_or(&self.settled_mode)
    }

    /// Puts a job at the end, and before a generation the switch that it needs: both or neither.
    pub fn submit(
        &mut self,
        job: Job,
        terms: Terms,
        mut new_id: impl FnMut() -> JobId,
    ) -> Result<Submitted, Refused> {
        let switch = match &job {
            Job::Generation { request, pipeline } => {
                let target = Target { mode: request.mode.clone(), pipeline: pipeline.clone() };
                (self.at_the_end().as_ref() != Some(&target)).then_some(Job::ModeSwitch {
                    mode: target.mode,
                    pipeline: target.pipeline,
                    asked_by: SwitchOrigin::Generation,
                    timeout_secs: None,
                })
            }
            Job::ModeSwitch { mode, pipeline, asked_by: SwitchOrigin::User, .. } => {
                let target = Target { mode: mode.clone(), pipeline: pipeline.clone() };
                if self.selects_without_a_switch(&target) {
                    return Err(Refused::AlreadyLoaded);
                }
                None
            }
            Job::ModeSwitch {
                asked_by: SwitchOrigin::Generation | SwitchOrigin::Reload, ..
            }
            | Job::Load { .. }
            | Job::Unload { .. }
            | Job::Custom { .. } => None,
        };
        if self.waiting.len() + usize::from(switch.is_some()) + 1 > self.limit {
            return Err(Refused::Full);
        }
        let held: usize = self.waiting.iter().map(|entry| source_bytes(&entry.job)).sum();
        let brought = source_bytes(&job);
        if brought > 0 && held + brought > MAX_SOURCE_BYTES {
            return Err(Refused::TooMuchToHold);
        }
        let mut entry = |job| Entry { id: new_id(), job, terms: terms.clone() };
        let submitted = Submitted { switch: switch.map(&mut entry), job: entry(job) };
        self.waiting.extend(submitted.switch.clone());
        self.waiting.push_back(submitted.job.clone());
        Ok(submitted)
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
        if !modes.modes.contains_key(&self.settled_mode) {
            self.settled_mode.clone_from(&modes.default_mode);
        }
        let is_superseded = self.waiting.back().is_some_and(|last| match &last.job {
            Job::ModeSwitch { mode, asked_by: SwitchOrigin::Reload, .. } => diff.touches(mode),
            Job::ModeSwitch { .. }
            | Job::Generation { .. }
            | Job::Load { .. }
            | Job::Unload { .. }
            | Job::Custom { .. } => false,
        });
        let superseded = if is_superseded { self.waiting.pop_back() } else { None };
        let there = self.at_the_end();
        let stale = there.filter(|there| is_superseded || diff.touches(&there.mode));
        let wanted = stale.as_ref().and_then(|there| {
            let mode = modes.modes.get(&there.mode);
            let mode = mode.or_else(|| modes.modes.get(&modes.default_mode))?;
            Some(Target { mode: mode.name.clone(), pipeline: mode.pipeline.clone() })
        });
        let switch = wanted.filter(|wanted| Some(wanted) != stale.as_ref()).map(|wanted| Entry {
            id: new_id(),
            job: Job::ModeSwitch {
                mode: wanted.mode,
                pipeline: wanted.pipeline,
                asked_by: SwitchOrigin::Reload,
                timeout_secs: None,
            },
            terms: Terms::default(),
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
    pub fn append(&mut self, entry: Entry) {
        self.waiting.push_back(entry);
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

    /// Makes the next job the running one, if none runs yet.
    pub fn start_next(&mut self) -> Option<&Entry> {
        if self.running.is_some() {
            return None;
        }
        self.running = self.waiting.pop_front();
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

    /// What will be loaded when all that waits has been done.
    fn at_the_end(&self) -> Option<Target> {
        let last = self.waiting.iter().rev().find_map(|entry| Target::of(&entry.job));
        last.or_else(|| self.at_the_front())
    }

    /// Whether a user's switch to that target needs no job: it is loaded, and nothing that waits
    /// or runs will change that. Where it was loaded for the sake of a generation that named it, to
    /// select it is all there is to do.
    fn selects_without_a_switch(&mut self, target: &Target) -> bool {
        let mut on_their_way = self.waiting.iter().chain(&self.running);
        let stays = on_their_way.all(|entry| match &entry.job {
            Job::Generation { .. } => Target::of(&entry.job).as_ref() == Some(target),
            Job::ModeSwitch { .. } | Job::Unload { .. } => false,
            Job::Load { .. } | Job::Custom { .. } => true,
        });
        let needless = stays && self.loaded.as_ref() == Some(target);
        if needless {
            self.settled_mode.clone_from(&target.mode);
        }
        needless
    }
}

/// Takes out the switches that stand in line for generations only and are needed by none: no
/// generation follows before the next switch, or its target is there already at that point.
/// `loaded` is what is there when the first entry's turn comes.
fn remove_needless_switches(waiting: &mut VecDeque<Entry>, loaded: Option<Target>) -> Vec<Entry> {
    let mut there = loaded;
    let mut removed = Vec::new();
    let mut behind = std::mem::take(waiting);
    while let Some(entry) = behind.pop_front() {
        let target = Target::of(&entry.job);
        if is_for_generations(&entry.job) && (target == there || !is_awaited(&behind)) {
            removed.push(entry);
        } else {
            there = target.or(there);
            waiting.push_back(entry);
        }
    }
    removed
}

fn source_bytes(job: &Job) -> usize {
    match job {
        Job::Generation { request, .. } => request.source.as_ref().map_or(0, Source::bytes),
        Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => 0,
    }
}

fn is_for_generations(job: &Job) -> bool {
    matches!(job, Job::ModeSwitch { asked_by: SwitchOrigin::Generation, .. })
}

/// Whether of the jobs behind a switch a generation comes before the next switch.
fn is_awaited(behind: &VecDeque<Entry>) -> bool {
    let next = behind.iter().map(|entry| &entry.job).find(|job| Target::of(job).is_some());
    matches!(next, Some(Job::Generation { .. }))
}
