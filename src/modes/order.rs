//! In what order work is done: the keys `scheduling`, `max_wait` and `fair`.

use super::{Scheduling, Time};

/// What the queue's order goes by; `queue::order` has the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub scheduling: Scheduling,
    /// After so long nothing that came later is done before a job any more.
    pub max_wait: Time,
    /// Whether clients take turns.
    pub fair: bool,
}

impl Default for Order {
    fn default() -> Self {
        Self { scheduling: Scheduling::Fifo, max_wait: Time::of_secs(30), fair: false }
    }
}
