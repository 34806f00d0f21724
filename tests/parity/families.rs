//! Whole images of every family, from single files and from folders: text to image, drawn over
//! images, inpainted, with long and with weighted prompts.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use diffused::{
    engine::{Pipeline, Prepared},
    modes::{
        CheckpointRef, LongPrompts, PipelineSpec, Prediction, PromptSyntax, SchedulerId, Size,
        Spacing,
    },
    request::{EncodedImage, GenerateRequest, Source},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    golden::{folder, json},
    images::{MIN_PSNR_DB, psnr_db},
    recipe::Recipe,
};

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
}

#[test]
fn images_of_every_family_are_the_references() {
    let mut golden: Vec<Golden> = json("families/families.json");
    assert!(golden.len() > 90);
    let mut found = Vec::new();
    // Each pipeline is loaded once.
    while let Some(files) = golden.first().map(|golden| golden.files.clone()) {
        let pipeline = files.load();
        for golden in golden.extract_if(.., |golden| golden.files == files) {
            found.push((golden.psnr_db(&pipeline), golden.file));
        }
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("the images that differ most: {:?}", &found[..5]);
    let differing: Vec<_> = found.iter().filter(|(psnr, _)| *psnr < MIN_PSNR_DB).collect();
    assert!(differing.is_empty(), "{} of {}: {differing:#?}", differing.len(), found.len());
}

impl Files {
    fn load(&self) -> Pipeline {
        let scratch = tempfile::tempdir().unwrap();
        let spec = PipelineSpec {
            vae: self.vae.map(|layout| layout.write(scratch.path())),
            prediction: self.prediction,
            ..PipelineSpec::of(self.write(scratch.path()))
        };
        // Read to its end before the files go.
        Prepared::open(&spec).unwrap().load(&|_| ()).unwrap()
    }

    fn write(&self, scratch: &Path) -> CheckpointRef {
        if self.model == "tiny-sd15" {
            let path = "models/tiny/tiny-sd15.safetensors";
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

fn picture(file: &str) -> PathBuf {
    folder().join("families").join(file)
}
