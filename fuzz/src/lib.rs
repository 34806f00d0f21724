//! The bodies of the fuzz targets: each takes any bytes and panics if a promise is broken.
//!
//! `fuzz_targets/` wraps them for libFuzzer; `tests/fuzz/corpus.rs` includes them by path and replays
//! the committed corpus. Only the crate's public API is used.

pub mod image;
pub mod modes;
pub mod request;
pub mod safetensors;

use diffused::engine::memory::asked_by_this_thread;

/// Runs `work`; returns its result and the bytes that this thread allocated for it, freed ones
/// included.
fn allocated_by<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = asked_by_this_thread();
    let result = work();
    (result, (asked_by_this_thread() - before) as usize)
}
