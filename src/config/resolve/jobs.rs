//! The section `jobs`: what is kept of them.

use super::{
    memory::{max_bytes, table},
    parsed,
};
use crate::{
    config::reader::{Errors, Table},
    modes::{Jobs, Retention},
};

pub const JOBS_KEYS: [&str; 3] = ["journal", "max_attempts", "retention"];
pub const RETENTION_KEYS: [&str; 3] = ["max_age", "max_jobs", "max_gb"];

/// A wrong value is reported and stands as its default: nothing is made of it afterwards.
pub fn jobs(root: &Table, errors: &mut Errors) -> Jobs {
    let other = Jobs::default();
    let Some(table) = table(root, "jobs", &JOBS_KEYS, errors) else { return other };
    let max_attempts = table.get("max_attempts");
    let max_attempts =
        max_attempts.and_then(|field| field.whole_number(1..=Jobs::MAX_ATTEMPTS, errors));
    Jobs {
        journal: parsed(&table, "journal", errors).unwrap_or(other.journal),
        max_attempts: max_attempts.unwrap_or(other.max_attempts),
        retention: retention(&table, errors),
    }
}

fn retention(jobs: &Table, errors: &mut Errors) -> Retention {
    let other = Retention::default();
    let Some(table) = table(jobs, "retention", &RETENTION_KEYS, errors) else { return other };
    let max_jobs = table.get("max_jobs");
    let max_jobs = max_jobs.and_then(|field| field.whole_number(0..=Retention::MAX_JOBS, errors));
    Retention {
        max_age: parsed(&table, "max_age", errors).unwrap_or(other.max_age),
        max_jobs: max_jobs.unwrap_or(other.max_jobs),
        max_bytes: max_bytes(&table, errors).unwrap_or(other.max_bytes),
    }
}
