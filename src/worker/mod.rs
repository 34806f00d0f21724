//! The process that owns the device.
//!
//! - [`protocol`]: what daemon and child say to each other;
//! - [`process`]: the daemon's side: spawn, supervise, restart;
//! - [`child`]: the loop inside, around the engine. The only part that may use it.

pub mod child;
pub mod process;
pub mod protocol;
