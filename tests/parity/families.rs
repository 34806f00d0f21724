//! Every family: whole images from single files and from folders (text to image, drawn over images,
//! inpainted, with long and with weighted prompts), and the stages where faults hide.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use diffused::{
    engine::{
        Backend, DrawError, Pipeline, Prepared, model::Conditioning, nn::Tensor,
        tokenizer::tokenize,
    },
    modes::{
        CheckpointRef, LongPrompts, PipelineSpec, Prediction, PromptSyntax, SchedulerId, Size,
        Spacing,
    },
    request::{EncodedImage, GenerateRequest, Source},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    golden::{Tensors, assert_close, folder, json, load, pipelines},
    images::{MIN_PSNR_DB, psnr_db},
    recipe::{Recipe, write},
};

/// `<|endoftext|>`
const END: u32 = 49407;

#[derive(Deserialize)]
struct Golden {
    file: String,
    #[serde(flatten)]
    files: Files,
    prompt: String,
    negative_prompt: Option<String>,
    width: u32,
    height: u32,
    steps: u32,
    guidance_scale: f32,
    guidance_rescale: f32,
    n: u32,
    seed: u64,
    scheduler: Option<SchedulerId>,
    timestep_spacing: Option<Spacing>,
    eta: f32,
    clip_skip: u32,
    long_prompts: LongPrompts,
    prompt_syntax: PromptSyntax,
    init_image: Option<String>,
    mask_image: Option<String>,
    denoise_strength: Option<f32>,
}

/// What an image is drawn with.
#[derive(Deserialize, Clone, PartialEq)]
struct Files {
    model: String,
    layout: Layout,
    vae: Option<VaeLayout>,
    scheduler_config: Map<String, Value>,
    prediction: Option<Prediction>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Layout {
    Single,
    Folder,
}

/// How an autoencoder lies beside its checkpoint.
#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum VaeLayout {
    Single,
    Folder,
    /// A single file with diffusers' names.
    Renamed,
    /// In a folder with a whole model.
    Model,
}

