//! The device that is computed on: what its allocator says.

use crate::{
    engine::{Backend, memory},
    vram::{
        host,
        ledger::{Computing, DeviceMemory},
    },
};

pub fn computing(backend: Backend) -> Computing {
    Computing {
        engine: backend.engine().to_owned(),
        device: backend.device(),
        precision: backend.precision().name().to_owned(),
        name: None,
    }
}

/// What of the device is taken now.
pub fn device_memory(backend: Backend) -> DeviceMemory {
    match backend {
        Backend::Cpu => host_memory(),
        #[cfg(feature = "libtorch")]
        Backend::Torch(_) => host_memory(),
    }
}

/// Counts the peak from now on.
pub fn reset_peak(backend: Backend) {
    match backend {
        Backend::Cpu => memory::reset_peak(),
        #[cfg(feature = "libtorch")]
        Backend::Torch(_) => memory::reset_peak(),
    }
}

/// On a host, what the C library has of the system is what the process has in RAM of its own.
fn host_memory() -> DeviceMemory {
    let allocated = memory::allocated_bytes();
    let in_ram = host::anonymous_bytes(std::process::id());
    let reserved = in_ram.map_or(allocated, |bytes| bytes.max(allocated));
    DeviceMemory { allocated, reserved, peak: memory::peak_bytes() }
}

/// What a component computes in.
pub fn dtype(backend: Backend, component: &str) -> &'static str {
    match (backend, component) {
        #[cfg(feature = "libtorch")]
        (Backend::Torch(torch), "vae") => torch.vae_precision.name(),
        (backend, _) => backend.precision().name(),
    }
}
