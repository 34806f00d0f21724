//! What time it is.

use std::time::{Instant, SystemTime};

use super::limits::Now;

/// The time of day at the start, and what a clock says that is never set back.
pub struct Clock {
    started_unix_ms: u64,
    started: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { started_unix_ms: unix_ms(), started: Instant::now() }
    }
}

impl Clock {
    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.started_unix_ms + self.started.elapsed().as_millis() as u64
    }

    /// What both clocks say.
    pub fn now(&self) -> Now {
        Now { unix_ms: unix_ms(), steady_ms: self.now_ms() }
    }
}

/// Milliseconds since the Unix epoch, by the machine's clock.
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.map_or(0, |duration| duration.as_millis() as u64)
}
