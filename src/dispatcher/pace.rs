//! How long jobs take lately, for those who ask when to come back.

use std::time::Duration;

/// A mean over the jobs that were done, in which the recent ones count most.
#[derive(Debug, Default)]
pub struct Pace {
    mean_secs: Option<f64>,
}

impl Pace {
    /// A job was done and took that long.
    pub fn record(&mut self, took: Duration) {
        const WEIGHT: f64 = 0.2;
        let secs = took.as_secs_f64();
        let mean = self.mean_secs.unwrap_or(secs);
        self.mean_secs = Some(mean + WEIGHT * (secs - mean));
    }

    /// When a place in a full queue may be free, in whole seconds and at least one: as soon as
    /// one more job is done.
    pub fn retry_after_secs(&self) -> u64 {
        (self.mean_secs.unwrap_or(0.0).ceil() as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_jobs() {
        for (took, estimate) in
            [(&[][..], 1), (&[0.01], 1), (&[7.2], 8), (&[10.0, 10.0, 10.0], 10), (&[10.0, 0.0], 8)]
        {
            let mut pace = Pace::default();
            took.iter().for_each(|secs| pace.record(Duration::from_secs_f64(*secs)));
            assert_eq!(pace.retry_after_secs(), estimate, "{took:?}");
        }
    }
}
