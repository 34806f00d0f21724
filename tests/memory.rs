//! Memory is counted, planned to the byte, shared, asked for before it is taken, and given back.
//!
//! One test, in a program of its own: the account and its limit are the whole process's.

use std::{ops::ControlFlow, path::Path};

use diffused::{
    engine::{
        Backend, DrawError, Layers, Pipeline, Prepared,
        checkpoint::{Error, Module},
        lora::{LoraCache, Patches, Recipient},
        memory::{allocated_bytes, check, peak_bytes, reset_peak, set_limit, trim},
        shares,
    },
    modes::{CheckpointRef, LoraRef, OnLoraError, PipelineSpec, Size},
    request::GenerateRequest,
};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};

/// Keys of layers, headers and the like.
const BOOKKEEPING: u64 = 1 << 20;
/// What threads keep for the next image.
const CACHES: u64 = 2 << 20;

fn prepared(backend: Backend, loras: &[&str]) -> Prepared {
    let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let lora = |name: &&str| LoraRef {
        name: (*name).to_owned(),
        path: path(name),
        strength: 1.0,
        adapter_name: None,
    };
    let name = "models/demo/demo.safetensors";
    let checkpoint = CheckpointRef { name: name.to_owned(), path: path(name) };
    let loras = loras.iter().map(lora).collect();
    let spec = PipelineSpec { loras, ..PipelineSpec::of(checkpoint) };
    Prepared::open_on(backend, &spec, &mut Default::default()).unwrap()
}

fn load(prepared: &Prepared) -> Pipeline {
    prepared.load(Layers::default(), &|_| ()).unwrap()
}

fn draw(pipeline: &Pipeline, side: u32) -> Result<Vec<u8>, DrawError> {
    let size = Size::new(side, side).unwrap();
    let request = GenerateRequest { size, steps: 1, ..GenerateRequest::of("tiny", "a circle") };
    let mut drawn = pipeline.draw(&request, &mut |_| ControlFlow::Continue(()))?;
    Ok(drawn.images.remove(0))
}

/// What `work` gives, what it left allocated and the most that it had allocated.
fn measured<T>(work: impl FnOnce() -> T) -> (T, u64, u64) {
    reset_peak();
    let before = allocated_bytes();
    let result = work();
    (result, allocated_bytes().saturating_sub(before), peak_bytes() - before)
}

const WEIGHT: [usize; 2] = [512, 1024];

/// A module's tensors in a LoRA, without the module's name.
type Parts = Vec<(&'static str, Vec<usize>)>;

/// LoRAs for one weight by every algorithm, and how strongly they are merged.
fn loras() -> Vec<(Parts, f32)> {
    let low_rank = [("lora_down.weight", vec![32, 1024]), ("lora_up.weight", vec![512, 32])];
    let with = |part, dims: &[usize]| [&low_rank[..], &[(part, dims.to_vec())]].concat();
    let halves = [("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")];
    let hadamard = halves.map(|(a, b)| [(a, vec![512, 32]), (b, vec![32, 1024])]).concat();
    let kronecker =
        vec![("lokr_w1", vec![4, 4]), ("lokr_w2_a", vec![128, 64]), ("lokr_w2_b", vec![64, 256])];
    vec![
        (low_rank.to_vec(), 0.5),
        (with("dora_scale", &[512, 1]), 1.0),
        (with("dora_scale", &[512, 1]), 0.5),
        (with("dora_scale", &[1, 1024]), 0.5),
        (hadamard, 0.5),
        (kronecker, 0.5),
        (vec![("diff", WEIGHT.to_vec())], 0.5),
    ]
}

/// Merging takes no more than it says, and it does not say much more.
fn merging_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let zeros = vec![0; 4 * WEIGHT[0] * WEIGHT[1]];
    let dims = WEIGHT.to_vec();
    let module = Module { canonical: "unet.fc".to_owned(), ldm: None, dims };
    let to = Recipient::new("SD1.x", Vec::new(), || vec![module]);
    for (index, (parts, strength)) in loras().into_iter().enumerate() {
        let views = parts.iter().map(|(part, dims)| {
            let bytes = &zeros[..4 * dims.iter().product::<usize>()];
            (format!("unet.fc.{part}"), TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap())
        });
        let (name, path) = (index.to_string(), folder.path().join(index.to_string()));
        serialize_to_file(views, None, &path).unwrap();
        let lora = LoraRef { name, path, strength, adapter_name: None };
        let opened = Patches::of(&[lora], &to, OnLoraError::Fail, &mut LoraCache::new());
        let patches = opened.unwrap().0;
        let mut weight = vec![1.0; WEIGHT[0] * WEIGHT[1]];
        let said = patches.working_bytes("unet.fc.weight", &WEIGHT);
        let (_, _, peak) = measured(|| patches.apply("unet.fc.weight", &WEIGHT, &mut weight));
        assert!(peak <= said + (64 << 10) && said <= 2 * peak, "{parts:?}: {peak} of {said}");
    }
}

