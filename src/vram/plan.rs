//! Which pipelines leave, and when: pure functions over plain data, with no clock and no log.

use super::ledger::{PipelineId, Segment, shares};
use crate::modes::Eviction;

/// A loaded pipeline, as far as it matters here.
#[derive(Debug, Clone, PartialEq)]
pub struct Resident {
    pub id: PipelineId,
    pub standing: Standing,
    /// No mode declares it, whatever its standing: a request's own LoRAs made it.
    pub of_request: bool,
    /// In milliseconds of any clock, as `now_ms`.
    pub last_used_ms: u64,
    /// What it would take to have it back.
    pub load_ms: u64,
}

/// How well a pipeline's place is founded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// No mode has it any more: it leaves first.
    Unwanted,
    /// No mode declares it: a request's own LoRAs made it. It leaves before those that one declares.
    OneOff,
    /// It leaves as the policy says.
    Free,
    /// The current mode's. It leaves only for what takes its place, and only if nothing else makes
    /// room enough.
    Active,
    /// Pinned: it stays.
    Pinned,
}

/// What is to be loaded, beside what is.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    pub residents: &'a [Resident],
    pub new: PipelineId,
    /// Whether a request's own LoRAs make it.
    pub of_request: bool,
    /// All that would be held, `new` among the users.
    pub segments: &'a [Segment],
    /// What reading takes beside the weights.
    pub working_bytes: u64,
    /// What drawing took beside them lately. There is to be room for it as well, as far as there
    /// can be without refusing anything.
    pub drawing_bytes: u64,
    /// Whether it becomes the active one.
    pub takes_over: bool,
    pub now_ms: u64,
}

/// What holds all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub eviction: Eviction,
    /// How many pipelines.
    pub max_models: Option<u32>,
    /// How many of them that requests' LoRAs made.
    pub max_request_pipelines: u32,
    /// How many bytes of weights.
    pub weights_bytes: u64,
}

/// What leaves for a pipeline that is to be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Before it is read: there is no room for both. (What it shares with the new one stays.)
    pub before: Vec<PipelineId>,
    /// Once it is loaded: there are too many.
    pub after: Vec<PipelineId>,
}

/// Why there is no plan. Nothing leaves then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// By itself it is larger than what there is.
    TooLarge { needed_bytes: u64, available_bytes: u64 },
    /// It would fit, but not beside those that stay.
    BesideOthers { needed_bytes: u64, available_bytes: u64 },
    /// As many pipelines as may be loaded are those that stay.
    TooMany { max_models: u32 },
}

/// What leaves so that the wish can be fulfilled: as few as the policy's order allows, nobody who
/// could have stayed.
pub fn plan(wish: &Wish<'_>, limits: &Limits) -> Result<Plan, NoRoom> {
    let roomy = wish.working_bytes.max(wish.drawing_bytes);
    plan_beside(roomy, wish, limits).or_else(|_| plan_beside(wish.working_bytes, wish, limits))
}

/// The same, with so much left free beside the weights.
fn plan_beside(free_bytes: u64, wish: &Wish<'_>, limits: &Limits) -> Result<Plan, NoRoom> {
    let needed = |gone: &[PipelineId]| {
        let held = wish.segments.iter().filter(|segment| {
            segment.users.iter().any(|user| !gone.contains(user)) || segment.users.is_empty()
        });
        held.map(|segment| segment.bytes).sum::<u64>().saturating_add(free_bytes)
    };
    let fits = |gone: &[PipelineId]| needed(gone) <= limits.weights_bytes;
    let leaving = in_order(wish.residents, wish.segments, limits.eviction, wish.now_ms);
    let active = wish.residents.iter().filter(|resident| resident.standing == Standing::Active);
    let active = active.map(|resident| resident.id).filter(|_| wish.takes_over);

    let mut before = Vec::new();
    for id in leaving.iter().copied().chain(active) {
        if fits(&before) {
            break;
        }
        before.push(id);
    }
    if !fits(&before) {
        let everybody: Vec<_> = wish.residents.iter().map(|resident| resident.id).collect();
        let available_bytes = limits.weights_bytes;
        return Err(match needed(&everybody) {
            needed_bytes if needed_bytes > available_bytes => {
                NoRoom::TooLarge { needed_bytes, available_bytes }
            }
            _ => NoRoom::BesideOthers { needed_bytes: needed(&before), available_bytes },
        });
    }
    // Those who went first may not have been needed: a small one before a large one.
    for id in before.clone().into_iter().rev() {
        let without: Vec<_> = before.iter().copied().filter(|other| *other != id).collect();
        if fits(&without) {
            before = without;
        }
    }
    let after = too_many(wish, limits, &before)?;
    Ok(Plan { before, after })
}

