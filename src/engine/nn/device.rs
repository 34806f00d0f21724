//! The device that a backend computes on, and its memory.

use crate::engine::{
    backend::Backend,
    memory::{self, Usage},
};

/// A card's number, where it is one.
fn card(backend: Backend) -> Option<u32> {
    match backend {
        Backend::Cpu => None,
        #[cfg(feature = "libtorch")]
        Backend::Torch(torch) => torch.card,
    }
}

/// What of the device's memory this process has in use.
pub fn usage(backend: Backend) -> Usage {
    match card(backend) {
        None => memory::usage(),
        #[cfg(feature = "libtorch")]
        Some(card) => super::torch::cuda::usage(card),
        #[cfg(not(feature = "libtorch"))]
        Some(_) => Usage::default(),
    }
}

/// Counts the peak from now on.
pub fn reset_peak(backend: Backend) {
    match card(backend) {
        None => memory::reset_peak(),
        #[cfg(feature = "libtorch")]
        Some(card) => super::torch::cuda::reset_peak(card),
        #[cfg(not(feature = "libtorch"))]
        Some(_) => {}
    }
}

/// How much of the device's memory this process may use.
pub fn set_limit(backend: Backend, bytes: u64) {
    match card(backend) {
        None => memory::set_limit(bytes),
        #[cfg(feature = "libtorch")]
        Some(card) => super::torch::cuda::set_limit(card, bytes),
        #[cfg(not(feature = "libtorch"))]
        Some(_) => {}
    }
}

/// Gives the device, and the host, back what is kept for later.
pub fn give_back(backend: Backend) {
    memory::trim();
    #[cfg(feature = "libtorch")]
    if card(backend).is_some() {
        super::torch::cuda::empty_cache();
    }
    #[cfg(not(feature = "libtorch"))]
    let _ = backend;
}

/// On how many threads the CPU computes from now on; before anything else, if at all.
pub fn set_threads(backend: Backend, threads: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    if pool.build_global().is_err() {
        tracing::debug!("the kernels' threads run already");
    }
    match backend {
        Backend::Cpu => {}
        #[cfg(feature = "libtorch")]
        Backend::Torch(_) => tch::set_num_threads(threads as i32),
    }
}