#[test]
fn memory_is_counted_planned_shared_refused_and_given_back() {
    merging_is_bounded();
    for backend in Backend::all_exact() {
        println!("{}", backend.engine());
        // Threads are started, tables are made.
        draw(&load(&prepared(backend, &[])), 256).unwrap();
        let before = allocated_bytes();
        let pipeline = what_is_planned_is_taken(backend);
        what_is_shared_is_taken_once(backend, &pipeline);
        a_load_without_room_takes_nothing(backend, &pipeline);
        // Candle's own operations ask nobody: they are for cards, whose allocator refuses.
        if !matches!(backend, Backend::Candle(_)) {
            an_image_without_room_leaves_a_pipeline_that_draws(&pipeline);
        }
        drop(pipeline);
        trim();
        let left = allocated_bytes().saturating_sub(before);
        assert!(left < CACHES, "{left} bytes are left");
    }
}

const OUTLINE: &[&str] = &["loras/demo-outline.safetensors"];

fn what_is_planned_is_taken(backend: Backend) -> Pipeline {
    let mut pipelines = [&[], OUTLINE].map(|loras| {
        let prepared = prepared(backend, loras);
        let (planned, working) = (prepared.layers().bytes(), prepared.working_bytes());
        let (pipeline, taken, peak) = measured(|| load(&prepared));
        assert!(taken.abs_diff(planned) < BOOKKEEPING, "{taken} of {planned}");
        assert!(peak <= planned + working + BOOKKEEPING, "{peak} of {planned} and {working}");
        Some(pipeline)
    });
    pipelines[0].take().unwrap()
}

/// What another pipeline would hold alone beside this one.
fn alone(pipeline: &Pipeline, other: &Prepared) -> u64 {
    let shares = shares(&[pipeline.layers(), other.layers()]);
    shares.iter().filter(|share| share.users == [1]).map(|share| share.bytes).sum()
}

fn what_is_shared_is_taken_once(backend: Backend, pipeline: &Pipeline) {
    let other = prepared(backend, OUTLINE);
    let kept = pipeline.layers().in_common_with(other.layers());
    let (second, taken, _) = measured(|| other.load(kept, &|_| ()).unwrap());
    let alone = alone(pipeline, &other);
    assert!(taken.abs_diff(alone) < BOOKKEEPING, "{taken} of {alone}");
    assert!(taken < second.weights_bytes() / 2);
}

fn a_load_without_room_takes_nothing(backend: Backend, pipeline: &Pipeline) {
    let other = prepared(backend, OUTLINE);
    for room in [1 << 20, alone(pipeline, &other) - BOOKKEEPING] {
        let before = allocated_bytes();
        set_limit(before + room);
        let kept = pipeline.layers().in_common_with(other.layers());
        let error = other.load(kept, &|_| ()).err().unwrap();
        set_limit(u64::MAX);
        let Error::OutOfMemory(error) = error else { panic!("{error}") };
        assert_eq!(error.limit_bytes, before + room);
        assert!(error.needed_bytes > error.limit_bytes);
        assert!(allocated_bytes().abs_diff(before) < 16 << 10, "{room}");
    }
}

fn an_image_without_room_leaves_a_pipeline_that_draws(pipeline: &Pipeline) {
    let (small, _, room) = measured(|| draw(pipeline, 64).unwrap());
    let limit = allocated_bytes() + room + CACHES;
    set_limit(limit);
    let refused = draw(pipeline, 512).unwrap_err();
    let message = refused.to_string();
    let DrawError::OutOfMemory(error) = refused else { panic!("{refused}") };
    assert_eq!((error.limit_bytes, error.needed_bytes > limit), (limit, true));
    for bytes in [error.needed_bytes, limit] {
        let gib = format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
        assert!(message.contains(&gib), "{message}");
    }
    assert!(draw(pipeline, 64).unwrap() == small);
    assert!(check(1 << 10).is_ok() && check(limit).is_err());
    set_limit(u64::MAX);
}