#[test]
fn images_of_every_family_are_the_references() {
    let mut golden: Vec<Golden> = json("families/families.json");
    assert!(golden.len() > 100);
    let mut found = Vec::new();
    // Each pipeline is loaded once.
    while let Some(files) = golden.first().map(|golden| golden.files.clone()) {
        let pipelines = Backend::all_exact().into_iter();
        let pipelines: Vec<_> = pipelines.map(|it| (it.engine(), files.load(it))).collect();
        for golden in golden.extract_if(.., |golden| golden.files == files) {
            for (engine, pipeline) in &pipelines {
                found.push((golden.psnr_db(pipeline), format!("{} by {engine}", golden.file)));
            }
        }
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("the images that differ most: {:?}", &found[..5]);
    let differing: Vec<_> = found.iter().filter(|(psnr, _)| *psnr < MIN_PSNR_DB).collect();
    assert!(differing.is_empty(), "{} of {}: {differing:#?}", differing.len(), found.len());
}

impl Files {
    fn of(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            layout: Layout::Single,
            vae: None,
            scheduler_config: Map::new(),
            prediction: None,
        }
    }

    fn load(&self, backend: Backend) -> Pipeline {
        let scratch = tempfile::tempdir().unwrap();
        let spec = PipelineSpec {
            vae: self.vae.map(|layout| layout.write(scratch.path())),
            prediction: self.prediction,
            ..PipelineSpec::of(self.write(scratch.path()))
        };
        let prepared = Prepared::open_on(backend, &spec, &mut Default::default()).unwrap();
        // Read to its end before the files go.
        let pipeline = prepared.load(Default::default(), &|_| ()).unwrap();
        assert_eq!(prepared.layers().components(), pipeline.layers().components());
        pipeline
    }

    fn write(&self, scratch: &Path) -> CheckpointRef {
        if self.model == "tiny-sd15" {
            let path = "tests/parity/golden/tiny-sd15.safetensors";
            return named(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
        }
        let recipe = Recipe::of(&self.model);
        match self.layout {
            Layout::Single => {
                let path = scratch.join("single.safetensors");
                recipe.write_single_file(&path);
                named(path)
            }
            Layout::Folder => {
                let path = scratch.join("folder");
                recipe.write_folder(&path, &self.scheduler_config);
                named(path)
            }
        }
    }
}

impl VaeLayout {
    fn write(self, scratch: &Path) -> CheckpointRef {
        let recipe = Recipe::of("vae");
        let path = scratch.join("autoencoder.safetensors");
        match self {
            Self::Single => recipe.write_single_file(&path),
            Self::Renamed => recipe.write_component("vae", &path),
            Self::Folder => {
                recipe.write_folder(scratch, &Map::new());
                return named(scratch.join("vae"));
            }
            Self::Model => {
                let path = scratch.join("model");
                recipe.write_folder(&path, &Map::new());
                return named(path);
            }
        }
        named(path)
    }
}

fn named(path: PathBuf) -> CheckpointRef {
    CheckpointRef { name: path.file_name().unwrap().to_str().unwrap().to_owned(), path }
}

impl Golden {
    fn psnr_db(&self, pipeline: &Pipeline) -> f64 {
        let expected = image::open(picture(&self.file)).unwrap().to_rgb8();
        assert_eq!(expected.dimensions(), (self.width, self.height * self.n), "{}", self.file);
        match pipeline.draw(&self.request(), &mut |_| ControlFlow::Continue(())) {
            Ok(drawn) => psnr_db(&drawn.images.concat(), expected.as_raw()),
            Err(error) => panic!("{}: {error}", self.file),
        }
    }

    fn request(&self) -> GenerateRequest {
        let read = |file: &String| EncodedImage(Arc::from(std::fs::read(picture(file)).unwrap()));
        GenerateRequest {
            negative_prompt: self.negative_prompt.clone(),
            size: Size::new(self.width, self.height).unwrap(),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            guidance_rescale: self.guidance_rescale,
            n: self.n,
            seed: self.seed,
            scheduler: self.scheduler,
            timestep_spacing: self.timestep_spacing,
            eta: self.eta,
            clip_skip: self.clip_skip,
            long_prompts: self.long_prompts,
            prompt_syntax: self.prompt_syntax,
            source: self.init_image.as_ref().map(|image| Source {
                image: read(image),
                mask: self.mask_image.as_ref().map(read),
                denoise_strength: self.denoise_strength.unwrap(),
            }),
            ..GenerateRequest::of("tiny", &*self.prompt)
        }
    }
}

/// A sound model of every family passes its probe; with one number damaged, whichever network it
/// is in, it does not.
#[test]
fn damaged_weights_are_found_by_a_probe() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("model.safetensors");
    let probe = |backend| load(backend, &PipelineSpec::of(named(path.clone()))).probe();
    let backends = Backend::all_exact();
    let mut models: Vec<_> = std::fs::read_dir(folder().join("models")).unwrap().collect();
    models.retain(|model| model.as_ref().unwrap().file_name() != "vae.json");
    assert!(models.len() > 5);
    for model in models {
        let model = model.unwrap().path();
        let model = model.file_stem().unwrap().to_str().unwrap();
        let mut tensors = Recipe::of(model).single_file();
        write(&path, &tensors);
        for backend in &backends {
            probe(*backend).unwrap_or_else(|error| panic!("{model}, {backend:?}: {error}"));
        }
        for part in [
            "input_blocks.1.0.in_layers.2.weight",
            "decoder.mid.block_1.conv1.weight",
            "token_embedding.weight",
        ] {
            let at = tensors.iter().position(|(name, _)| name.ends_with(part)).unwrap();
            // The last token is the one at a prompt's end.
            let numbers = &mut tensors[at].1.numbers;
            let last = numbers.len() - 1;
            let sound = std::mem::replace(&mut numbers[last], f32::NAN);
            write(&path, &tensors);
            for backend in &backends {
                let found = probe(*backend);
                let what = format!("{model}, {part}, {backend:?}: {found:?}");
                assert!(matches!(found, Err(DrawError::NotFinite)), "{what}");
            }
            tensors[at].1.numbers[last] = sound;
        }
    }
}

