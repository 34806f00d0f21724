//! The tiny models that are too large to commit, made from their recipes (`recipe.py` says how
//! they read): the same numbers as the reference's, as a single file or as a folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use diffused::engine::noise::Generator;
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
pub struct Recipe {
    /// The canonical prefix of a module, its prefix in a single file, and its kind.
    modules: Vec<(String, String, usize)>,
    /// Of each kind the tensors that a single file has of it.
    kinds: Vec<Vec<Place>>,
    /// The configuration files of a folder.
    pub configs: BTreeMap<String, Value>,
}

/// A tensor of a single file: its name, and from which tensors it is made in what way.
#[derive(Deserialize)]
struct Place(String, How, Vec<Draw>);

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum How {
    Same,
    /// One below the other.
    Join,
    Transpose,
    /// A matrix as a convolution of 1x1.
    Pixel,
}

/// A tensor's canonical name, shape, mean and deviation, and whether it is smooth.
#[derive(Deserialize)]
struct Draw(String, Vec<usize>, f32, f32, bool);

/// A tensor that was made.
pub struct Made {
    pub dims: Vec<usize>,
    pub numbers: Vec<f32>,
}

impl Recipe {
    pub fn of(model: &str) -> Self {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden/models");
        let recipe = fs::read_to_string(recipes.join(format!("{model}.json"))).unwrap();
        serde_json::from_str(&recipe).unwrap()
    }

    /// The model's tensors as the original code's files have them.
    pub fn single_file(&self) -> Vec<(String, Made)> {
        let tensors = self.places().map(|(module, Place(name, how, draws))| {
            let sources = draws.iter().map(|draw| draw.made(&module.0)).collect();
            (format!("{}{name}", module.1), how.place(sources))
        });
        tensors.collect()
    }

    /// Their shapes alone.
    pub fn single_file_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shapes = self.places().map(|(module, Place(name, how, draws))| {
            let sources: Vec<_> = draws.iter().map(|draw| &draw.1[..]).collect();
            (format!("{}{name}", module.1), how.dims(&sources))
        });
        shapes.collect()
    }

    pub fn write_single_file(&self, path: &Path) {
        write(path, &self.single_file());
    }

    /// The tensors of one component under diffusers' names.
    pub fn component(&self, component: &str) -> Vec<(String, Made)> {
        let prefix = format!("{component}.");
        let draws =
            self.places().flat_map(|(module, place)| place.2.iter().map(move |d| (module, d)));
        let tensors = draws.filter_map(|(module, draw)| {
            let name = format!("{}{}", module.0, draw.0);
            Some((name.strip_prefix(&prefix)?.to_owned(), draw.made(&module.0)))
        });
        tensors.collect()
    }

    pub fn write_component(&self, component: &str, path: &Path) {
        write(path, &self.component(component));
    }

    /// Writes the folder that diffusers would; `scheduler` overrides what it says of the scheduler.
    pub fn write_folder(&self, folder: &Path, scheduler: &Map<String, Value>) {
        for (name, config) in &self.configs {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut config = config.clone();
            if name.starts_with("scheduler/") {
                config.as_object_mut().unwrap().extend(scheduler.clone());
            }
            fs::write(&path, config.to_string()).unwrap();
            let component = name.strip_suffix("/config.json");
            if let Some(component) = component {
                let stem =
                    if component.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
                let weights = PathBuf::from(component).join(format!("{stem}.safetensors"));
                self.write_component(component, &folder.join(weights));
            }
        }
    }

    fn places(&self) -> impl Iterator<Item = (&(String, String, usize), &Place)> {
        self.modules
            .iter()
            .flat_map(|module| self.kinds[module.2].iter().map(move |place| (module, place)))
    }
}

impl Draw {
    fn made(&self, module: &str) -> Made {
        let Self(name, dims, mean, deviation, is_smooth) = self;
        let seed = crc32(format!("{module}{name}").as_bytes());
        let mut numbers = Generator::new(seed.into()).randn(dims.iter().product());
        if *is_smooth {
            numbers.as_chunks_mut().0.iter_mut().for_each(smooth);
        }
        numbers.iter_mut().for_each(|x| *x = mean + deviation * *x);
        Made { dims: dims.clone(), numbers }
    }
}

impl How {
    fn dims(self, sources: &[&[usize]]) -> Vec<usize> {
        match (self, sources) {
            (Self::Join, [[_, rest @ ..], ..]) => {
                let rows = sources.iter().map(|dims| dims[0]).sum();
                [&[rows][..], rest].concat()
            }
            (Self::Transpose, [[rows, columns]]) => vec![*columns, *rows],
            (Self::Pixel, [[rows, columns]]) => vec![*rows, *columns, 1, 1],
            (Self::Same, [dims]) => dims.to_vec(),
            _ => panic!("no tensor is made of {sources:?} in this way"),
        }
    }

    fn place(self, sources: Vec<Made>) -> Made {
        let dims = self.dims(&sources.iter().map(|source| &source.dims[..]).collect::<Vec<_>>());
        let numbers: Vec<f32> = sources.into_iter().flat_map(|source| source.numbers).collect();
        let numbers = match (self, &dims[..]) {
            (Self::Transpose, [columns, rows]) => {
                (0..numbers.len()).map(|i| numbers[i % rows * columns + i / rows]).collect()
            }
            _ => numbers,
        };
        Made { dims, numbers }
    }
}

/// A 3x3 kernel that mostly averages over its neighbours, around the number in its centre.
fn smooth(kernel: &mut [f32; 9]) {
    const WINDOW: [f32; 3] = [0.25, 0.5, 0.25];
    let centre = 5.0 * kernel[4];
    for (i, x) in kernel.iter_mut().enumerate() {
        *x = centre * (WINDOW[i / 3] * WINDOW[i % 3]) + 0.3 * *x;
    }
}

pub fn write(path: &Path, tensors: &[(String, Made)]) {
    let bytes = |made: &Made| made.numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, made)| bytes(made)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, made), bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, made.dims.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

/// The CRC-32 of zlib.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[test]
fn a_recipes_seeds_are_zlibs() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn tensors_are_made_in_the_shapes_that_are_told() {
    let recipe = Recipe::of("sd2");
    let made = recipe.single_file().into_iter().map(|(name, made)| (name, made.dims));
    assert_eq!(recipe.single_file_shapes(), made.collect());
}
