//! How much memory is allocated, and how much may be.
//!
//! To the CPU this is what a CUDA allocator's statistics are to a card: an exact account, by the
//! one who hands the memory out. The limit is our own because Linux has none to ask for: it
//! promises memory that it does not have, and kills the process that believes it. An engine that
//! asks first can say no while there is still somebody to say it. Knows nothing of what the memory
//! is for; mapped files are no part of it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::modes::gib;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

/// What a device's memory is in use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// By tensors and all else.
    pub allocated_bytes: u64,
    /// What the allocator has taken from the device, to hand it out.
    pub reserved_bytes: u64,
    /// The most that was allocated at a time since it was last reset.
    pub peak_bytes: u64,
}

/// Of this process's memory in the host.
pub fn usage() -> Usage {
    let (allocated_bytes, peak_bytes) = (allocated_bytes(), peak_bytes());
    Usage { allocated_bytes, reserved_bytes: allocated_bytes, peak_bytes }
}

/// There is not as much as would be needed. Nothing was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not enough memory: {:.2} GiB would be in use, and the limit is {:.2} GiB",
    gib(*.needed_bytes), gib(*.limit_bytes)
)]
pub struct OutOfMemory {
    /// What is allocated and what was asked for, together.
    pub needed_bytes: u64,
    pub limit_bytes: u64,
}

/// What this process has allocated and not freed.
pub fn allocated_bytes() -> u64 {
    ALLOCATED.load(Relaxed)
}

/// The most that was allocated at a time since [`reset_peak`].
pub fn peak_bytes() -> u64 {
    PEAK.load(Relaxed)
}

/// Counts the peak from now on.
pub fn reset_peak() {
    PEAK.store(allocated_bytes(), Relaxed);
}

/// How much this process may allocate; there is no limit at first. It binds those who ask
/// ([`check`]), and they do for all that is large.
pub fn set_limit(bytes: u64) {
    LIMIT.store(bytes, Relaxed);
}

/// Whether so much more may be allocated.
pub fn check(bytes: u64) -> Result<(), OutOfMemory> {
    let needed_bytes = allocated_bytes().saturating_add(bytes);
    let limit_bytes = LIMIT.load(Relaxed);
    if needed_bytes <= limit_bytes {
        Ok(())
    } else {
        Err(OutOfMemory { needed_bytes, limit_bytes })
    }
}

/// All that this thread has asked for since it began, freed or not: what a piece of work costs,
/// whatever other threads do meanwhile.
pub fn asked_by_this_thread() -> u64 {
    ASKED.get()
}

/// Gives what was freed back to the system, where the C library keeps it for later. (The worker is
/// started so that it does: a step's tensors are the next step's.)
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The system's allocator, with an account of it.
struct Counting;

/// Counts what somebody else has allocated in this process.
pub(super) fn grow(bytes: usize) {
    let bytes = bytes as u64;
    let allocated = ALLOCATED.fetch_add(bytes, Relaxed) + bytes;
    // Reading is cheap, and it is rarely a new peak.
    if allocated > PEAK.load(Relaxed) {
        PEAK.fetch_max(allocated, Relaxed);
    }
    // A thread that ends has no such variable any more, and may still allocate.
    let _ = ASKED.try_with(|asked| asked.set(asked.get().saturating_add(bytes)));
}

pub(super) fn shrink(bytes: usize) {
    ALLOCATED.fetch_sub(bytes as u64, Relaxed);
}

// SAFETY: everything is left to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let at = unsafe { System.alloc(layout) };
        if !at.is_null() {
            grow(layout.size());
        }
        at
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let at = unsafe { System.alloc_zeroed(layout) };
        if !at.is_null() {
            grow(layout.size());
        }
        at
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        let moved = unsafe { System.realloc(at, layout, size) };
        if !moved.is_null() {
            match size.checked_sub(layout.size()) {
                Some(more) => grow(more),
                None => shrink(layout.size() - size),
            }
        }
        moved
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) };
        shrink(layout.size());
    }
}