#[test]
fn text_embeddings_and_unet_steps_of_every_family_are_the_references() {
    const TEXT: &str = "a red fox in the snow, golden hour";
    const TIMESTEP: f32 = 601.0;
    let tensors = Tensors::open("families/stages.safetensors");
    // OpenCLIP is padded with zeros.
    let ids = tokenize(TEXT);
    let end = ids.iter().position(|id| *id == END).unwrap();
    let open_clip_ids = [&ids[..=end], &vec![0; ids.len() - end - 1]].concat();
    let models = ["sd2", "sdxl", "refiner"].into_iter();
    let cases =
        models.flat_map(|model| Backend::all_exact().into_iter().map(move |it| (model, it)));
    for (model, backend) in cases {
        let part = |part: &str| tensors.get(&format!("{model}.{part}"));
        let close = |what: &str, found: &Tensor, tolerance: f32| {
            let (found, expected) = (found.to_vec().unwrap(), part(what).to_vec().unwrap());
            assert_close(
                &format!("{model}, {}: {what}", backend.engine()),
                &found,
                &expected,
                tolerance,
            );
        };
        let pipeline = Files::of(model).load(backend);
        let models = pipeline.models();
        let mut added = None;
        if let Some(second) = &models.text_encoder_2 {
            let (hidden, pooled) =
                second.hidden_and_pooled(std::slice::from_ref(&open_clip_ids), 1, &[end]).unwrap();
            let first = models.text_encoder.as_ref();
            let first = first.map(|first| first.hidden(std::slice::from_ref(&ids), 1).unwrap());
            let all: Vec<_> = first.iter().chain([&hidden]).collect();
            close("context", &Tensor::cat(&all, 2).unwrap(), 1e-5);
            close("pooled", &pooled, 1e-5);
            let time_ids = part("time_ids").to_vec().unwrap();
            added = models.unet.embed_added(&part("pooled"), &time_ids).unwrap();
        } else {
            let encoder = models.text_encoder.as_ref().unwrap();
            let found = encoder.encode(std::slice::from_ref(&open_clip_ids), 0).unwrap();
            close("context", &found, 1e-5);
        }
        let conditioning = Conditioning { context: part("context"), added, guidance: None };
        let told = models.unet.tell(&conditioning, &[TIMESTEP]).unwrap();
        let found = models.unet.step(&part("latents"), &told, 0).unwrap();
        close("out", &found, 2e-5);
    }
}

#[test]
fn a_vaes_encoding_is_the_references() {
    let tensors = Tensors::open("families/stages.safetensors");
    let sizes = [(64, 64), (96, 64), (72, 104)].into_iter();
    let cases = sizes.flat_map(|size| pipelines().iter().map(move |engine| (size, engine)));
    for ((width, height), (backend, pipeline)) in cases {
        let vae = &pipeline.models().vae;
        let rgb = image::open(picture(&format!("init-{width}x{height}.png"))).unwrap().to_rgb8();
        let numbers =
            rgb.as_raw().iter().map(|byte| f32::from(*byte) / 255.0 * 2.0 - 1.0).collect();
        let rgb = Tensor::from_vec(numbers, &[1, height, width, 3]).unwrap();
        let found = vae.encode(&rgb).unwrap().unwrap();
        let name = format!("tiny-sd15.{width}x{height}.moments");
        let expected = tensors.get(&name).to_vec().unwrap();
        let (mean, log_variance): (Vec<_>, Vec<_>) =
            expected.chunks(8).map(|pixel| (&pixel[..4], &pixel[4..])).unzip();
        let log_variance = log_variance.concat().into_iter();
        let deviation: Vec<f32> =
            log_variance.map(|x| (x.clamp(-30.0, 20.0) / 2.0).exp()).collect();
        let what = format!("{}: {name}", backend.engine());
        assert_close(&what, &found.mean.to_vec().unwrap(), &mean.concat(), 2e-5);
        assert_close(&what, &found.deviation.to_vec().unwrap(), &deviation, 2e-5);
    }
}

fn picture(file: &str) -> PathBuf {
    folder().join("families").join(file)
}
