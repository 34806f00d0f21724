//! Whether the worker has hung. Pure: time is told to it.
//!
//! Two rules, since either alone misses half of the cases. *Silence*: no frame of any kind arrives,
//! not even the heartbeat of the worker's own thread, so the whole process is stopped, swapped out
//! or stuck in the kernel. *No progress*: the process lives, but the engine's thread has not
//! finished a step, tile or tensor for much longer than it ever takes.
//!
//! Time counts only while the daemon itself runs: a tick that comes late (after a suspend, or with
//! both processes stopped) counts as one tick.

use std::time::Duration;

/// The worker's current task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Idle,
    /// The process opens its device.
    Starting,
    /// Pipelines come or go.
    Loading,
    /// Images are drawn or enlarged. `longest_step` is zero before the first measurement.
    Drawing {
        longest_step: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Well,
    /// Heartbeats are missing, but not yet for long enough to replace the worker.
    Quiet,
    Silent(Duration),
    Stalled(Duration),
}

#[derive(Debug)]
pub struct Watchdog {
    limit: Duration,
    /// A frame has arrived from this process.
    heard: bool,
    silent: Duration,
    stalled: Duration,
}

impl Watchdog {
    pub const TICK: Duration = Duration::from_millis(500);

    /// A tick counts no more than this, however late it comes.
    const LONGEST_TICK: Duration = Duration::from_secs(1);

    /// Two missed heartbeats at least.
    const SHORTEST_QUIET: Duration = Duration::from_secs(2);

    /// How long a process may take to say something at all, at least.
    const FIRST_FRAME: Duration = Duration::from_secs(300);

    /// For everything but drawing: a load reports progress for each tensor, and the slowest network
    /// file system delivers one in this time.
    const NO_PROGRESS: Duration = Duration::from_secs(600);

    /// For a first step of unknown length: many large images on a slow CPU.
    const NO_FIRST_STEP: Duration = Duration::from_secs(3600);

    /// Steps of one job differ (encoding and decoding count with them), but not by this.
    const STEPS: u32 = 20;

    pub fn new(limit: Duration) -> Self {
        Self { limit, heard: false, silent: Duration::ZERO, stalled: Duration::ZERO }
    }

    /// There is a new process, or none.
    pub fn reset(&mut self) {
        *self = Self::new(self.limit);
    }

    /// A frame has arrived.
    pub fn heard(&mut self) {
        self.heard = true;
        self.silent = Duration::ZERO;
    }

    /// The engine has finished something.
    pub fn progressed(&mut self) {
        self.stalled = Duration::ZERO;
    }

    /// Called about every [`Self::TICK`] while there is a process.
    pub fn tick(&mut self, elapsed: Duration, activity: Activity) -> Verdict {
        let elapsed = elapsed.min(Self::LONGEST_TICK);
        self.silent += elapsed;
        self.stalled += elapsed;
        if activity == Activity::Idle {
            self.stalled = Duration::ZERO;
        }
        if self.silent >= self.silence_limit() {
            Verdict::Silent(self.silent)
        } else if self.stalled >= progress_limit(activity) {
            Verdict::Stalled(self.stalled)
        } else if self.heard && self.silent >= (self.limit / 3).max(Self::SHORTEST_QUIET) {
            Verdict::Quiet
        } else {
            Verdict::Well
        }
    }

    /// The first frame may take longer: libraries of gigabytes are read from a cold disk before it.
    fn silence_limit(&self) -> Duration {
        if self.heard { self.limit } else { Self::FIRST_FRAME.max(4 * self.limit) }
    }
}

/// A job that the worker was told to stop. It looks between steps, tiles and tensors only.
#[derive(Debug, Clone, Copy)]
pub struct Stopping {
    pub longest_step: Duration,
    /// How long jobs like it take as a whole; zero before the first of them.
    pub usual: Duration,
    /// The steps of an image are done.
    pub is_decoding: bool,
}

impl Stopping {
    /// How long the worker has for it before it is killed, `least` at least. A healthy one is done by
    /// then: killing it would only have everything loaded again.
    pub fn grace(self, least: Duration) -> Duration {
        let Self { longest_step, usual, is_decoding } = self;
        let decoding = match is_decoding {
            true => progress_limit(Activity::Drawing { longest_step }),
            false => Duration::ZERO,
        };
        least.max(2 * longest_step).max(usual).max(decoding)
    }
}

