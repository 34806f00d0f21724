//! The device that a backend computes on, and its memory.

#[cfg(feature = "libtorch")]
use super::torch;
use super::{Result, Tensor, candle};
use crate::engine::{
    backend::Backend,
    memory::{self, Usage},
};

/// Whose memory it is.
enum Memory {
    Host,
    /// A card by candle, which says nothing of it.
    Candle,
    #[cfg(feature = "libtorch")]
    Torch(u32),
}

impl Memory {
    fn of(backend: Backend) -> Self {
        match backend {
            Backend::Cpu => Self::Host,
            Backend::Candle(_) => backend.card().map_or(Self::Host, |_| Self::Candle),
            #[cfg(feature = "libtorch")]
            Backend::Torch(torch) => torch.card.map_or(Self::Host, Self::Torch),
        }
    }
}

/// What of the device's memory this process has in use; of a card by candle, what its layers hold.
pub fn usage(backend: Backend) -> Usage {
    match Memory::of(backend) {
        Memory::Host => memory::usage(),
        Memory::Candle => {
            let held = candle::held_bytes();
            Usage { allocated_bytes: held, reserved_bytes: held, peak_bytes: held }
        }
        #[cfg(feature = "libtorch")]
        Memory::Torch(card) => torch::cuda::usage(card),
    }
}

/// Counts the peak from now on.
pub fn reset_peak(backend: Backend) {
    match Memory::of(backend) {
        Memory::Host => memory::reset_peak(),
        Memory::Candle => {}
        #[cfg(feature = "libtorch")]
        Memory::Torch(card) => torch::cuda::reset_peak(card),
    }
}

/// How much of the device's memory this process may use.
pub fn set_limit(backend: Backend, bytes: u64) {
    match Memory::of(backend) {
        Memory::Host => memory::set_limit(bytes),
        Memory::Candle => {}
        #[cfg(feature = "libtorch")]
        Memory::Torch(card) => torch::cuda::set_limit(card, bytes),
    }
}

/// Gives the device, and the host, back what is kept for later.
pub fn give_back(backend: Backend) {
    memory::trim();
    match Memory::of(backend) {
        Memory::Host | Memory::Candle => {}
        #[cfg(feature = "libtorch")]
        Memory::Torch(_) => torch::cuda::empty_cache(),
    }
}

/// What a card is called, as far as its engine says.
pub fn name(backend: Backend) -> Option<String> {
    match Memory::of(backend) {
        Memory::Host | Memory::Candle => None,
        #[cfg(feature = "libtorch")]
        Memory::Torch(card) => torch::cuda::name(card),
    }
}

/// Keeps whoever tells a card what to do one step ahead of it and no more: the card never waits, and
/// yet progress is what has happened, and a cancellation is soon heard.
#[derive(Default)]
pub struct Pace {
    /// Behind the step before the one that is being told.
    #[cfg(feature = "libtorch")]
    before: Option<torch::cuda::Event>,
}

impl Pace {
    /// A step that makes `of` has been told.
    pub fn step(&mut self, of: &Tensor) -> Result<()> {
        #[cfg(feature = "libtorch")]
        if of.on_torch().is_some_and(|of| of.device().is_cuda()) {
            let now = torch::cuda::Event::now()?;
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
        Backend::Cpu | Backend::Candle(_) => {}
        #[cfg(feature = "libtorch")]
        Backend::Torch(_) => tch::set_num_threads(threads as i32),
    }
}
