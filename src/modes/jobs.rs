//! What is kept of jobs: the keys `journal` and `max_attempts`, and the section `retention`.

use super::{Switch, Time};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jobs {
    /// Whether jobs are written down that somebody was told are queued.
    pub journal: Switch,
    /// How often a job is begun under which the worker or the daemon dies.
    pub max_attempts: u32,
    pub retention: Retention,
}

impl Jobs {
    /// More is a mistake, here and below.
    pub const MAX_ATTEMPTS: u32 = 100;
}

impl Default for Jobs {
    fn default() -> Self {
        Self { journal: Switch::On, max_attempts: 2, retention: Retention::default() }
    }
}

/// How long jobs are known that have ended, and their images kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retention {
    pub max_age: Time,
    /// So many jobs, the newest ones.
    pub max_jobs: u32,
    /// What images and records may take together; the oldest images go first, before their jobs.
    pub max_bytes: u64,
}

impl Retention {
    pub const MAX_JOBS: u32 = 1_000_000;
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_age: Time::of_secs(7 * 86_400), max_jobs: 10_000, max_bytes: 10 << 30 }
    }
}