fn progress_limit(activity: Activity) -> Duration {
    match activity {
        Activity::Idle | Activity::Starting | Activity::Loading => Watchdog::NO_PROGRESS,
        Activity::Drawing { longest_step: Duration::ZERO } => Watchdog::NO_FIRST_STEP,
        Activity::Drawing { longest_step } => {
            Watchdog::NO_PROGRESS.max(Watchdog::STEPS * longest_step)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Ticks every half second until the verdict is another than `Well`; that many seconds.
    fn first_verdict(watchdog: &mut Watchdog, activity: Activity, beats: bool) -> (u64, Verdict) {
        for tick in 1..100_000 {
            if beats {
                watchdog.heard();
            }
            let verdict = watchdog.tick(Watchdog::TICK, activity);
            if verdict != Verdict::Well {
                return (tick / 2, verdict);
            }
        }
        (0, Verdict::Well)
    }

    #[test]
    fn silence_and_lack_of_progress_have_their_limits() {
        let drawing = |longest_step| Activity::Drawing { longest_step };
        let stalled = |limit: u64| (limit, Verdict::Stalled(secs(limit)));
        for (activity, beats, expected) in [
            (Activity::Idle, false, (5, Verdict::Quiet)),
            (Activity::Loading, false, (5, Verdict::Quiet)),
            (Activity::Idle, true, (0, Verdict::Well)),
            (Activity::Starting, true, stalled(600)),
            (Activity::Loading, true, stalled(600)),
            (drawing(secs(0)), true, stalled(3600)),
            (drawing(secs(1)), true, stalled(600)),
            (drawing(secs(86)), true, stalled(1720)),
        ] {
            let mut watchdog = Watchdog::new(secs(15));
            watchdog.heard();
            assert_eq!(first_verdict(&mut watchdog, activity, beats), expected, "{activity:?}");
        }
    }

    #[test]
    fn a_quiet_worker_becomes_a_silent_one_and_any_frame_makes_it_well() {
        let mut watchdog = Watchdog::new(secs(3));
        watchdog.heard();
        let ticks = |watchdog: &mut Watchdog, count: u32| {
            (0..count).map(|_| watchdog.tick(Watchdog::TICK, Activity::Idle)).last().unwrap()
        };
        assert_eq!(ticks(&mut watchdog, 3), Verdict::Well);
        assert_eq!(ticks(&mut watchdog, 1), Verdict::Quiet);
        watchdog.heard();
        assert_eq!(ticks(&mut watchdog, 5), Verdict::Quiet);
        assert_eq!(ticks(&mut watchdog, 1), Verdict::Silent(secs(3)));
        watchdog.reset();
        // Before its first frame it has much longer, and is not ready anyway.
        assert_eq!(ticks(&mut watchdog, 599), Verdict::Well);
        assert_eq!(ticks(&mut watchdog, 1), Verdict::Silent(secs(300)));
        let mut patient = Watchdog::new(secs(100));
        assert_eq!(ticks(&mut patient, 799), Verdict::Well);
        assert_eq!(ticks(&mut patient, 1), Verdict::Silent(secs(400)));
    }

    #[test]
    fn a_suspended_daemon_does_not_count_its_absence() {
        let mut watchdog = Watchdog::new(secs(15));
        watchdog.heard();
        let drawing = Activity::Drawing { longest_step: secs(1) };
        assert_eq!(watchdog.tick(secs(36_000), drawing), Verdict::Well);
        watchdog.heard();
        watchdog.progressed();
        assert_eq!(watchdog.tick(secs(36_000), drawing), Verdict::Well);
    }

    #[test]
    fn a_worker_has_time_to_finish_what_it_cannot_interrupt() {
        for (longest_step, usual, is_decoding, expected) in [
            (0, 0, false, 30),
            (20, 0, false, 40),
            (20, 300, false, 300),
            (1, 0, true, 600),
            (40, 0, true, 800),
            (1, 900, true, 900),
        ] {
            let (longest_step, usual) = (secs(longest_step), secs(usual));
            let stopping = Stopping { longest_step, usual, is_decoding };
            assert_eq!(stopping.grace(secs(30)), secs(expected), "{stopping:?}");
        }
    }

    #[test]
    fn progress_starts_the_count_again() {
        let mut watchdog = Watchdog::new(secs(15));
        for _ in 0..1199 {
            watchdog.heard();
            assert_eq!(watchdog.tick(Watchdog::TICK, Activity::Loading), Verdict::Well);
        }
        watchdog.progressed();
        watchdog.heard();
        assert_eq!(watchdog.tick(Watchdog::TICK, Activity::Loading), Verdict::Well);
    }
}
