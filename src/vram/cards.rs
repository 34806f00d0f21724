//! The NVIDIA cards in this machine, as their driver's management library (NVML) describes them.
//!
//! It is asked, not needed: without the library or a card there are simply none. It opens no
//! compute context on a card.

use std::{
    env,
    sync::{Arc, OnceLock},
};

use nvml_wrapper::{Device, Nvml, enums::device::UsedGpuMemory, error::NvmlError};

use super::{GpuInfo, card};

/// Those who know the cards, to be shared.
#[derive(Clone, Default)]
pub struct Cards(Arc<Source>);

enum Source {
    /// The library, loaded and initialised once, if it is there.
    Driver(OnceLock<Option<Box<Nvml>>>),
    #[cfg(test)]
    Told(std::sync::Mutex<Vec<GpuInfo>>),
}

impl Default for Source {
    fn default() -> Self {
        Self::Driver(OnceLock::new())
    }
}

impl Cards {
    /// The cards that answer, and what the worker of that process id holds on each. The first call
    /// looks for the library, which may take a second where the driver has to wake up.
    pub fn list(&self, worker: Option<u32>) -> Vec<GpuInfo> {
        match &*self.0 {
            Source::Driver(library) => library.get_or_init(open),
            #[cfg(test)]
            Source::Told(_) => &None,
        };
        self.now(worker).unwrap_or_default()
    }

    /// The same at once; `None` before the first call of [`Self::list`] has returned.
    pub fn now(&self, worker: Option<u32>) -> Option<Vec<GpuInfo>> {
        match &*self.0 {
            Source::Driver(library) => {
                Some(library.get()?.as_ref().map_or_else(Vec::new, |it| describe(it, worker)))
            }
            #[cfg(test)]
            Source::Told(cards) => Some(cards.lock().unwrap().clone()),
        }
    }

    /// A machine that has these.
    #[cfg(test)]
    pub fn told(cards: Vec<GpuInfo>) -> Self {
        Self(Arc::new(Source::Told(std::sync::Mutex::new(cards))))
    }

    /// It is another one now.
    #[cfg(test)]
    pub fn tell(&self, cards: Vec<GpuInfo>) {
        if let Source::Told(told) = &*self.0 {
            *told.lock().unwrap() = cards;
        }
    }
}

fn open() -> Option<Box<Nvml>> {
    let library = Nvml::init();
    if let Err(error) = &library {
        tracing::debug!("no NVIDIA cards are shown: {error}");
    }
    library.ok().map(Box::new)
}

fn describe(library: &Nvml, worker: Option<u32>) -> Vec<GpuInfo> {
    let count = library.device_count().unwrap_or(0);
    let card = |index| library.device_by_index(index);
    let uuid = |index| card(index).and_then(|card| card.uuid()).unwrap_or_default();
    let uuids: Vec<String> = (0..count).map(uuid).collect();
    let visible = env::var("CUDA_VISIBLE_DEVICES").ok();
    let numbers = card::cuda_numbers(&uuids, visible.as_deref());
    let described = (0..count).zip(numbers).filter_map(|(index, cuda)| {
        let described = card(index).and_then(|card| describe_one(&card, worker)).ok()?;
        Some(GpuInfo { index, cuda, ..described })
    });
    described.collect()
}

fn describe_one(card: &Device<'_>, worker: Option<u32>) -> Result<GpuInfo, NvmlError> {
    let memory = card.memory_info()?;
    // In a container the driver may count under process ids that are not ours: nothing is found.
    let processes = card.running_compute_processes().unwrap_or_default();
    let of_worker = processes.iter().filter(|process| Some(process.pid) == worker);
    let worker_bytes: Vec<Option<u64>> = of_worker
        .map(|process| match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        })
        .collect();
    Ok(GpuInfo {
        name: card.name()?,
        total_bytes: memory.total,
        used_bytes: memory.used,
        // None of them is not 0: it may be there by another number.
        worker_bytes: worker_bytes.into_iter().reduce(|a, b| Some(a? + b?)).flatten(),
        ..GpuInfo::default()
    })
}
