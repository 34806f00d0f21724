//! Who gets a place, who leaves for it, and who has been too slow. Pure.

use std::time::{Duration, Instant};

/// To send the head of a request, from its first byte on.
const HEAD: Duration = Duration::from_secs(15);
/// Between requests, and before the first.
const IDLE: Duration = Duration::from_secs(75);
/// Without reading any of an answer that is waiting to be sent: less than about 64 KiB, in which the
/// socket reports what has been read. How long a whole answer may take, `http/sending.rs` says.
const STALL: Duration = Duration::from_secs(30);
/// In a reserved place, all in all.
const RESERVED: Duration = Duration::from_secs(5);
/// Nobody leaves for another before that: a request may be on its way.
pub const GRACE: Duration = Duration::from_millis(10);

/// The descriptors that journal, worker, configuration and commands need.
const OWN_DESCRIPTORS: u64 = 64;
/// The attempts that `webhook` makes at a time, each with a socket.
const WEBHOOKS: u64 = 128;
/// A connection's own, and the file that is its answer.
const PER_CONNECTION: u64 = 2;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub places: usize,
    reserved: usize,
}

impl Limits {
    pub fn new(wanted: u32, descriptors: u64) -> Self {
        let reserved = (descriptors / 16).clamp(4, 32);
        let left = descriptors.saturating_sub(OWN_DESCRIPTORS + WEBHOOKS) / PER_CONNECTION;
        let places = left.saturating_sub(reserved).max(descriptors / 8).min(wanted.into());
        Self { places: places as usize, reserved: reserved as usize }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Ordinary,
    /// For one request of a newcomer while all others are busy.
    Reserved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of the next request has arrived.
    Waiting,
    /// Some of its head has.
    Head,
    /// It is being read, worked on or answered.
    Request,
}

/// A connection at a glance.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub place: Place,
    pub opened: Instant,
    pub phase: Phase,
    /// When the phase began.
    pub since: Instant,
    /// Since when the peer has taken nothing of what there is to send.
    pub stalled: Option<Instant>,
}

impl Seen {
    pub fn is_overdue(&self, now: Instant) -> bool {
        let is_over = |since: Instant, limit: Duration| now >= since + limit;
        let is_too_long = match (self.stalled, self.phase) {
            (Some(since), _) => is_over(since, STALL),
            (None, Phase::Waiting) => is_over(self.since, IDLE),
            (None, Phase::Head) => is_over(self.since, HEAD),
            (None, Phase::Request) => false, // drawing takes as long as it takes
        };
        is_too_long || (self.place == Place::Reserved && is_over(self.opened, RESERVED))
    }