/// Those who leave once the new one is there. The active one has lost its place by then.
fn too_many(
    wish: &Wish<'_>,
    limits: &Limits,
    before: &[PipelineId],
) -> Result<Vec<PipelineId>, NoRoom> {
    let remaining = wish.residents.iter().filter(|resident| !before.contains(&resident.id));
    let remaining: Vec<Resident> = remaining
        .cloned()
        .map(|resident| match resident.standing {
            Standing::Active if wish.takes_over => {
                let standing = if resident.of_request { Standing::OneOff } else { Standing::Free };
                Resident { standing, ..resident }
            }
            _ => resident,
        })
        .collect();
    let mut after = too_many_of_requests(&remaining, wish, limits);
    let Some(max_models) = limits.max_models else { return Ok(after) };
    let excess = (remaining.len() + 1).saturating_sub(max_models as usize);
    let in_order = in_order(&remaining, wish.segments, limits.eviction, wish.now_ms);
    let others: Vec<_> = in_order.into_iter().filter(|id| !after.contains(id)).collect();
    let missing = excess.saturating_sub(after.len());
    if others.len() < missing {
        return Err(NoRoom::TooMany { max_models });
    }
    after.extend(others.into_iter().take(missing));
    Ok(after)
}

/// Requests make any number of pipelines, so those of them that were used least recently leave
/// beyond a bound, whatever room there is. No request is refused for it.
fn too_many_of_requests(
    remaining: &[Resident],
    wish: &Wish<'_>,
    limits: &Limits,
) -> Vec<PipelineId> {
    let made: Vec<Resident> = remaining.iter().filter(|it| it.of_request).cloned().collect();
    let count = made.len() + usize::from(wish.of_request);
    let excess = count.saturating_sub(limits.max_request_pipelines as usize);
    let mut leaving = in_order(&made, wish.segments, Eviction::Lru, wish.now_ms);
    leaving.truncate(excess);
    leaving
}

/// Those who may leave, the first one first. Where times are equal, the order given counts.
pub fn in_order(
    residents: &[Resident],
    segments: &[Segment],
    eviction: Eviction,
    now_ms: u64,
) -> Vec<PipelineId> {
    let mut leaving: Vec<&Resident> = residents
        .iter()
        .filter(|resident| match resident.standing {
            Standing::Unwanted | Standing::OneOff | Standing::Free => true,
            Standing::Active | Standing::Pinned => false,
        })
        .collect();
    match eviction {
        // Ids grow: the smaller one was loaded earlier.
        Eviction::Fifo => leaving.sort_by_key(|resident| resident.id),
        Eviction::Lru => leaving.sort_by_key(|resident| resident.last_used_ms),
        Eviction::MemoryPressure => leaving.sort_by(|a, b| {
            let pressure = |resident| pressure(resident, segments, now_ms);
            pressure(b).total_cmp(&pressure(a))
        }),
    }
    leaving.sort_by_key(|resident| resident.standing);
    leaving.into_iter().map(|resident| resident.id).collect()
}

/// What is won by an eviction over what it risks: `own bytes · idle time ÷ load time`. Bytes that
/// others share are not won. The longer nobody has asked for it, the less likely somebody will
/// (this is GreedyDual-Size's cost over size, with idleness for its age; Cao & Irani, 1997).
fn pressure(resident: &Resident, segments: &[Segment], now_ms: u64) -> f64 {
    let idle_ms = now_ms.saturating_sub(resident.last_used_ms);
    let own_bytes = shares(segments, resident.id).own_bytes;
    own_bytes as f64 * idle_ms as f64 / resident.load_ms.max(1) as f64
}

/// Those that nobody has used for so long, and those that no mode has. The active one too: what is
/// idle is to give its memory back. `None` of a time: only the latter.
pub fn idle(residents: &[Resident], idle_ms: Option<u64>, now_ms: u64) -> Vec<PipelineId> {
    let leaves = |resident: &&Resident| match resident.standing {
        Standing::Pinned => false,
        Standing::Unwanted => true,
        Standing::OneOff | Standing::Free | Standing::Active => {
            idle_ms.is_some_and(|idle_ms| now_ms.saturating_sub(resident.last_used_ms) >= idle_ms)
        }
    };
    residents.iter().filter(leaves).map(|resident| resident.id).collect()
}

#[cfg(test)]
mod tests;
