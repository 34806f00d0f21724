//! One line a while in the log for what clients can cause without end.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lets one event through in each interval, and counts those that it holds back.
pub struct Throttle {
    interval: Duration,
    state: Mutex<State>,
}

struct State {
    passed: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(State { passed: None, held_back: 0 }) }
    }

    /// For an event that passes: how many were held back since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.passed.is_some_and(|passed| now < passed + self.interval) {
            state.held_back += 1;
            return None;
        }
        state.passed = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_in_each_interval_and_the_others_are_counted() {
        let throttle = Throttle::new(Duration::from_secs(1));
        let began = Instant::now();
        let passed: Vec<_> = [0, 1, 999, 1000, 1500, 2500, 2600]
            .into_iter()
            .map(|ms| throttle.pass(began + Duration::from_millis(ms)))
            .collect();
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1), None]);
    }
}
