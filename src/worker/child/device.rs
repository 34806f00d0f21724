//! The device that is computed on: what its allocator says, in the ledger's words.

use crate::{
    engine::{Backend, memory::Usage, nn},
    vram::{
        host,
        ledger::{Computing, DeviceMemory},
    },
};

pub fn computing(backend: Backend) -> Computing {
    Computing {
        engine: backend.engine().to_owned(),
        device: backend.device(),
        precision: backend.floats().unet.name().to_owned(),
        name: nn::name(backend),
    }
}

/// What of the device is taken now.
pub fn device_memory(backend: Backend) -> DeviceMemory {
    let Usage { allocated_bytes: allocated, reserved_bytes, peak_bytes: peak } = nn::usage(backend);
    let reserved = match backend.card() {
        Some(_) => reserved_bytes,
        // What the C library has of the system is what the process has in RAM of its own.
        None => {
            let in_ram = host::anonymous_bytes(std::process::id());
            in_ram.map_or(allocated, |bytes| bytes.max(allocated))
        }
    };
    DeviceMemory { allocated, reserved, peak }
}

/// What a component computes in.
pub fn dtype(backend: Backend, component: &str) -> &'static str {
    backend.floats().of(component).name()
}
