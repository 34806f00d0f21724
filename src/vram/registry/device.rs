//! The device that the worker computes on, and its memory.

use super::{Computing, Readings, VramRegistry};
use crate::vram::{GpuInfo, card, host::HostMemory};

/// What a CPU is called; also what is shown until the first worker has said more.
pub const HOST: &str = "CPU (host memory)";

/// What is shown of the device.
pub struct DeviceFigures {
    pub name: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Of that by the worker; `None`: nobody knows.
    pub process_bytes: Option<u64>,
}

impl VramRegistry {
    /// The worker is up, and that computes.
    pub fn set_computing(&mut self, computing: Computing) {
        self.computing = computing;
    }

    /// Whether the worker computes on an NVIDIA card, and not on the host.
    pub fn is_on_card(&self) -> bool {
        card::number(&self.computing.device).is_some()
    }

    /// What the worker may allocate of its card in all, by the configuration's leave. No limit where
    /// nothing is known.
    pub fn available_on_card(&self, cards: &[GpuInfo]) -> u64 {
        self.card(cards).map_or(u64::MAX, |card| card::available(card, self.held.reserved_bytes))
    }

    /// What the worker, which holds nothing, keeps of its card, if that is more than it may. (It has
    /// reserved nothing when it starts.)
    pub fn keeps_of_card(&self, cards: &[GpuInfo]) -> Option<u64> {
        let (total, kept) = (self.card(cards)?.total_bytes, self.held.reserved_bytes);
        card::keeps_too_much(kept, total).then_some(kept)
    }

    /// The card that the worker computes on, among those that there are.
    fn card<'a>(&self, cards: &'a [GpuInfo]) -> Option<&'a GpuInfo> {
        let number = card::number(&self.computing.device)?;
        cards.iter().find(|card| card.cuda == Some(number))
    }

    pub(super) fn device(&self, readings: &Readings) -> DeviceFigures {
        let named = |other: &str| self.computing.name.clone().unwrap_or_else(|| other.to_owned());
        if let Some(card) = self.card(&readings.gpus) {
            return DeviceFigures {
                name: named(&card.name),
                total_bytes: card.total_bytes,
                used_bytes: card.used_bytes,
                process_bytes: card.worker_bytes,
            };
        }
        if self.is_on_card() {
            // Nobody says anything of that card.
            let (total_bytes, used_bytes, process_bytes) = (0, 0, None);
            let name = named(&self.computing.device);
            return DeviceFigures { name, total_bytes, used_bytes, process_bytes };
        }
        let HostMemory { total_bytes, used_bytes } = readings.host;
        let process_bytes = Some(readings.worker_resident_bytes);
        DeviceFigures { name: named(HOST), total_bytes, used_bytes, process_bytes }
    }
}
