//! [`VramRegistry`]: what is loaded, whom it serves and what it costs.

use std::collections::{BTreeMap, VecDeque};

use super::{
    ledger::{Computing, Estimate, Held, PipelineId, shares},
    plan::{self, Limits, NoRoom, Plan, Resident, Standing, Wish},
    probe::Readings,
    snapshot::{Loaded, Reason, ResidentModel, Snapshot},
};
use crate::modes::{IdleUnload, Memory, Modes, ModesDiff, PipelineSpec};
use device::DeviceFigures;

mod device;

/// The ledger of loaded pipelines. What they hold is what the worker said last; who leaves is
/// decided in [`plan`]. Times are milliseconds since the Unix epoch.
#[derive(Debug, Default)]
pub struct VramRegistry {
    computing: Computing,
    memory: Memory,
    /// The modes' pipelines, and whether the mode is pinned.
    declared: Vec<(PipelineSpec, bool)>,
    /// What the last jobs took besides all weights.
    peaks: VecDeque<u64>,
    /// In the order of their last use.
    models: Vec<Model>,
    held: Held,
    /// The pipeline that the current mode draws with.
    active: Option<PipelineId>,
    last_id: u64,
    loads: BTreeMap<String, u64>,
    hits: BTreeMap<String, u64>,
    evictions: BTreeMap<Reason, u64>,
}

#[derive(Debug, Clone)]
struct Model {
    loaded: Loaded,
    last_used_unix_ms: u64,
    activation_peak_bytes: Option<u64>,
    /// Its mode is gone, or has become another one.
    unwanted: bool,
}

/// Of how many jobs it is remembered what they took.
const PEAKS_KEPT: usize = 16;

impl VramRegistry {
    pub fn new(modes: &Modes) -> Self {
        let compute = modes.compute;
        let computing = Computing {
            engine: compute.engine.to_string(),
            device: compute.device.to_string(),
            precision: compute.precision.to_string(),
            name: None,
        };
        let mut registry = Self { computing, ..Self::default() };
        registry.configure(&ModesDiff::default(), modes);
        registry
    }

