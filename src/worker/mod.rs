//! The process that owns the device.
//!
//! - [`protocol`]: what daemon and child say to each other;
//! - [`supervisor`]: the daemon's side: a worker that comes back when it died;
//! - [`process`]: one such process: spawned, written to, read from, ended;
//! - `environment`: which of the daemon's variables it inherits;
//! - [`sandbox`]: what it may read, and what it may not do;
//! - [`child`]: the loop inside, around the engine. The only part that may use it.

pub mod child;
mod environment;
pub mod process;
pub mod protocol;
pub mod sandbox;
pub mod supervisor;
