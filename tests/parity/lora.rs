//! LoRAs of every spelling and algorithm, made from their recipes (`lora.py` says how they read):
//! single weights, and whole images.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    path::Path,
};

use diffused::{
    engine::{
        Backend, Pipeline, Prepared,
        checkpoint::Module,
        lora::{LoraCache, Patches, Recipient},
        noise::Generator,
    },
    modes::{CheckpointRef, LoraRef, OnLoraError, PipelineSpec, SchedulerId, Size},
    request::GenerateRequest,
};
use half::{bf16, f16};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde::Deserialize;

use crate::{
    golden::{Tensors, assert_close, folder, json, load},
    images::{MIN_PSNR_DB, psnr_db},
    recipe::{Recipe, crc32},
};

#[derive(Deserialize)]
struct Golden {
    files: BTreeMap<String, Lora>,
    images: Vec<Image>,
    weights: Vec<Weight>,
}

#[derive(Deserialize)]
struct Lora {
    tensors: Vec<Draw>,
    metadata: HashMap<String, String>,
    dtype: String,
}

/// A tensor's name, shape, mean and deviation.
#[derive(Deserialize)]
struct Draw(String, Vec<usize>, f32, f32);

#[derive(Deserialize, Clone)]
struct Image {
    file: String,
    model: String,
    loras: Vec<(String, f32)>,
    prompt: String,
    size: u32,
    steps: u32,
    guidance_scale: f32,
    scheduler: SchedulerId,
    seed: u64,
}

#[derive(Deserialize)]
struct Weight {
    name: String,
    strength: f32,
    base: Draw,
    lora: Lora,
}

impl Draw {
    fn numbers(&self) -> Vec<f32> {
        let Self(name, dims, mean, deviation) = self;
        let seed = crc32(name.as_bytes());
        let numbers = Generator::new(seed.into()).randn(dims.iter().product());
        numbers.into_iter().map(|x| mean + deviation * x).collect()
    }
}

impl Lora {
    fn write(&self, folder: &Path, name: &str, strength: f32) -> LoraRef {
        let dtype = match self.dtype.as_str() {
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            _ => Dtype::F32,
        };
        let bytes = self.tensors.iter().map(|draw| {
            let numbers = draw.numbers().into_iter();
            match dtype {
                Dtype::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
                Dtype::BF16 => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
                _ => numbers.flat_map(f32::to_le_bytes).collect(),
            }
        });
        let bytes: Vec<Vec<u8>> = bytes.collect();
        let views = self.tensors.iter().zip(&bytes).map(|(Draw(name, dims, ..), bytes)| {
            (name, TensorView::new(dtype, dims.clone(), bytes).unwrap())
        });
        let name = format!("{name}.safetensors");
        let path = folder.join(&name);
        // Written anew it would be another file.
        if !path.exists() {
            serialize_to_file(views, Some(self.metadata.clone()), &path).unwrap();
        }
        LoraRef { name, path, strength, adapter_name: None }
    }
}