    /// The modes are now those. (What requests' LoRAs made of a mode is wanted as long as the mode
    /// is what it was.)
    pub fn configure(&mut self, diff: &ModesDiff, modes: &Modes) {
        self.memory = modes.memory.clone();
        let declared = modes.modes.values().map(|mode| (mode.pipeline.clone(), mode.pinned));
        self.declared = declared.collect();
        for model in &mut self.models {
            let mut declared = self.declared.iter();
            let is_declared = declared.any(|(pipeline, _)| *pipeline == model.loaded.pipeline);
            model.unwanted = !is_declared && (model.unwanted || diff.touches(&model.loaded.mode));
        }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn new_id(&mut self) -> PipelineId {
        self.last_id += 1;
        PipelineId(self.last_id)
    }

    /// That pipeline, if it is loaded.
    pub fn find(&self, pipeline: &PipelineSpec) -> Option<PipelineId> {
        self.models().find(|loaded| loaded.pipeline == *pipeline).map(|loaded| loaded.id)
    }

    /// What is loaded for a mode: the pipeline that it declares, and those that its requests' LoRAs
    /// made of it.
    pub fn of_mode(&self, mode: &str, pipeline: &PipelineSpec) -> Vec<PipelineId> {
        let of_mode = self.models().filter(|it| it.mode == mode || it.pipeline == *pipeline);
        of_mode.map(|loaded| loaded.id).collect()
    }

    pub fn all(&self) -> Vec<PipelineId> {
        self.models().map(|loaded| loaded.id).collect()
    }

    /// Whose they are: the modes' names, sorted.
    pub fn modes(&self, ids: &[PipelineId]) -> Vec<String> {
        let theirs = self.models().filter(|loaded| ids.contains(&loaded.id));
        let mut modes: Vec<String> = theirs.map(|loaded| loaded.mode.clone()).collect();
        modes.sort();
        modes.dedup();
        modes
    }

    /// The pinned ones, with the modes that used them last.
    pub fn pinned(&self) -> impl Iterator<Item = (String, PipelineSpec)> {
        let pinned = self.models.iter().filter(|it| self.standing(it) == Standing::Pinned);
        pinned.map(|model| (model.loaded.mode.clone(), model.loaded.pipeline.clone()))
    }

    /// Whether the worker has an upscaler loaded.
    pub fn holds_upscaler(&self) -> bool {
        self.held.upscaler_bytes > 0
    }

    pub fn active(&self) -> Option<PipelineId> {
        self.active
    }

    fn models(&self) -> impl Iterator<Item = &Loaded> {
        self.models.iter().map(|model| &model.loaded)
    }

    /// A job uses that pipeline, in the name of that mode.
    pub fn touch(&mut self, id: PipelineId, mode: &str, now_ms: u64) {
        if let Some(at) = self.models.iter().position(|model| model.loaded.id == id) {
            let mut model = self.models.remove(at);
            mode.clone_into(&mut model.loaded.mode);
            model.last_used_unix_ms = now_ms;
            self.models.push(model);
        }
    }

    /// That pipeline is the current mode's; `None`: no mode is current.
    pub fn set_active(&mut self, id: Option<PipelineId>) {
        self.active = id;
    }

    /// A job found its pipeline loaded.
    pub fn count_hit(&mut self, mode: &str) {
        *self.hits.entry(mode.to_owned()).or_default() += 1;
    }

    /// What leaves so that a pipeline can be loaded, if the worker may allocate `device_bytes` in
    /// all (less, where the configuration says so).
    pub fn plan(
        &self,
        (new, pipeline): (PipelineId, &PipelineSpec),
        estimate: &Estimate,
        takes_over: bool,
        device_bytes: u64,
        now_ms: u64,
    ) -> Result<Plan, NoRoom> {
        let residents = self.residents();
        let wish = Wish {
            residents: &residents,
            new,
            of_request: !self.is_declared(pipeline),
            segments: &estimate.segments,
            working_bytes: estimate.working_bytes,
            drawing_bytes: self.peaks.iter().copied().max().unwrap_or(0),
            takes_over,
            now_ms,
        };
        let weights_bytes = self.limit(device_bytes).saturating_sub(estimate.other_bytes);
        let Memory { eviction, max_models, max_request_pipelines, .. } = self.memory;
        let limits = Limits { eviction, max_models, max_request_pipelines, weights_bytes };
        plan::plan(&wish, &limits)
    }

    /// What the worker may allocate in all.
    pub fn limit(&self, device_bytes: u64) -> u64 {
        self.memory.limit_bytes.map_or(device_bytes, |limit| limit.min(device_bytes))
    }

    /// All that may leave, the first one first.
    pub fn evictable(&self, now_ms: u64) -> Vec<PipelineId> {
        plan::in_order(&self.residents(), &self.held.segments, self.memory.eviction, now_ms)
    }

    /// What leaves without being pushed, and why.
    pub fn idle(&self, now_ms: u64) -> Vec<(PipelineId, Reason)> {
        let residents = self.residents();
        let idle_ms = self.memory.idle_unload.after().map(|time| time.as_millis() as u64);
        let unwanted = plan::idle(&residents, None, now_ms);
        let reason = |id: &PipelineId| match unwanted.contains(id) {
            true => Reason::Unwanted,
            false => Reason::Idle,
        };
        let leaving = plan::idle(&residents, idle_ms, now_ms);
        leaving.into_iter().map(|id| (id, reason(&id))).collect()
    }

    /// When [`Self::idle`] has more to say, if nothing is used until then.
    pub fn next_idle_ms(&self) -> Option<u64> {
        let IdleUnload::After(time) = self.memory.idle_unload else { return None };
        let residents = self.residents();
        let idle = residents.iter().filter(|resident| resident.standing != Standing::Pinned);
        idle.map(|resident| resident.last_used_ms + time.as_millis() as u64).min()
    }

    fn residents(&self) -> Vec<Resident> {
        let resident = |model: &Model| Resident {
            id: model.loaded.id,
            standing: self.standing(model),
            of_request: !self.is_declared(&model.loaded.pipeline),
            last_used_ms: model.last_used_unix_ms,
            load_ms: model.loaded.load_ms,
        };
        self.models.iter().map(resident).collect()
    }

    fn is_declared(&self, pipeline: &PipelineSpec) -> bool {
        self.declared.iter().any(|(it, _)| it == pipeline)
    }

    fn standing(&self, model: &Model) -> Standing {
        let declared = || self.declared.iter().filter(|(it, _)| *it == model.loaded.pipeline);
        if declared().any(|(_, pinned)| *pinned) {
            Standing::Pinned
        } else if self.active == Some(model.loaded.id) {
            Standing::Active
        } else if model.unwanted {
            Standing::Unwanted
        } else if declared().next().is_none() {
            Standing::OneOff
        } else {
            Standing::Free
        }
    }

    /// A pipeline was loaded.
    pub fn record_loaded(&mut self, loaded: Loaded, held: Held, now_ms: u64) {
        *self.loads.entry(loaded.mode.clone()).or_default() += 1;
        self.models.push(Model {
            loaded,
            last_used_unix_ms: now_ms,
            activation_peak_bytes: None,
            unwanted: false,
        });
        self.reconcile(held);
    }

    /// What the worker holds now: what it does not, is not loaded.
    pub fn reconcile(&mut self, held: Held) {
        self.models.retain(|model| held.pipelines.contains(&model.loaded.id));
        self.active = self.active.filter(|id| held.pipelines.contains(id));
        self.held = held;
    }

    /// Those are on their way out, and do not count any more.
    pub fn remove(&mut self, ids: &[PipelineId]) {
        self.models.retain(|model| !ids.contains(&model.loaded.id));
        self.active = self.active.filter(|id| !ids.contains(id));
    }

    pub fn count_evictions(&mut self, reason: Reason, count: usize) {
        if count > 0 {
            *self.evictions.entry(reason).or_default() += count as u64;
        }
    }

    /// What a job took besides all weights.
    pub fn set_activation_peak(&mut self, id: PipelineId, bytes: u64) {
        self.peaks.truncate(PEAKS_KEPT - 1);
        self.peaks.push_front(bytes);
        if let Some(model) = self.models.iter_mut().find(|model| model.loaded.id == id) {
            model.activation_peak_bytes = Some(bytes);
        }
    }

    /// The ledger beside what was measured.
    pub fn snapshot(&self, readings: &Readings) -> Snapshot {
        let shown = |model: &Model| {
            let shares = shares(&self.held.segments, model.loaded.id);
            ResidentModel {
                loaded: model.loaded.clone(),
                active: self.active == Some(model.loaded.id),
                pinned: self.standing(model) == Standing::Pinned,
                own_bytes: shares.own_bytes,
                shared_bytes: shares.shared_bytes,
                activation_peak_bytes: model.activation_peak_bytes,
                last_used_unix_ms: model.last_used_unix_ms,
            }
        };
        let mut models: Vec<_> = self.models.iter().map(shown).collect();
        models.sort_by_key(|model| model.loaded.id);
        let DeviceFigures { name, total_bytes, used_bytes, process_bytes } = self.device(readings);
        Snapshot {
            computing: self.computing.clone(),
            device_name: name,
            total_bytes,
            used_bytes,
            process_bytes,
            limit_bytes: self.memory.limit_bytes,
            worker_resident_bytes: readings.worker_resident_bytes,
            allocated_bytes: self.held.allocated_bytes,
            reserved_bytes: self.held.reserved_bytes,
            peak_bytes: self.held.peak_bytes,
            weights_bytes: self.held.weights_bytes(),
            lora_cache: self.held.lora_cache,
            models,
            loads: self.loads.clone(),
            hits: self.hits.clone(),
            evictions: self.evictions.clone(),
            gpus: readings.gpus.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
