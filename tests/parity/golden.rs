//! What the reference said, and the model it said it about.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use diffused::{
    engine::{Backend, Pipeline, Prepared, nn::Tensor},
    modes::{CheckpointRef, PipelineSpec},
};
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden")
}

pub fn json<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The tensors of a file by name, feature maps turned from `[b, c, h, w]` to `[b, h, w, c]`.
pub struct Tensors(Vec<u8>);

impl Tensors {
    pub fn open(name: &str) -> Self {
        Self(std::fs::read(folder().join(name)).unwrap())
    }

    /// The numbers and dimensions of a tensor as the reference lays them out.
    pub fn plain(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let numbers = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        (numbers.collect(), view.shape().to_vec())
    }

    pub fn get(&self, name: &str) -> Tensor {
        let (numbers, dims) = self.plain(name);
        match dims[..] {
            [b, c, h, w] => {
                let mut turned = vec![0.0; numbers.len()];
                for (i, x) in numbers.iter().enumerate() {
                    let (image, channel, pixel) = (i / (c * h * w), i / (h * w) % c, i % (h * w));
                    turned[(image * h * w + pixel) * c + channel] = *x;
                }
                Tensor::from_vec(turned, &[b, h, w, c]).unwrap()
            }
            _ => Tensor::from_vec(numbers, &dims).unwrap(),
        }
    }
}

/// The tiny model, loaded once by every engine that is built in.
pub fn pipelines() -> &'static [(Backend, Pipeline)] {
    static PIPELINES: OnceLock<Vec<(Backend, Pipeline)>> = OnceLock::new();
    PIPELINES.get_or_init(|| {
        let name = "tests/parity/golden/tiny-sd15.safetensors".to_owned();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&name);
        let spec = PipelineSpec::of(CheckpointRef { name, path });
        let backends = Backend::all_exact().into_iter();
        backends.map(|backend| (backend, load(backend, &spec))).collect()
    })
}

pub fn load(backend: Backend, spec: &PipelineSpec) -> Pipeline {
    let prepared = Prepared::open_on(backend, spec, &mut Default::default()).unwrap();
    prepared.load(Default::default(), &|_| ()).unwrap()
}

/// The largest difference, as a part of the largest number expected.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    let difference = found.iter().zip(expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(difference <= tolerance * largest, "{what}: off by {difference} of {largest}");
}