#[test]
fn weights_are_the_references() {
    let (golden, tensors): (Golden, _) =
        (json("lora/loras.json"), Tensors::open("lora/weights.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    assert!(golden.weights.len() > 30);
    for Weight { name, strength, base, lora } in golden.weights {
        let module = lora.tensors[0].0.split('.').take(2).collect::<Vec<_>>().join(".");
        let modules = vec![Module { canonical: module.clone(), ldm: None, dims: base.1.clone() }];
        let to = Recipient::new("SD1.x", Vec::new(), || modules);
        let file = lora.write(folder.path(), &name, strength);
        let (patches, reports) =
            Patches::of(&[file], &to, OnLoraError::Fail, &mut LoraCache::new()).unwrap();
        assert_eq!((reports[0].merged, reports[0].unmatched), (1, 0), "{name}");
        let mut weight = base.numbers();
        patches.apply(&format!("{module}.weight"), &base.1, &mut weight);
        assert_close(&name, &weight, &tensors.plain(&name).0, 2e-6);
    }
}

/// What a pipeline is made of: one of the tiny checkpoints, and LoRAs.
fn spec(golden: &Golden, folder: &Path, model: &str, loras: &[(String, f32)]) -> PipelineSpec {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden");
    let name = format!("{model}.safetensors");
    let mut path = shipped.join(&name);
    if !path.exists() {
        path = folder.join(&name);
        Recipe::of(model).write_single_file(&path);
    }
    let loras =
        loras.iter().map(|(name, strength)| golden.files[name].write(folder, name, *strength));
    PipelineSpec { loras: loras.collect(), ..PipelineSpec::of(CheckpointRef { name, path }) }
}

fn draw(pipeline: &Pipeline, image: &Image) -> Vec<u8> {
    let request = GenerateRequest {
        size: Size::new(image.size, image.size).unwrap(),
        steps: image.steps,
        guidance_scale: image.guidance_scale,
        seed: image.seed,
        scheduler: Some(image.scheduler),
        ..GenerateRequest::of("tiny", image.prompt.clone())
    };
    pipeline.draw(&request, &mut |_| ControlFlow::Continue(())).unwrap().images.remove(0)
}

#[test]
fn images_with_loras_are_the_references() {
    let golden: Golden = json("lora/loras.json");
    let temporary = tempfile::tempdir().unwrap();
    for image in &golden.images {
        let spec = spec(&golden, temporary.path(), &image.model, &image.loras);
        let expected = image::open(folder().join("lora").join(&image.file)).unwrap().to_rgb8();
        for backend in Backend::all_exact() {
            let pipeline = load(backend, &spec);
            assert!(pipeline.loras().iter().all(|lora| lora.merged > 0 && lora.unmatched == 0));
            let psnr = psnr_db(&draw(&pipeline, image), expected.as_raw());
            println!("{} by {}: {psnr:.1} dB", image.file, backend.engine());
            assert!(psnr >= MIN_PSNR_DB, "{} by {}: {psnr:.1} dB", image.file, backend.engine());
        }
    }
}

/// Modes on one checkpoint with other LoRAs, one after another: what is loaded is what is loaded
/// from nothing, bit by bit, and only what a LoRA touches is read.
#[test]
fn pipelines_share_what_no_lora_touches() {
    Backend::all_exact().into_iter().for_each(share_what_no_lora_touches);
}

fn share_what_no_lora_touches(backend: Backend) {
    let golden: Golden = json("lora/loras.json");
    let temporary = tempfile::tempdir().unwrap();
    let spec = |loras: &[(&str, f32)]| {
        let loras: Vec<_> = loras.iter().map(|(name, x)| ((*name).to_owned(), *x)).collect();
        spec(&golden, temporary.path(), "tiny-sd15", &loras)
    };
    let image = Image { steps: 1, guidance_scale: 1.0, ..golden.images[0].clone() };
    let load = |spec: &PipelineSpec| load(backend, spec);
    let plain = load(&spec(&[]));
    let (whole, without) = (plain.cost().bytes, draw(&plain, &image));
    let mut before = plain;
    let mut drawn = Vec::new();
    for (loras, most) in [
        (&[("old", 0.0)][..], 0.0),
        (&[("old", 1.0)], 0.25),
        (&[("old", 1.0)], 0.0),
        (&[("old", 0.5)], 0.25),
        (&[("kohya", 1.0), ("old", 0.5)], 0.5),
        (&[("old", 0.5)], 0.5),
        (&[], 0.25),
    ] {
        let spec = spec(loras);
        let prepared = Prepared::open_on(backend, &spec, &mut Default::default()).unwrap();
        let kept = before.layers().in_common_with(prepared.layers());
        drop(before);
        let shared = prepared.load(kept, &|_| ()).unwrap();
        let read = shared.cost().bytes as f64 / whole as f64;
        assert!(read <= most && (read > 0.0) == (most > 0.0), "{loras:?}: {read} was read");
        let fresh = load(&spec);
        assert_eq!(fresh.cost().bytes, whole, "{loras:?}");
        drawn.push(draw(&shared, &image));
        assert_eq!(drawn.last(), Some(&draw(&fresh, &image)), "{loras:?}");
        before = shared;
    }
    // A strength of nothing is nothing, and the base is what it was.
    assert_eq!(drawn[0], without);
    assert_eq!(drawn[6], without);
    assert_ne!(drawn[1], without);
    assert_eq!(drawn[1], drawn[2]);
    assert_ne!(drawn[3], drawn[1]);
    assert_eq!(drawn[3], drawn[5]);
}

/// What has left a card may wait in the host's memory: back from there it is what it was, without a
/// look at its file.
#[cfg(feature = "libtorch")]
#[test]
fn layers_come_back_from_the_hosts_memory_as_they_were() {
    use diffused::engine::checkpoint::Home;

    let golden: Golden = json("lora/loras.json");
    let temporary = tempfile::tempdir().unwrap();
    let backend = *Backend::all_exact().last().unwrap();
    let spec = spec(&golden, temporary.path(), "tiny-sd15", &[("old".to_owned(), 1.0)]);
    let image = Image { steps: 1, ..golden.images[0].clone() };
    let prepared = Prepared::open_on(backend, &spec, &mut Default::default()).unwrap();
    let pipeline = prepared.load(Default::default(), &|_| ()).unwrap();
    let drawn = draw(&pipeline, &image);
    let waiting = pipeline.layers().moved(Home::Host).unwrap();
    assert_eq!(waiting.bytes(), pipeline.weights_bytes());
    drop(pipeline);
    let back = waiting.moved(Home::Device).unwrap();
    drop(waiting);
    let again = prepared.load(back, &|_| ()).unwrap();
    assert_eq!(again.cost().bytes, 0);
    assert!(draw(&again, &image) == drawn);
}
