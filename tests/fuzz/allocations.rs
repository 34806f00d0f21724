//! How much memory a thread asks for: a header of a few bytes must not cost gigabytes.

use diffused::engine::memory::asked_by_this_thread;

/// Runs `work`; returns what it gives, and the bytes that it asked for in all on this thread.
pub fn asked_by<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = asked_by_this_thread();
    let result = work();
    (result, (asked_by_this_thread() - before) as usize)
}
