//! The section `jobs`: what is kept of them.

use super::{memory::table, parsed};
use crate::{
    config::reader::{Errors, Table},
    modes::{Jobs, Retention, bytes_of_gb},
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
    let max_bytes = table.get("max_gb").and_then(|field| {
        let (gb, max) = (field.number(errors)?, Retention::MAX_GB);
        if !(0.0..=max).contains(&gb) {
            field.error(errors, format!("{gb} is not between 0 and {max}"));
            return None;
        }
        Some(bytes_of_gb(gb))
    });
    Retention {
        max_age: parsed(&table, "max_age", errors).unwrap_or(other.max_age),
        max_jobs: max_jobs.unwrap_or(other.max_jobs),
        max_bytes: max_bytes.unwrap_or(other.max_bytes),
    }
}
