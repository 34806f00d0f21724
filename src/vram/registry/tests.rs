//! The ledger and the planner, driven through thousands of random days against a worker that is a
//! map; and what can be said without chance.

use proptest::{prelude::*, test_runner::TestRunner};

use super::{device::HOST, *};
use crate::{
    modes::{CheckpointRef, Defaults, Eviction, Mode, Order, Timeout, Watch},
    vram::{
        GpuInfo,
        host::HostMemory,
        ledger::{Component, Segment},
    },
};

const PIPELINES: usize = 6;

fn spec(index: usize) -> PipelineSpec {
    let name = format!("{index}.safetensors");
    PipelineSpec::of(CheckpointRef { path: name.clone().into(), name })
}

fn modes(memory: Memory, pinned: &[bool]) -> Modes {
    let mode = |(index, pinned): (usize, &bool)| {
        let mode = Mode {
            name: index.to_string(),
            pipeline: spec(index),
            defaults: Defaults::default(),
            pinned: *pinned,
            preload: false,
            metadata: serde_json::Map::new(),
            timeout: Timeout::Off,
        };
        (mode.name.clone(), mode.into())
    };
    Modes {
        default_mode: "0".to_owned(),
        model_root: "models".into(),
        lora_root: "loras".into(),
        max_pixels: 1 << 20,
        watch: Watch::Off,
        memory,
        order: Order::default(),
        jobs: Default::default(),
        modes: pinned.iter().enumerate().map(mode).collect(),
        custom_jobs: Default::default(),
        webhooks: Default::default(),
        http: Default::default(),
        superres: None,
        timeout: Timeout::Off,
        compute: Default::default(),
    }
}

/// A worker that holds layers. Those of a pipeline: of each layer whether it has it.
#[derive(Debug, Clone)]
struct World {
    layers: Vec<u64>,
    has: Vec<Vec<bool>>,
    loaded: BTreeMap<PipelineId, usize>,
}

impl World {
    fn segments(&self, loaded: &BTreeMap<PipelineId, usize>) -> Vec<Segment> {
        let segment = |(layer, bytes): (usize, &u64)| {
            let users = loaded.iter().filter(|(_, index)| self.has[**index][layer]);
            let users: Vec<PipelineId> = users.map(|(id, _)| *id).collect();
            Segment { component: format!("c{}", layer % 3), users, bytes: *bytes }
        };
        let segments = self.layers.iter().enumerate().map(segment);
        segments.filter(|segment| !segment.users.is_empty()).collect()
    }

    fn held(&self) -> Held {
        let segments = self.segments(&self.loaded);
        let allocated_bytes = segments.iter().map(|segment| segment.bytes).sum::<u64>() + OTHER;
        let pipelines = self.loaded.keys().copied().collect();
        Held { pipelines, segments, allocated_bytes, ..Held::default() }
    }

    fn bytes_of(&self, index: usize) -> u64 {
        let layers = self.layers.iter().zip(&self.has[index]);
        layers.filter(|(_, has)| **has).map(|(bytes, _)| bytes).sum()
    }

    fn estimate(&self, id: PipelineId, index: usize) -> Estimate {
        let mut loaded = self.loaded.clone();
        loaded.insert(id, index);
        let component = Component {
            name: "unet".to_owned(),
            stored: "fp16".to_owned(),
            dtype: "fp32".to_owned(),
            file_bytes: 0,
            bytes: self.bytes_of(index),
        };
        Estimate {
            components: vec![component],
            segments: self.segments(&loaded),
            working_bytes: WORKING,
            other_bytes: OTHER,
        }
    }
}

/// What the worker has allocated besides layers, and what a load takes for a while.
const OTHER: u64 = 3;
const WORKING: u64 = 2;

