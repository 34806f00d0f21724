//! How long a delivery waits for its next attempt. Pure.

use std::time::Duration;

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(600);

/// After that many attempts (at least one), the first of which is followed by `first`: twice as long
/// each time, up to ten minutes. Of that between one half and all, by `random`, so that those who
/// failed together do not come back together.
pub fn wait(attempts: u32, first: Duration, random: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let whole = first.saturating_mul(1 << doublings).min(LONGEST);
    let share = f64::from(random) / f64::from(u32::MAX);
    whole.mul_f64(0.5 + 0.5 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        for (attempts, first_secs, random, expected_ms) in [
            (1, 1, u32::MAX, 1000),
            (1, 1, 0, 500),
            (2, 1, u32::MAX, 2000),
            (4, 1, 0, 4000),
            (4, 3, u32::MAX, 24_000),
            (10, 1, u32::MAX, 512_000),
            (11, 1, u32::MAX, 600_000),
            (11, 1, 0, 300_000),
            (u32::MAX, 1, u32::MAX, 600_000),
            (1, 4_000_000, u32::MAX, 600_000),
        ] {
            let waited = wait(attempts, Duration::from_secs(first_secs), random);
            assert_eq!(waited.as_millis(), expected_ms, "{attempts} {first_secs} {random}");
        }
    }
}