    /// An answer on its way is none: a slow line takes minutes for a large image.
    fn is_idle(&self) -> bool {
        self.phase != Phase::Request && self.stalled.is_none()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Admission<Id> {
    Free(Place),
    Instead {
        of: Id,
        place: Place,
    },
    /// All that could leave are too young.
    Later,
}

/// The place of a newcomer. An idle connection leaves for it; a busy one does so in a reserved place
/// alone, where all could be kept busy otherwise. `has_waited`: the newcomer has been told
/// [`Admission::Later`] for long enough, and is not told so again.
pub fn admit<Id>(
    open: impl Iterator<Item = (Id, Seen)> + Clone,
    limits: Limits,
    has_waited: bool,
    now: Instant,
) -> Admission<Id> {
    for (place, limit) in [(Place::Ordinary, limits.places), (Place::Reserved, limits.reserved)] {
        let there = open.clone().filter(|(_, seen)| seen.place == place);
        if there.clone().count() < limit {
            return Admission::Free(place);
        }
        if let Some((of, seen)) = longest_idle(there) {
            if now >= seen.since + GRACE {
                return Admission::Instead { of, place };
            } else if !has_waited {
                return Admission::Later;
            }
        }
    }
    let reserved = open.filter(|(_, seen)| has_waited && seen.place == Place::Reserved);
    let oldest = reserved.min_by_key(|(_, seen)| seen.opened);
    oldest.map_or(Admission::Later, |(of, _)| Admission::Instead { of, place: Place::Reserved })
}

pub fn longest_idle<Id>(open: impl Iterator<Item = (Id, Seen)>) -> Option<(Id, Seen)> {
    open.filter(|(_, seen)| seen.is_idle()).min_by_key(|(_, seen)| seen.since)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { places: 2, reserved: 1 };

    /// A connection in that phase for so many milliseconds before `now`.
    fn seen(place: Place, phase: Phase, ms: u64, now: Instant) -> Seen {
        let since = now - Duration::from_millis(ms);
        Seen { place, opened: since, phase, since, stalled: None }
    }

    #[test]
    fn who_is_idle_longest_leaves_and_who_is_busy_stays() {
        use Admission::{Free, Instead, Later};
        use Phase::{Head, Request, Waiting};
        use Place::{Ordinary, Reserved};
        let now = Instant::now() + Duration::from_secs(3600);
        for (open, expected) in [
            (&[][..], Free(Ordinary)),
            (&[(Ordinary, Waiting, 99)], Free(Ordinary)),
            (
                &[(Ordinary, Waiting, 98), (Ordinary, Waiting, 99)],
                Instead { of: 1, place: Ordinary },
            ),
            (&[(Ordinary, Head, 99), (Ordinary, Waiting, 98)], Instead { of: 0, place: Ordinary }),
            (&[(Ordinary, Request, 99), (Ordinary, Head, 98)], Instead { of: 1, place: Ordinary }),
            // It may be about to send its request.
            (&[(Ordinary, Request, 99), (Ordinary, Waiting, 9)], Later),
            (&[(Ordinary, Request, 99), (Ordinary, Request, 99)], Free(Reserved)),
            (
                &[(Ordinary, Request, 99), (Ordinary, Request, 99), (Reserved, Waiting, 10)],
                Instead { of: 2, place: Reserved },
            ),
            (&[(Ordinary, Request, 99), (Ordinary, Request, 99), (Reserved, Waiting, 9)], Later),
            (&[(Ordinary, Request, 99), (Ordinary, Request, 99), (Reserved, Request, 99)], Later),
            (&[(Ordinary, Request, 99), (Reserved, Waiting, 99)], Free(Ordinary)),
        ] {
            let there: Vec<_> =
                open.iter().map(|(p, phase, ms)| seen(*p, *phase, *ms, now)).collect();
            let admission = admit(there.iter().copied().enumerate(), LIMITS, false, now);
            assert_eq!(admission, expected, "{open:?}");
        }
        // After a while, who is young is no reason to wait.
        let young = [(Ordinary, Waiting), (Ordinary, Request), (Reserved, Waiting)];
        let young = young.map(|(place, phase)| seen(place, phase, 9, now));
        for (there, has_waited, expected) in [
            (2, false, Later),
            (2, true, Free(Reserved)),
            (3, true, Instead { of: 2, place: Reserved }),
        ] {
            let there = young.into_iter().take(there).enumerate();
            assert_eq!(admit(there, LIMITS, has_waited, now), expected);
        }
        // Those in reserved places leave however busy they are, the oldest first.
        let mut busy =
            [Ordinary, Ordinary, Reserved, Reserved].map(|it| seen(it, Request, 99, now));
        busy[2].stalled = Some(now);
        busy[3].opened -= Duration::from_millis(1);
        let limits = Limits { places: 2, reserved: 2 };
        for (has_waited, expected) in [(false, Later), (true, Instead { of: 3, place: Reserved })] {
            assert_eq!(admit(busy.into_iter().enumerate(), limits, has_waited, now), expected);
        }
        // Both have been answered, and one has not read all of it.
        let mut there = [Waiting, Waiting].map(|phase| seen(Ordinary, phase, 99, now));
        there[0].stalled = Some(now);
        let admission = admit(there.into_iter().enumerate(), LIMITS, false, now);
        assert_eq!(admission, Instead { of: 1, place: Ordinary });
    }

    #[test]
    fn each_phase_has_its_time_and_a_request_has_none() {
        let now = Instant::now() + Duration::from_secs(3600);
        for (place, phase, stalled_ms, ms, expected) in [
            (Place::Ordinary, Phase::Waiting, None, 74_999, false),
            (Place::Ordinary, Phase::Waiting, None, 75_000, true),
            (Place::Ordinary, Phase::Head, None, 14_999, false),
            (Place::Ordinary, Phase::Head, None, 15_000, true),
            (Place::Ordinary, Phase::Waiting, Some(29_999), 3_000_000, false),
            (Place::Ordinary, Phase::Request, None, 3_000_000, false),
            (Place::Ordinary, Phase::Request, Some(29_999), 3_000_000, false),
            (Place::Ordinary, Phase::Request, Some(30_000), 3_000_000, true),
            (Place::Reserved, Phase::Request, None, 4_999, false),
            (Place::Reserved, Phase::Request, None, 5_000, true),
        ] {
            let stalled = stalled_ms.map(|ms| now - Duration::from_millis(ms));
            let seen = Seen { stalled, ..seen(place, phase, ms, now) };
            assert_eq!(seen.is_overdue(now), expected, "{seen:?}");
        }
    }

    #[test]
    fn descriptors_are_left_for_everything_else() {
        for (wanted, descriptors, places, reserved) in [
            (512, 1_048_576, 512, 32),
            (10_000, 20_256, 10_000, 32),
            (512, 1024, 384, 32),
            (10_000, 1024, 384, 32),
            (512, 256, 32, 16),
            (512, 64, 8, 4),
            (1, 64, 1, 4),
        ] {
            let limits = Limits::new(wanted, descriptors);
            assert_eq!(limits, Limits { places, reserved }, "{wanted} of {descriptors}");
        }
    }
}
