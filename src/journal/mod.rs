//! What is written down, so that no job is lost that its caller was told is queued.
//!
//! Owns a SQLite file (`store`), the images beside it (`results`), and the threads that write both
//! (`writer`). Whatever is wrong with the file, no image is deleted for it (`opening`, `damage`), and
//! a lost index is made again from the images (`recover`). Whoever appends a [`Record`] goes on at
//! once; that it is on disk, fsync included, a [`Receipt`] says. Records that wait together are
//! written together, in the order in which they were appended.
//!
//! Where nothing can be written (the disk is full), a job that was to be accepted is refused; what
//! has happened to jobs that were accepted before is kept in memory and tried again until it is
//! written. Must not know the dispatcher: what it wants back with a receipt is its own, a `T`.

mod damage;
mod migrations;
mod opening;
pub mod private;
mod recover;
mod results;
mod rows;
mod store;
mod writer;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

pub use self::{
    recover::{Recovery, recover},
    results::Results,
    writer::Journal,
};
use crate::{
    job::{JobId, JobState},
    queue::Entry,
    worker::protocol::{DrawnImages, DrawnReport},
};

/// Something that happened to a job. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone)]
pub enum Record {
    Accepted(Box<Entry>),
    /// An attempt begins, the first one or another.
    Begun {
        id: JobId,
        attempts: u32,
        at_unix_ms: u64,
    },
    /// The daemon is stopped on purpose: the attempt does not count.
    PutBack {
        id: JobId,
        attempts: u32,
    },
    Ended {
        entry: Box<Entry>,
        ending: Box<Ending>,
        /// What is still to be saved of it.
        images: Option<Arc<DrawnImages>>,
    },
    /// Nobody is to know of them any more.
    Forgotten(Vec<JobId>),
    /// They are known, but their images are not kept any more.
    ImagesForgotten(Vec<JobId>),
    /// Its webhook was told how it ended, or never will be.
    Notified(JobId),
    /// Nothing; when it is "written", all is that was appended before.
    Mark,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// A terminal one.
    pub state: JobState,
    pub finished_unix_ms: u64,
    /// When its drawing began, of the last attempt.
    pub drawing_unix_ms: Option<u64>,
    /// What a custom job returned.
    pub result: Option<Value>,
    /// How the images of a generation came about.
    pub report: Option<DrawnReport>,
    /// What its images take on disk; 0 where none are there.
    pub image_bytes: u64,
}

/// What became of a record.
#[derive(Debug)]
pub enum Receipt<T> {
    Written {
        token: T,
        /// What the job's images take on disk.
        image_bytes: u64,
    },
    /// A job was not accepted; anything else will be written as soon as that is possible.
    Refused(T),
    /// Everything is on disk that could not be written.
    Recovered,
}

/// A job of an earlier daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    pub entry: Entry,
    pub attempts: u32,
    pub started_unix_ms: Option<u64>,
    /// `None`: it is to be done.
    pub ending: Option<Ending>,
    /// Whether its webhook knows how it ended, or never will.
    pub notified: bool,
}

/// A journal that is open, and what it says.
pub struct Opened<T> {
    pub journal: Journal<T>,
    pub receipts: UnboundedReceiver<Receipt<T>>,
    /// In the order in which they were accepted.
    pub remembered: Vec<Remembered>,
    pub results: Option<Results>,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal '{}' cannot be used: {error}", path.display())]
    Unusable { path: PathBuf, error: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "the journal '{}' was written by a newer diffused (its version is {found}, this one knows \
         {known}); use that one, or another --state-dir",
        path.display()
    )]
    Newer { path: PathBuf, found: usize, known: usize },
}
