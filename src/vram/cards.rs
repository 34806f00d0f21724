//! The NVIDIA cards in this machine, as their driver's management library (NVML) describes them.
//!
//! It is asked, not needed: without the library or a card there are simply none. It opens no
//! compute context on a card.

use nvml_wrapper::{Nvml, enums::device::UsedGpuMemory, error::NvmlError};

use super::GpuInfo;

/// The library, loaded and initialised once, if it is there.
pub struct Cards(Option<Nvml>);

impl Cards {
    /// Looks for the library; this may take a second where the driver has to wake up.
    pub fn open() -> Self {
        let library = Nvml::init();
        if let Err(error) = &library {
            tracing::debug!("no NVIDIA cards are shown: {error}");
        }
        Self(library.ok())
    }

    /// The cards that answer, and what the worker of that process id holds on each.
    pub fn list(&self, worker: Option<u32>) -> Vec<GpuInfo> {
        let Some(library) = &self.0 else { return Vec::new() };
        let count = library.device_count().unwrap_or(0);
        (0..count).filter_map(|index| describe(library, index, worker).ok()).collect()
    }
}

fn describe(library: &Nvml, index: u32, worker: Option<u32>) -> Result<GpuInfo, NvmlError> {
    let card = library.device_by_index(index)?;
    let memory = card.memory_info()?;
    // In a container the driver may count under process ids that are not ours: nothing is found.
    let processes = card.running_compute_processes().unwrap_or_default();
    let of_worker = processes.iter().filter(|process| Some(process.pid) == worker);
    let worker_bytes = of_worker.map(|process| match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    });
    Ok(GpuInfo {
        index,
        name: card.name()?,
        total_bytes: memory.total,
        used_bytes: memory.used,
        worker_bytes: worker_bytes.sum(),
    })
}
