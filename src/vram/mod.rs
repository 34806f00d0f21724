//! What is resident on the device and what it costs.
//!
//! - [`ledger`]: what the worker says of its memory, in plain data;
//! - [`registry`]: [`VramRegistry`], what is loaded, whom it serves and what it costs;
//! - [`plan`]: which pipelines leave for another one, decided purely;
//! - [`card`]: what the worker may take of a card, decided purely;
//! - [`probe`], [`host`], [`Cards`]: what the machine says of its memory.
//!
//! Knows nothing of jobs or of the engine: the dispatcher records here what the worker has told it,
//! and does what is planned here.

pub mod card;
pub mod host;
pub mod ledger;
pub mod plan;
pub mod probe;
pub mod registry;

mod cards;
mod snapshot;

pub use cards::Cards;
pub use registry::VramRegistry;
pub use snapshot::{GpuInfo, Loaded, Reason, ResidentModel, Snapshot};
