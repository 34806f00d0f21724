//! Webhooks as far as they are declared: the section `webhooks`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Time;

/// What nobody is to read in a log: its `Debug` says nothing. It serializes as it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How webhooks are delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhooks {
    /// Signs those whose job names no secret of its own.
    pub secret: Option<Secret>,
    /// Whether they may go to addresses that are not public.
    pub allow_private: bool,
    /// How often a delivery is tried.
    pub max_attempts: u32,
    /// Of one attempt, all in all.
    pub timeout: Time,
    /// How long the second attempt waits for, about; each further one twice as long.
    pub first_retry: Time,
}

impl Webhooks {
    pub const MAX_ATTEMPTS: u32 = 100;
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            secret: None,
            allow_private: false,
            max_attempts: 8,
            timeout: Time::of_secs(10),
            first_retry: Time::of_secs(1),
        }
    }
}