#[derive(Debug, Clone)]
enum Event {
    /// Somebody wants that pipeline, and then the load ends like that.
    Want {
        index: usize,
        takes_over: bool,
        ending: Ending,
    },
    Unload {
        index: usize,
    },
    OutOfMemory,
    Idle,
    WorkerDies,
    Configure {
        memory: Memory,
        pinned: Vec<bool>,
    },
    Later {
        millis: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ending {
    Loaded,
    /// After those had gone who were to go first.
    Failed,
    WorkerDied,
}

fn memory() -> impl Strategy<Value = Memory> {
    let eviction =
        prop_oneof![Just(Eviction::Lru), Just(Eviction::Fifo), Just(Eviction::MemoryPressure)];
    let limit_bytes = proptest::option::weighted(0.8, 20..200u64);
    let max_models = proptest::option::of(1..5u32);
    let idle = prop_oneof![Just(IdleUnload::Never), Just("5s".parse().unwrap())];
    (eviction, limit_bytes, max_models, 1..3u32, idle).prop_map(
        |(eviction, limit_bytes, max_models, max_request_pipelines, idle_unload)| Memory {
            eviction,
            limit_bytes,
            max_models,
            max_request_pipelines,
            idle_unload,
            ..Memory::default()
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let ending = prop_oneof![
        6 => Just(Ending::Loaded),
        1 => Just(Ending::Failed),
        1 => Just(Ending::WorkerDied),
    ];
    // Pipelines behind the modes' are of requests.
    let pinned = proptest::collection::vec(proptest::bool::weighted(0.2), 2..=PIPELINES);
    prop_oneof![
        12 => (0..PIPELINES, proptest::bool::weighted(0.8), ending)
            .prop_map(|(index, takes_over, ending)| Event::Want { index, takes_over, ending }),
        2 => (0..PIPELINES).prop_map(|index| Event::Unload { index }),
        1 => Just(Event::OutOfMemory),
        1 => Just(Event::Idle),
        1 => Just(Event::WorkerDies),
        1 => (memory(), pinned).prop_map(|(memory, pinned)| Event::Configure { memory, pinned }),
        4 => (0..4000u64).prop_map(|millis| Event::Later { millis }),
    ]
}

fn world() -> impl Strategy<Value = World> {
    let layers = proptest::collection::vec(1..20u64, 12);
    let has = proptest::collection::vec(proptest::collection::vec(any::<bool>(), 12), PIPELINES);
    (layers, has).prop_map(|(layers, has)| World { layers, has, loaded: BTreeMap::new() })
}

/// What all machines of these days have.
const DEVICE: u64 = 150;

struct Day {
    registry: VramRegistry,
    world: World,
    memory: Memory,
    pinned: Vec<bool>,
    now_ms: u64,
    loads: u64,
}

impl Day {
    fn live(&mut self, event: &Event) {
        match event {
            Event::Want { index, takes_over, ending } => self.want(*index, *takes_over, *ending),
            Event::Unload { index } => {
                let ids = self.registry.of_mode(&index.to_string(), &spec(*index));
                self.leave(&ids);
            }
            Event::OutOfMemory => {
                let leaving = self.registry.evictable(self.now_ms);
                let stays = |id: &&PipelineId| self.must_stay(**id);
                assert_eq!(leaving.iter().find(stays), None, "who must stay was to leave");
                self.leave(&leaving);
            }
            Event::Idle => {
                let leaving = self.registry.idle(self.now_ms);
                let ids: Vec<PipelineId> = leaving.into_iter().map(|(id, _)| id).collect();
                assert!(ids.iter().all(|id| !self.is_pinned(*id)));
                self.leave(&ids);
            }
            Event::WorkerDies => {
                self.world.loaded.clear();
                self.registry.reconcile(Held::default());
            }
            Event::Configure { memory, pinned } => {
                (self.memory, self.pinned) = (memory.clone(), pinned.clone());
                let modes = modes(memory.clone(), pinned);
                self.registry.configure(&ModesDiff::default(), &modes);
            }
            Event::Later { millis } => self.now_ms += millis,
        }
    }

    fn want(&mut self, index: usize, takes_over: bool, ending: Ending) {
        self.now_ms += 1;
        if let Some(id) = self.registry.find(&spec(index)) {
            self.registry.touch(id, &index.to_string(), self.now_ms);
            if takes_over {
                self.registry.set_active(Some(id));
            }
            return;
        }
        let id = self.registry.new_id();
        let estimate = self.world.estimate(id, index);
        let before = self.world.loaded.clone();
        let new = (id, &spec(index));
        let plan = self.registry.plan(new, &estimate, takes_over, DEVICE, self.now_ms);
        let plan = match plan {
            Ok(plan) => plan,
            Err(no_room) => return self.check_refused(&no_room, &estimate, takes_over),
        };
        self.check(&plan, &estimate, takes_over);
        self.world.loaded.retain(|id, _| !plan.before.contains(id));
        match ending {
            Ending::WorkerDied => {
                self.world.loaded.clear();
                self.registry.reconcile(Held::default());
            }
            Ending::Failed => self.registry.reconcile(self.world.held()),
            Ending::Loaded => {
                self.world.loaded.insert(id, index);
                assert!(self.world.held().allocated_bytes + WORKING <= self.limit());
                let loaded = loaded(id, index, &estimate);
                self.registry.record_loaded(loaded, self.world.held(), self.now_ms);
                self.loads += 1;
                if takes_over {
                    self.registry.set_active(Some(id));
                }
                self.leave(&plan.after);
                let count = self.world.loaded.len();
                assert!(self.memory.max_models.is_none_or(|max| count <= max as usize));
                // (Nobody's mere load is of a request.)
                let of_requests =
                    self.world.loaded.values().filter(|index| **index >= self.pinned.len()).count();
                assert!(!takes_over || of_requests <= self.memory.max_request_pipelines as usize);
            }
        }
        let kept = before.keys().filter(|id| self.is_pinned(**id));
        if ending != Ending::WorkerDied {
            kept.for_each(|id| assert!(self.world.loaded.contains_key(id), "{id:?} is pinned"));
        }
    }

    fn limit(&self) -> u64 {
        self.memory.limit_bytes.unwrap_or(DEVICE).min(DEVICE)
    }

    fn is_pinned(&self, id: PipelineId) -> bool {
        self.world.loaded.get(&id).is_some_and(|index| self.pinned.get(*index) == Some(&true))
    }

    fn must_stay(&self, id: PipelineId) -> bool {
        self.registry.active() == Some(id) || self.is_pinned(id)
    }

    /// What would be held without those, beside the new one.
    fn needed(&self, estimate: &Estimate, gone: &[PipelineId]) -> u64 {
        let stays = |segment: &&Segment| segment.users.iter().any(|user| !gone.contains(user));
        let held: u64 = estimate.segments.iter().filter(stays).map(|segment| segment.bytes).sum();
        held + WORKING + OTHER
    }

    /// It fits, nobody leaves who must not, and nobody who could have stayed.
    fn check(&self, plan: &Plan, estimate: &Estimate, takes_over: bool) {
        assert!(self.needed(estimate, &plan.before) <= self.limit());
        for id in &plan.before {
            assert!(!self.is_pinned(*id), "{id:?} is pinned");
            assert!(takes_over || self.registry.active() != Some(*id), "{id:?} is active");
            let without: Vec<_> = plan.before.iter().copied().filter(|other| other != id).collect();
            assert!(self.needed(estimate, &without) > self.limit(), "{id:?} could have stayed");
        }
        for id in &plan.after {
            assert!(!plan.before.contains(id) && !self.is_pinned(*id));
            assert!(takes_over || self.registry.active() != Some(*id), "{id:?} is active");
        }
    }

    /// Nothing that could have left would have helped.
    fn check_refused(&self, no_room: &NoRoom, estimate: &Estimate, takes_over: bool) {
        let may_leave = |id: &PipelineId| {
            !self.is_pinned(*id) && (takes_over || self.registry.active() != Some(*id))
        };
        let all: Vec<PipelineId> = self.world.loaded.keys().copied().collect();
        let gone: Vec<PipelineId> = all.iter().copied().filter(may_leave).collect();
        let by_memory = self.needed(estimate, &gone) > self.limit();
        match no_room {
            NoRoom::TooLarge { .. } => {
                assert!(self.needed(estimate, &all) > self.limit());
            }
            NoRoom::BesideOthers { .. } => {
                assert!(by_memory && self.needed(estimate, &all) <= self.limit());
            }
            NoRoom::TooMany { max_models } => {
                assert!(all.len() - gone.len() + 1 > *max_models as usize);
            }
        }
    }

    fn leave(&mut self, ids: &[PipelineId]) {
        self.registry.remove(ids);
        self.world.loaded.retain(|id, _| !ids.contains(id));
        self.registry.reconcile(self.world.held());
    }

    /// The ledger is the sum of its parts.
    fn audit(&self) {
        let snapshot = self.registry.snapshot(&Readings::default());
        let listed: Vec<PipelineId> = snapshot.models.iter().map(|model| model.loaded.id).collect();
        let mut sorted = listed.clone();
        sorted.sort();
        assert_eq!(sorted, self.world.loaded.keys().copied().collect::<Vec<_>>());
        let segments = self.world.segments(&self.world.loaded);
        assert_eq!(
            snapshot.weights_bytes,
            segments.iter().map(|segment| segment.bytes).sum::<u64>()
        );
        for model in &snapshot.models {
            let index = self.world.loaded[&model.loaded.id];
            assert_eq!(model.own_bytes + model.shared_bytes, self.world.bytes_of(index));
            assert_eq!(model.own_bytes + model.shared_bytes, model.loaded.estimated_bytes);
        }
        let own: u64 = snapshot.models.iter().map(|model| model.own_bytes).sum();
        let shared = segments.iter().filter(|segment| segment.users.len() > 1);
        let shared: u64 = shared.map(|segment| segment.bytes).sum();
        assert_eq!(own + shared, snapshot.weights_bytes);
        assert_eq!(snapshot.loads.values().sum::<u64>(), self.loads);
        assert!(self.registry.active().is_none_or(|id| listed.contains(&id)));
    }
}

fn loaded(id: PipelineId, index: usize, estimate: &Estimate) -> Loaded {
    Loaded {
        id,
        mode: index.to_string(),
        pipeline: spec(index),
        family: "SD1.x".to_owned(),
        components: estimate.components.clone(),
        estimated_bytes: estimate.weights_bytes(),
        measured_bytes: estimate.weights_bytes(),
        load_ms: 1 + 37 * index as u64,
        merge_ms: 0,
        loras: vec![],
    }
}

#[test]
fn ten_thousand_random_days() {
    let config = ProptestConfig { cases: 10_000, failure_persistence: None, ..Default::default() };
    let mut runner = TestRunner::new(config);
    let days = (world(), proptest::collection::vec(event(), 1..30));
    let seen = std::cell::Cell::new([0u64; 3]);
    let result = runner.run(&days, |(world, events)| {
        let (memory, pinned) = (Memory::default(), vec![false; PIPELINES]);
        let registry = VramRegistry::new(&modes(memory.clone(), &pinned));
        let mut day = Day { registry, world, memory, pinned, now_ms: 1000, loads: 0 };
        for event in &events {
            let before = day.world.loaded.len();
            day.live(event);
            day.audit();
            let [loads, evictions, most] = seen.get();
            let now = day.world.loaded.len();
            let left = u64::from(now < before);
            seen.set([loads.max(day.loads), evictions + left, most.max(now as u64)]);
        }
        Ok(())
    });
    result.unwrap();
    let [loads, evictions, most] = seen.get();
    assert!(loads > 5 && evictions > 1000 && most > 3, "the days were dull: {:?}", seen.get());
}

#[test]
fn what_no_mode_has_any_more_is_unwanted() {
    let memory = Memory::default();
    let mut registry = VramRegistry::new(&modes(memory.clone(), &[false; 3]));
    let mut world =
        World { layers: vec![1], has: vec![vec![true]; PIPELINES], loaded: BTreeMap::new() };
    for index in 0..3 {
        let id = registry.new_id();
        let estimate = world.estimate(id, index);
        world.loaded.insert(id, index);
        registry.record_loaded(loaded(id, index, &estimate), world.held(), 5);
    }
    let id = |index| registry.find(&spec(index)).unwrap();
    let (gone, active) = (id(2), id(1));
    registry.set_active(Some(active));
    let removed = ModesDiff { removed: vec!["2".to_owned()], ..ModesDiff::default() };
    registry.configure(&removed, &modes(memory.clone(), &[false; 2]));
    assert_eq!(registry.idle(6), [(gone, Reason::Unwanted)]);
    // It comes back before it has left.
    let added = ModesDiff { added: vec!["2".to_owned()], ..ModesDiff::default() };
    registry.configure(&added, &modes(memory, &[false; 3]));
    assert_eq!(registry.idle(6), []);
}

#[test]
fn unloading_a_mode_takes_what_its_requests_have_made_of_it() {
    let mut registry = VramRegistry::new(&modes(Memory::default(), &[false; 2]));
    let estimate = Estimate::default();
    let mut load = |index: usize, pipeline: PipelineSpec| {
        let id = registry.new_id();
        let pipelines = (1..=id.0).map(PipelineId).collect();
        let loaded = Loaded { pipeline, ..loaded(id, index, &estimate) };
        registry.record_loaded(loaded, Held { pipelines, ..Held::default() }, 5);
        id
    };
    let own = load(0, spec(0));
    let with_lora = load(0, PipelineSpec { stamp: 7, ..spec(0) });
    let other = load(1, spec(1));
    assert_eq!(registry.of_mode("0", &spec(0)), [own, with_lora]);
    // Another mode over the same files.
    assert_eq!(registry.of_mode("1b", &spec(1)), [other]);
    assert_eq!(registry.modes(&[own, with_lora, other]), ["0", "1"]);
}

#[test]
fn a_card_is_what_the_worker_says_that_it_computes_on() {
    let mut registry = VramRegistry::new(&modes(Memory::default(), &[false]));
    let cards = [
        GpuInfo { cuda: None, total_bytes: 1000, ..GpuInfo::default() },
        GpuInfo {
            cuda: Some(0),
            name: "a card".to_owned(),
            total_bytes: 100,
            used_bytes: 60,
            worker_bytes: Some(30),
            ..GpuInfo::default()
        },
    ];
    let host = HostMemory { total_bytes: 7, used_bytes: 3 };
    let readings = Readings { host, worker_resident_bytes: 2, gpus: cards.to_vec() };
    let shown = |registry: &VramRegistry| {
        let it = registry.snapshot(&readings);
        (it.device_name, it.total_bytes, it.used_bytes, it.process_bytes)
    };
    let on = |device: &str, name: Option<&str>| Computing {
        engine: "libtorch".to_owned(),
        device: device.to_owned(),
        precision: "fp16".to_owned(),
        name: name.map(str::to_owned),
    };
    // Nobody has said anything yet: what is wished.
    assert_eq!(registry.snapshot(&readings).computing.device, "auto");
    assert_eq!(shown(&registry), (HOST.to_owned(), 7, 3, Some(2)));
    registry.set_computing(on("cpu", None));
    assert!(!registry.is_on_card());
    assert_eq!(shown(&registry), (HOST.to_owned(), 7, 3, Some(2)));

    registry.set_computing(on("cuda:0", None));
    registry.reconcile(Held { reserved_bytes: 25, allocated_bytes: 20, ..Held::default() });
    assert!(registry.is_on_card());
    assert_eq!(shown(&registry), ("a card".to_owned(), 100, 60, Some(30)));
    // Of 100 others have 30, and 5 are the context's.
    assert_eq!(registry.available_on_card(&cards), 65);
    assert_eq!(registry.keeps_of_card(&cards), Some(25));
    registry.reconcile(Held { reserved_bytes: 2, ..Held::default() });
    assert_eq!(registry.keeps_of_card(&cards), None);

    registry.set_computing(on("cuda:1", Some("another")));
    assert_eq!(shown(&registry), ("another".to_owned(), 0, 0, None));
    assert_eq!(registry.available_on_card(&cards), u64::MAX, "nobody knows that card");
    assert_eq!(registry.keeps_of_card(&cards), None);
}
