//! What is planned is what is loaded, byte by byte, and what is shared is counted once.

use std::path::Path;

use super::*;
use crate::{
    engine::{Pipeline, Prepared},
    modes::{CheckpointRef, LoraRef, PipelineSpec},
};

const TINY: &str = "tests/parity/golden/tiny-sd15.safetensors";
const DEMO: &str = "models/demo/demo.safetensors";
const DEMO_XL: &str = "models/demo/demo-xl.safetensors";
const OUTLINE: &str = "loras/demo-outline.safetensors";
const PIXELATED: &str = "loras/demo-pixelated.safetensors";

/// A pipeline of files that come with the source.
fn prepared(checkpoint: &str, loras: &[&str]) -> Prepared {
    let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let lora = |name: &&str| LoraRef {
        name: (*name).to_owned(),
        path: path(name),
        strength: 1.0,
        adapter_name: None,
    };
    let reference = CheckpointRef { name: checkpoint.to_owned(), path: path(checkpoint) };
    let loras = loras.iter().map(lora).collect();
    Prepared::open(&PipelineSpec { loras, ..PipelineSpec::of(reference) }, &mut Default::default())
        .unwrap()
}

fn load(prepared: &Prepared) -> Pipeline {
    prepared.load(Layers::default(), &|_| ()).unwrap()
}

#[test]
fn what_is_planned_is_what_is_loaded() {
    for (checkpoint, loras, components, stored) in [
        (TINY, &[][..], &["text_encoder", "unet", "vae"][..], &["fp16", "fp16", "fp16"][..]),
        (DEMO, &[], &["text_encoder", "unet", "vae"], &["fp8", "fp16", "fp16"]),
        (DEMO, &[OUTLINE, PIXELATED], &["text_encoder", "unet", "vae"], &["fp8", "fp16", "fp16"]),
        (
            DEMO_XL,
            &[],
            &["text_encoder", "text_encoder_2", "unet", "vae"],
            &["fp8", "fp8", "fp16", "fp16"],
        ),
    ] {
        let prepared = prepared(checkpoint, loras);
        let pipeline = load(&prepared);
        let planned = prepared.layers().components();
        assert_eq!(planned, pipeline.layers().components(), "{checkpoint}");
        assert_eq!(prepared.layers().bytes(), pipeline.weights_bytes());
        assert_eq!(planned.iter().map(|c| &*c.name).collect::<Vec<_>>(), components);
        assert_eq!(planned.iter().map(|c| &*c.stored).collect::<Vec<_>>(), stored);
        assert_eq!(planned.iter().map(|c| c.bytes).sum::<u64>(), prepared.layers().bytes());
        assert_eq!(planned.iter().map(|c| c.file_bytes).sum::<u64>(), prepared.file_bytes());
        assert_eq!(pipeline.cost().bytes, prepared.file_bytes());
    }
}

#[test]
fn a_layer_that_is_only_planned_is_not_taken_over() {
    let prepared = prepared(DEMO, &[]);
    let planned = prepared.layers().in_common_with(prepared.layers());
    let pipeline = prepared.load(planned, &|_| ()).unwrap();
    assert_eq!(pipeline.cost().bytes, prepared.file_bytes());

    let mut kept = prepared.layers().in_common_with(pipeline.layers());
    kept.add(pipeline.layers().in_common_with(prepared.layers()));
    kept.add(prepared.layers().in_common_with(prepared.layers()));
    assert_eq!(prepared.load(kept, &|_| ()).unwrap().cost().bytes, 0);
}

#[test]
fn shares_count_every_layer_once() {
    let [plain, outline, pixelated] =
        [&[][..], &[OUTLINE], &[PIXELATED]].map(|loras| prepared(DEMO, loras));
    let other = prepared(TINY, &[]);
    let first = load(&plain);
    let kept = first.layers().in_common_with(outline.layers());
    let second = outline.load(kept, &|_| ()).unwrap();
    // One of the three is not loaded, which makes no difference.
    let all = [first.layers(), second.layers(), pixelated.layers(), other.layers()];
    let found = shares(&all);
    assert_eq!(found, shares(&all));

    for (index, layers) in all.iter().enumerate() {
        let its: u64 = found.iter().filter(|s| s.users.contains(&index)).map(|s| s.bytes).sum();
        assert_eq!(its, layers.bytes(), "{index}");
        assert!(found.iter().any(|share| share.users == [index]), "{found:?}");
    }
    let mut distinct = HashMap::new();
    for layers in all {
        distinct.extend(layers.0.iter().map(|(key, layer)| (key.clone(), layer.bytes)));
    }
    assert_eq!(found.iter().map(|share| share.bytes).sum::<u64>(), distinct.values().sum::<u64>());
    let vae = found.iter().filter(|share| share.component == "vae");
    assert_eq!(vae.map(|share| &share.users[..]).collect::<Vec<_>>(), [&[0, 1, 2][..], &[3]]);
    // Two loaded ones cost what the first one does, and what a LoRA touches.
    let alone: u64 = found.iter().filter(|s| s.users == [1]).map(|s| s.bytes).sum();
    assert!(alone > 0 && alone < second.weights_bytes() / 2, "{alone}");
    let read = second.layers().0.iter().filter(|(key, _)| !first.layers().0.contains_key(*key));
    assert_eq!(read.map(|(_, layer)| layer.file_bytes()).sum::<u64>(), second.cost().bytes);
}
