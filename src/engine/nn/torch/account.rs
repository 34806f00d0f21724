//! libtorch's memory on the host, in the account that everything else is in.

use std::{cell::Cell, sync::Once};

use crate::engine::memory::{self, OutOfMemory};

thread_local! {
    /// Why this thread was last refused memory; libtorch passes on no more than a text.
    static REFUSED: Cell<Option<OutOfMemory>> = const { Cell::new(None) };
}

unsafe extern "C" {
    fn diffused_count_host_memory();
}

/// From now on libtorch's memory is counted; before its first tensor.
pub fn begin() {
    static ONCE: Once = Once::new();
    // SAFETY: it sets a pointer in libtorch, which frees what it has already by the old way.
    ONCE.call_once(|| unsafe { diffused_count_host_memory() });
}

/// What the limit said when this thread last ran against it.
pub fn last_refusal() -> Option<OutOfMemory> {
    REFUSED.take()
}

#[unsafe(no_mangle)]
extern "C" fn diffused_may_grow(bytes: usize) -> bool {
    let allowed = memory::check(bytes as u64);
    REFUSED.set(allowed.err());
    allowed.is_ok()
}

#[unsafe(no_mangle)]
extern "C" fn diffused_grown(bytes: usize) {
    memory::grow(bytes);
}

#[unsafe(no_mangle)]
extern "C" fn diffused_shrunk(bytes: usize) {
    memory::shrink(bytes);
}
