//! What is in force and how it came to be: plain data, for who asks.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use super::diagnostic::{ConfigErrors, Diagnostic};
use crate::modes::ModesDiff;

/// What is in force and how it came to be, and what was refused.
#[derive(Debug, Clone)]
pub struct ConfigStatus {
    pub in_force: Revision,
    /// What the file in force gave reason to warn of.
    pub warnings: Arc<[Diagnostic]>,
    pub rejected: Option<Rejected>,
    pub reloads: BTreeMap<(Origin, ReloadOutcome), u64>,
}

/// A state of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    /// SHA-256 of its bytes, the first 16 hexadecimal digits.
    pub id: String,
    /// When it was read.
    pub at: SystemTime,
    pub by: Origin,
}

/// A state of the file that could not be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    /// `None` where it could not even be read.
    pub id: Option<String>,
    pub at: SystemTime,
    pub by: Origin,
    pub errors: ConfigErrors,
}

/// Who had the file read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Start,
    /// The file was seen to change.
    File,
    Signal,
    Api,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::File => "file",
            Self::Signal => "signal",
            Self::Api => "api",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReloadOutcome {
    Applied,
    /// Everything was as before.
    Unchanged,
    Rejected,
}

impl ReloadOutcome {
    pub const ALL: [Self; 3] = [Self::Applied, Self::Unchanged, Self::Rejected];

    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
        }
    }
}

/// What a successful reload did.
#[derive(Debug, Clone, PartialEq)]
pub struct ReloadReport {
    pub revision: String,
    pub diff: ModesDiff,
    pub warnings: Arc<[Diagnostic]>,
}

impl ConfigStatus {
    pub fn count(&mut self, by: Origin, outcome: ReloadOutcome) {
        *self.reloads.entry((by, outcome)).or_default() += 1;
    }
}
