//! Memory is counted, planned to the byte, shared, asked for before it is taken, and given back.
//!
//! One test, in a program of its own: the account and its limit are the whole process's.

use std::{ops::ControlFlow, path::Path};

use diffused::{
    engine::{
        DrawError, Layers, Pipeline, Prepared,
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

fn prepared(loras: &[&str]) -> Prepared {
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
    Prepared::open(&PipelineSpec { loras, ..PipelineSpec::of(checkpoint) }, &mut Default::default())
        .unwrap()
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

/// What merging is said to take, beside what it takes; by every algorithm.
fn merging_is_bounded() {
    const DIMS: [usize; 2] = [512, 1024];
    let folder = tempfile::tempdir().unwrap();
    let dora = ("dora_scale", vec![512, 1]);
    let low_rank = [("lora_down.weight", vec![32, 1024]), ("lora_up.weight", vec![512, 32])];
    let halves = [("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")];
    let hadamard = halves.map(|(a, b)| [(a, vec![512, 32]), (b, vec![32, 1024])]).concat();
    let kronecker =
        vec![("lokr_w1", vec![4, 4]), ("lokr_w2_a", vec![128, 64]), ("lokr_w2_b", vec![64, 256])];
    let full = vec![("diff", DIMS.to_vec())];
    for (index, (parts, strength)) in [
        (low_rank.to_vec(), 0.5),
        ([&low_rank[..], &[dora.clone()]].concat(), 1.0),
        ([&low_rank[..], &[dora]].concat(), 0.5),
        ([&low_rank[..], &[("dora_scale", vec![1, 1024])]].concat(), 0.5),
        (hadamard, 0.5),
        (kronecker, 0.5),
        (full, 0.5),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = vec![0; 4 * DIMS[0] * DIMS[1]];
        let views = parts.iter().map(|(part, dims)| {
            let bytes = &bytes[..4 * dims.iter().product::<usize>()];
            (format!("unet.fc.{part}"), TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap())
        });
        let (name, path) = (index.to_string(), folder.path().join(index.to_string()));
        serialize_to_file(views, None, &path).unwrap();
        let lora = LoraRef { name, path, strength, adapter_name: None };
        let modules =
            vec![Module { canonical: "unet.fc".to_owned(), ldm: None, dims: DIMS.to_vec() }];
        let to = Recipient::new("SD1.x", Vec::new(), || modules);
        let opened = Patches::of(&[lora], &to, OnLoraError::Fail, &mut LoraCache::new());
        let patches = opened.unwrap().0;
        let mut weight = vec![1.0; DIMS[0] * DIMS[1]];
        let said = patches.working_bytes("unet.fc.weight", &DIMS);
        let (_, _, peak) = measured(|| patches.apply("unet.fc.weight", &DIMS, &mut weight));
        println!("{:?} at {strength}: {peak} of {said}", parts[0].0);
        assert!(peak <= said + (64 << 10) && said <= 2 * peak, "{parts:?}: {peak} of {said}");
    }
}

#[test]
fn memory_is_counted_planned_shared_refused_and_given_back() {
    // Threads are started, tables are made.
    draw(&load(&prepared(&[])), 256).unwrap();
    merging_is_bounded();
    let before_all = allocated_bytes();
    let with_lora = &["loras/demo-outline.safetensors"];

    // What is planned is what is taken.
    let (plain, other) = (prepared(&[]), prepared(with_lora));
    let (planned, working) = (plain.layers().bytes(), plain.working_bytes());
    let (pipeline, taken, peak) = measured(|| load(&plain));
    assert!(taken.abs_diff(planned) < BOOKKEEPING, "{taken} of {planned}");
    assert!(peak <= planned + working + BOOKKEEPING, "{peak} of {planned} and {working}");

    // A second one takes what it does not share.
    let alone = |users: &[usize]| {
        let shares = shares(&[plain.layers(), other.layers()]);
        shares.iter().filter(|share| share.users == users).map(|share| share.bytes).sum::<u64>()
    };
    let kept = || pipeline.layers().in_common_with(other.layers());
    let (second, taken, _) = measured(|| other.load(kept(), &|_| ()).unwrap());
    assert!(taken.abs_diff(alone(&[1])) < BOOKKEEPING, "{taken} of {}", alone(&[1]));
    assert!(taken < planned / 2);
    drop(second);
    let (again, _, peak) = measured(|| load(&other));
    let bound = other.layers().bytes() + other.working_bytes() + BOOKKEEPING;
    assert!(peak <= bound, "{peak} of {bound}");
    drop(again);

    // A load for which there is no room takes nothing.
    for room in [1 << 20, alone(&[1]) - BOOKKEEPING] {
        let before = allocated_bytes();
        set_limit(before + room);
        let error = other.load(kept(), &|_| ()).err().unwrap();
        set_limit(u64::MAX);
        let Error::OutOfMemory(error) = error else { panic!("{error}") };
        assert_eq!(error.limit_bytes, before + room);
        assert!(error.needed_bytes > error.limit_bytes);
        assert!(allocated_bytes().abs_diff(before) < 16 << 10, "{room}");
    }
    drop((plain, other));

    // An image for which there is no room leaves a pipeline that draws.
    let (small, _, room) = measured(|| draw(&pipeline, 64).unwrap());
    let limit = allocated_bytes() + room + CACHES;
    set_limit(limit);
    let refused = draw(&pipeline, 512).unwrap_err();
    let message = refused.to_string();
    let DrawError::OutOfMemory(error) = refused else { panic!("{refused}") };
    assert_eq!((error.limit_bytes, error.needed_bytes > limit), (limit, true));
    assert!(
        message.contains(&format!("{:.2} GiB", limit as f64 / (1u64 << 30) as f64)),
        "{message}"
    );
    assert!(draw(&pipeline, 64).unwrap() == small);
    assert!(check(1 << 10).is_ok() && check(limit).is_err());
    set_limit(u64::MAX);

    drop(pipeline);
    trim();
    let left = allocated_bytes().saturating_sub(before_all);
    assert!(left < CACHES, "{left} bytes are left");
}
