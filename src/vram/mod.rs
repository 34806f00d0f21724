//! What is resident on the device and what it costs.
//!
//! Owns the ledger, [`VramRegistry`], and the probes of host and cards that stand beside it in
//! every [`Snapshot`]. Knows nothing of jobs or of the worker's protocol: the dispatcher records
//! here what the worker has told it.

pub mod host;
pub mod probe;

mod cards;

use crate::modes::LoraReport;
use probe::Readings;

/// The ledger of loaded pipelines.
#[derive(Debug)]
pub struct VramRegistry {
    device: String,
    models: Vec<ResidentModel>,
}

/// Everything there is to say about memory at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// What the worker computes on, as it is shown to people.
    pub device: String,
    /// The device's memory: of a host, what this process may use of it.
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// What the worker process has in RAM, 0 while it does not live.
    pub worker_resident_bytes: u64,
    pub models: Vec<ResidentModel>,
    /// The NVIDIA cards in this machine, whether or not the worker computes on one.
    pub gpus: Vec<GpuInfo>,
}

/// A pipeline that is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidentModel {
    pub mode: String,
    /// The checkpoint as the user wrote it, relative to `model_root`.
    pub model: String,
    /// See [`resident_cost`].
    pub bytes: u64,
    /// What became of each of its LoRAs.
    pub loras: Vec<LoraReport>,
}

/// What a pipeline costs: what the worker's resident set grew by, since that counts what the
/// weights' size does not: packed copies, tables, buffers. But memory that an earlier pipeline left
/// to the allocator is taken again without any growth, so it is never less than the weights.
pub fn resident_cost(weights_bytes: u64, grown_bytes: u64) -> u64 {
    grown_bytes.max(weights_bytes)
}

/// A card as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    pub index: u32,
    pub name: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
}

/// What a worker that computes on the CPU has for a device; also what is shown until the first
/// worker has said more.
const HOST: &str = "CPU (host memory)";

impl Default for VramRegistry {
    fn default() -> Self {
        Self { device: HOST.to_owned(), models: Vec::new() }
    }
}

impl VramRegistry {
    /// The worker is up, and computes on that device ("cpu").
    pub fn set_device(&mut self, device: &str) {
        self.device = match device {
            "cpu" => HOST.to_owned(),
            other => other.to_owned(),
        };
    }

    /// A pipeline was loaded, instead of any that the mode had.
    pub fn record_loaded(&mut self, model: ResidentModel) {
        self.remove(&model.mode);
        self.models.push(model);
    }

    /// A mode's pipeline now serves another mode that needs the same one.
    pub fn hand_over(&mut self, mode: &str, to: &str) {
        for model in self.models.iter_mut().filter(|model| model.mode == mode) {
            to.clone_into(&mut model.mode);
        }
    }

    /// A mode's pipeline is not loaded any more.
    pub fn remove(&mut self, mode: &str) {
        self.models.retain(|model| model.mode != mode);
    }

    /// The ledger beside what was measured.
    pub fn snapshot(&self, readings: &Readings) -> Snapshot {
        Snapshot {
            device: self.device.clone(),
            total_bytes: readings.host.total_bytes,
            used_bytes: readings.host.used_bytes,
            worker_resident_bytes: readings.worker_resident_bytes,
            models: self.models.clone(),
            gpus: readings.gpus.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(mode: &str) -> ResidentModel {
        let lora = LoraReport {
            name: "ink.safetensors".to_owned(),
            strength: 0.8,
            merged: 192,
            unmatched: 0,
            skipped: None,
        };
        let model = "sd15/a.safetensors".to_owned();
        ResidentModel { mode: mode.to_owned(), model, bytes: 7, loras: vec![lora] }
    }

    #[test]
    fn a_pipeline_costs_its_growth_but_never_less_than_its_weights() {
        for (weights, grown, bytes) in [(100, 130, 130), (100, 20, 100), (0, 70, 70)] {
            assert_eq!(resident_cost(weights, grown), bytes, "weights {weights}, growth {grown}");
        }
    }

    #[test]
    fn the_ledger_follows_what_is_loaded() {
        let mut registry = VramRegistry::default();
        let modes = |registry: &VramRegistry| -> Vec<String> {
            registry.models.iter().map(|model| model.mode.clone()).collect()
        };
        registry.record_loaded(model("a"));
        let with_another = ResidentModel { bytes: 9, ..model("a") };
        registry.record_loaded(with_another.clone());
        assert_eq!(registry.models, [with_another], "loaded again, it is there once");
        registry.hand_over("a", "b");
        assert_eq!(modes(&registry), ["b"]);
        registry.remove("a");
        assert_eq!(modes(&registry), ["b"], "another mode's entry stays");
        registry.remove("b");
        assert!(modes(&registry).is_empty());
    }

    #[test]
    fn a_snapshot_has_the_ledger_and_the_device() {
        let mut registry = VramRegistry::default();
        registry.set_device("cpu");
        registry.record_loaded(model("a"));
        let snapshot = registry.snapshot(&Readings::default());
        assert_eq!(snapshot.device, "CPU (host memory)");
        assert_eq!(snapshot.models, [model("a")]);
    }
}
