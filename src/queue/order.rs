//! Which of the waiting jobs is next. Functions of the line alone.
//!
//! **The line** stands in the order of priority, and within a priority in that of arrival. A job of
//! a high priority is put in behind its equals, before all that is lower; so `fifo` takes the first.
//!
//! **`affinity`** lets a generation for what is loaded overtake the others of its priority that
//! came before it. Where none is there, the first one goes; so what is loaded changes only for the
//! job that has waited longest, and, while all have one priority, at most as often as in `fifo`: each
//! change begins one of the runs that `fifo` has. Once that job has waited for `max_wait`, it is next
//! whatever is loaded. (It alone has to be looked at: those behind it have waited less.)
//!
//! **`fair`** lets the clients of a priority take turns: next is the first job of the one who was
//! served longest ago, or never. So each has its own jobs in their order, and none waits for more than
//! one job of each other client. With `affinity`, the job whose turn it is may be overtaken as the
//! first one is without `fair`: by generations for what is loaded, whose clients take turns among
//! themselves, until it has waited for `max_wait`. Of one client alone the order is the same as
//! without.
//!
//! **What a mode switch means in this:**
//! - One by a user or a reload, and whatever loads or unloads, is a *barrier*: it keeps its place
//!   among its equals, and nothing overtakes it. Somebody wants what is there to change after the
//!   work that was accepted before, and before the work that was accepted after.
//! - One that stands before a generation is no job of its own: it belongs to the generation, has its
//!   priority, and is there so that it can be seen, and fail for all that follow it. Where jobs
//!   change places, such switches are taken out where they have become needless and put in where
//!   they are missing ([`mend`]). Once it has begun, its generation is next: nobody gets between.

use std::collections::VecDeque;

use super::{Entry, Target, turns::Turns};
use crate::{
    job::{Job, JobId, SwitchOrigin, Terms},
    modes::{Order, Scheduling},
};

/// What became of the switches that belong to generations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mended {
    /// Nobody needs these any more.
    pub removed: Vec<Entry>,
    pub added: Vec<Entry>,
}

/// Where a job of that priority belongs: behind all of its own and of higher ones.
pub fn place_of(line: &VecDeque<Entry>, priority: i8) -> usize {
    // A switch may have been put in for a job that is elsewhere now.
    let is_before = |it: &Entry| it.terms.priority >= priority && !is_for_generations(&it.job);
    line.iter().rposition(is_before).map_or(0, |at| at + 1)
}

/// What decides who overtakes.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    pub order: Order,
    pub loaded: Option<&'a Target>,
    pub now_ms: u64,
    pub turns: &'a Turns,
}

/// The place of the job that is brought forward, if it is not the first one's turn.
pub fn overtaking(line: &VecDeque<Entry>, situation: Situation<'_>) -> Option<usize> {
    let Situation { order, loaded, now_ms, .. } = situation;
    if order.scheduling == Scheduling::Fifo && !order.fair {
        return None;
    }
    let jobs = line.iter().enumerate().filter(|(_, entry)| !is_for_generations(&entry.job));
    let (first, Entry { terms: Terms { priority, .. }, .. }) = jobs.clone().next()?;
    let equals =
        jobs.take_while(|(_, entry)| entry.terms.priority == *priority && !is_barrier(&entry.job));
    let (in_turn, job) = in_turn(equals.clone(), situation)?;
    let waited_ms = u128::from(now_ms.saturating_sub(job.arrived_ms));
    let may_be_overtaken = order.scheduling == Scheduling::Affinity
        && waited_ms < order.max_wait.duration().as_millis()
        && is_for_another(&job.job, loaded);
    let mut next = in_turn;
    if may_be_overtaken {
        let for_loaded = equals.filter(|(_, entry)| {
            matches!(entry.job, Job::Generation { .. }) && !is_for_another(&entry.job, loaded)
        });
        next = self::in_turn(for_loaded, situation).map_or(in_turn, |(at, _)| at);
    }
    (next != first).then_some(next)
}

/// Of jobs in their order the one whose turn it is.
fn in_turn<'e>(
    mut jobs: impl Iterator<Item = (usize, &'e Entry)>,
    Situation { order, turns, .. }: Situation<'_>,
) -> Option<(usize, &'e Entry)> {
    match order.fair {
        // By id: one that was brought forward may still stand at the front.
        true => jobs.min_by_key(|(_, entry)| (turns.last_of(&entry.terms.client), entry.id)),
        false => jobs.next(),
    }
}

/// Takes out the switches that belong to generations and are needed by none: no generation for what
/// they load follows before the next switch, or it is there already at that point. `loaded` is what
/// is there when the first entry's turn comes.
pub fn remove_needless_switches(line: &mut VecDeque<Entry>, loaded: Option<Target>) -> Vec<Entry> {
    let mut there = loaded;
    let mut removed = Vec::new();
    let mut behind = std::mem::take(line);
    while let Some(entry) = behind.pop_front() {
        let target = Target::of(&entry.job);
        if is_for_generations(&entry.job) && (target == there || !is_awaited(&target, &behind)) {
            removed.push(entry);
        } else {
            there = target.or(there);
            line.push_back(entry);
        }
    }
    removed
}

/// After a change of places: each generation has the switch before it that it needs, and no other
/// switch of that kind is there.
pub fn mend(
    line: &mut VecDeque<Entry>,
    loaded: Option<Target>,
    mut new_id: impl FnMut() -> JobId,
) -> Mended {
    let removed = remove_needless_switches(line, loaded.clone());
    let mut added = Vec::new();
    let mut there = loaded;
    for entry in std::mem::take(line) {
        let target = Target::of(&entry.job);
        if matches!(entry.job, Job::Generation { .. })
            && target != there
            && let Some(target) = &target
        {
            let job = target.clone().into_switch(SwitchOrigin::Generation);
            let terms = entry.terms.of_its_switch();
            let switch = Entry { id: new_id(), job, terms, arrived_ms: entry.arrived_ms };
            added.push(switch.clone());
            line.push_back(switch);
        }
        there = target.or(there);
        line.push_back(entry);
    }
    Mended { removed, added }
}

pub fn is_for_generations(job: &Job) -> bool {
    matches!(job, Job::ModeSwitch { asked_by: SwitchOrigin::Generation, .. })
}

fn is_barrier(job: &Job) -> bool {
    match job {
        Job::ModeSwitch { asked_by: SwitchOrigin::User | SwitchOrigin::Reload, .. }
        | Job::Load { .. }
        | Job::Unload { .. } => true,
        Job::ModeSwitch { asked_by: SwitchOrigin::Generation, .. }
        | Job::Generation { .. }
        | Job::Custom { .. }
        | Job::Upscale { .. } => false,
    }
}

/// Whether something else would have to be loaded for it.
fn is_for_another(job: &Job, loaded: Option<&Target>) -> bool {
    Target::of(job).is_some_and(|target| Some(&target) != loaded)
}

/// Whether of the jobs behind a switch a generation for its target comes before the next switch.
fn is_awaited(target: &Option<Target>, behind: &VecDeque<Entry>) -> bool {
    let next = behind.iter().map(|entry| &entry.job).find(|job| Target::of(job).is_some());
    next.is_some_and(|job| matches!(job, Job::Generation { .. }) && Target::of(job) == *target)
}
