//! The device that a backend computes on, and its memory.

use super::{Result, Tensor};
use crate::engine::{
    backend::Backend,
    memory::{self, Usage},
};

/// What of the device's memory this process has in use.
pub fn usage(backend: Backend) -> Usage {
    match backend.card() {
        None => memory::usage(),
        #[cfg(feature = "libtorch")]
        Some(card) => super::torch::cuda::usage(card),
        #[cfg(not(feature = "libtorch"))]
        Some(_) => Usage::default(),
    }
}

/// Counts the peak from now on.
pub fn reset_peak(backend: Backend) {
    match backend.card() {
        None => memory::reset_peak(),
        #[cfg(feature = "libtorch")]
        Some(card) => super::torch::cuda::reset_peak(card),
        #[cfg(not(feature = "libtorch"))]
        Some(_) => {}
    }
}

/// How much of the device's memory this process may use.
pub fn set_limit(backend: Backend, bytes: u64) {
    match backend.card() {
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
    if backend.card().is_some() {
        super::torch::cuda::empty_cache();
    }
    #[cfg(not(feature = "libtorch"))]
    let _ = backend;
}

/// What a card is called.
pub fn name(backend: Backend) -> Option<String> {
    #[cfg(feature = "libtorch")]
    return backend.card().and_then(super::torch::cuda::name);
    #[cfg(not(feature = "libtorch"))]
    return backend.card().map(|card| card.to_string());
}

/// Keeps whoever tells a card what to do one step ahead of it and no more: the card never waits, and
/// yet progress is what has happened, and a cancellation is soon heard.
#[derive(Default)]
pub struct Pace {
    /// Behind the step before the one that is being told.
    #[cfg(feature = "libtorch")]
    before: Option<super::torch::cuda::Event>,
}

impl Pace {
    /// A step that makes `of` has been told.
    pub fn step(&mut self, of: &Tensor) -> Result<()> {
        #[cfg(feature = "libtorch")]
        if of.on_torch().is_some_and(|of| of.device().is_cuda()) {
            let now = super::torch::cuda::Event::now()?;
            if let Some(before) = std::mem::replace(&mut self.before, now) {
                before.wait()?;
            }
        }
        #[cfg(not(feature = "libtorch"))]
        let _ = of;
        Ok(())
    }
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
