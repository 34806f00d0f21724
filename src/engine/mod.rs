//! The engine: a pipeline's files and a request in, images out. Knows nothing of jobs, HTTP or YAML.
//!
//! - [`checkpoint`]: the files, their family, their tensors under canonical names;
//! - [`lora`]: what changes those tensors when they are loaded;
//! - [`model`]: the networks, as their papers draw them, over [`nn`], the seam to the backends;
//! - [`scheduler`], [`sampling`], [`noise`]: how noise becomes latents;
//! - [`tokenizer`], [`prompt`]: how words become numbers;
//! - [`preview`]: what latents look like on their way;
//! - [`memory`]: how much is allocated, and how much may be;
//! - [`upscale`]: images made larger;
//! - [`diffusion`]: encode → denoise → decode, with `conditioning` (what the UNet is told) and
//!   `source` (what is drawn over).

pub mod backend;
pub mod checkpoint;
mod conditioning;
pub mod diffusion;
mod inspect;
pub mod lora;
pub mod memory;
pub mod model;
pub mod nn;
pub mod noise;
pub mod preview;
pub mod prompt;
pub mod sampling;
pub mod scheduler;
mod source;
pub mod tokenizer;
pub mod upscale;
pub mod verify;

pub use backend::Backend;
pub use checkpoint::{Component, Layers, Share, shares};
pub use inspect::inspect;

use std::{ops::ControlFlow, time::Duration};

use crate::{
    image,
    modes::{LoraReport, PipelineSpec, SchedulerId, Size},
    request::{GenerateRequest, RequestField},
};
use checkpoint::{Access, Checkpoint, Facts, Family, Loading, Reading, ReadingCost};
use conditioning::Remembered;
use lora::{LoraCache, Patches, Recipient};
use model::{ClipTextEncoder, LATENT_CHANNELS, UNet, Vae};
use nn::Activation;
use preview::Glimpse;

/// Channels of the UNet's input where it is told what is masked: latents, mask, masked latents.
const INPAINTING_CHANNELS: usize = 2 * LATENT_CHANNELS + 1;

/// The networks of a checkpoint.
pub struct Models {
    /// CLIP's of SD1.x and SDXL, OpenCLIP's of SD2.x.
    pub text_encoder: Option<ClipTextEncoder>,
    /// The larger OpenCLIP's of SDXL and its refiner.
    pub text_encoder_2: Option<ClipTextEncoder>,
    pub unet: UNet,
    pub vae: Vae,
}

impl Models {
    fn read(facts: &Facts, reading: &Reading<'_>) -> Result<Self, checkpoint::Error> {
        let first = |activation| {
            ClipTextEncoder::load(&reading.weights("text_encoder"), activation, false).map(Some)
        };
        let second = || {
            let weights = reading.weights("text_encoder_2");
            ClipTextEncoder::load(&weights, Activation::Gelu, true).map(Some)
        };
        let (text_encoder, text_encoder_2) = match facts.family {
            Family::Sd1 => (first(Activation::QuickGelu)?, None),
            Family::Sd2 => (first(Activation::Gelu)?, None),
            Family::Sdxl => (first(Activation::QuickGelu)?, second()?),
            Family::SdxlRefiner => (None, second()?),
        };
        let encoders = [&text_encoder, &text_encoder_2];
        let context = encoders.into_iter().flatten().map(ClipTextEncoder::width).sum();
        let weights = reading.weights("unet");
        let unet = UNet::load(&weights, context, facts.heads)?;
        if ![LATENT_CHANNELS, INPAINTING_CHANNELS].contains(&unet.in_channels()) {
            weights.at("conv_in").refuse("weight", "4 input channels, or 9 for inpainting")?;
        }
        let vae = Vae::load(&reading.weights("vae"), LATENT_CHANNELS)?;
        let models = Self { text_encoder, text_encoder_2, unet, vae };
        models.check_added(facts, &weights)?;
        Ok(models)
    }

    /// What the UNet is told besides text must have room for it, and be asked for by SDXL alone.
    fn check_added(
        &self,
        facts: &Facts,
        unet: &checkpoint::Weights<'_>,
    ) -> Result<(), checkpoint::Error> {
        let ids = match facts.family {
            Family::Sd1 | Family::Sd2 => return Ok(()),
            Family::Sdxl => 6,
            Family::SdxlRefiner => 5,
        };
        let pooled = self.pooled_width();
        let spread = self.unet.added_width().and_then(|width| width.checked_sub(pooled));
        if spread.is_none_or(|spread| spread == 0 || spread % (2 * ids) != 0) {
            let expected = format!("[.., {pooled} and {ids} times an even number]");
            unet.at("add_embedding.linear_1").refuse("weight", &expected)?;
        }
        Ok(())
    }

    /// Width of what stands for the prompt as a whole.
    fn pooled_width(&self) -> usize {
        self.text_encoder_2.as_ref().map_or(0, ClipTextEncoder::projected_width)
    }
}

/// A pipeline's files, opened and found to be whole, with every tensor that is needed in the right
/// shape and type: nothing of them has been read yet.
pub struct Prepared {
    backend: Backend,
    checkpoint: Checkpoint,
    facts: Facts,
    patches: Patches,
    loras: Vec<LoraReport>,
    /// What it will be made of; they hold nothing.
    planned: Layers,
    file_bytes: u64,
}

impl Prepared {
    /// Opens the files, to draw on the CPU by candle.
    pub fn open(spec: &PipelineSpec, loras: &mut LoraCache) -> Result<Self, checkpoint::Error> {
        Self::open_on(Backend::Cpu, spec, loras)
    }

    /// Opens the files; LoRAs that are in the cache are open already.
    pub fn open_on(
        backend: Backend,
        spec: &PipelineSpec,
        loras: &mut LoraCache,
    ) -> Result<Self, checkpoint::Error> {
        let checkpoint = Checkpoint::open(spec, Access::Tensors)?;
        let mut facts = checkpoint.facts().clone();
        let (patches, loras) = if spec.loras.is_empty() {
            Default::default()
        } else {
            let files = checkpoint.files_of_modules();
            let to = Recipient::new(facts.family.name(), files, || checkpoint.modules());
            Patches::of(&spec.loras, &to, spec.on_lora_error, loras)?
        };
        facts.is_lcm |= patches.has_lcm();
        let check = Reading::check(backend, checkpoint.networks(), &patches);
        Models::read(&facts, &check)?;
        let (planned, cost) = check.finish();
        Ok(Self { backend, checkpoint, facts, patches, loras, planned, file_bytes: cost.bytes })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The layers that it will be made of: planned, with the sizes that they will have.
    pub fn layers(&self) -> &Layers {
        &self.planned
    }

    /// What there is to read of files where nothing is taken over.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// What making a layer takes beside the finished ones, of the layer that takes most: its
    /// numbers as f32, before they are packed, and what LoRAs are merged into them with.
    pub fn working_bytes(&self) -> u64 {
        self.planned.working_bytes()
    }

    /// Reads the weights. Layers that are `kept` are taken over and not read: the caller gathers
    /// them from other pipelines ([`Layers::in_common_with`]), and lets go of those that have to
    /// make room before. `on_progress` hears what fraction is there.
    pub fn load(
        &self,
        kept: Layers,
        on_progress: &dyn Fn(f32),
    ) -> Result<Pipeline, checkpoint::Error> {
        self.load_watched(kept, &|fraction| {
            on_progress(fraction);
            ControlFlow::Continue(())
        })
    }

    /// The same; `watch` is asked before each tensor whether to go on.
    ///
    /// # Errors
    /// As [`Self::load`]; [`checkpoint::Error::Cancelled`] if `watch` ended it.
    pub fn load_watched(
        &self,
        kept: Layers,
        watch: &dyn Fn(f32) -> ControlFlow<()>,
    ) -> Result<Pipeline, checkpoint::Error> {
        let total = self.file_bytes.max(1);
        let on_bytes = |bytes: u64| watch(bytes as f32 / total as f32);
        let loading = Loading { planned: &self.planned, kept, on_bytes: &on_bytes };
        let reading =
            Reading::load(self.backend, self.checkpoint.networks(), &self.patches, loading);
        let models = Models::read(&self.facts, &reading)?;
        let (layers, cost) = reading.finish();
        let (facts, loras) = (self.facts.clone(), self.loras.clone());
        Ok(Pipeline { facts, models, layers, loras, cost, remembered: Default::default() })
    }
}

/// A loaded pipeline, ready to draw.
pub struct Pipeline {
    facts: Facts,
    models: Models,
    /// What prompts became.
    remembered: Remembered,
    /// Those of the models, for other pipelines that have them too.
    layers: Layers,
    loras: Vec<LoraReport>,
    cost: ReadingCost,
}

/// Images and how they came about.
pub struct Drawn {
    pub size: Size,
    /// Of each image its rows top to bottom, three bytes a pixel.
    pub images: Vec<Vec<u8>>,
    pub scheduler: SchedulerId,
    /// The end of the prompt that the text encoders did not see.
    pub prompt_truncated: Option<String>,
    pub encode: Duration,
    pub denoise: Duration,
    pub decode: Duration,
}

/// A denoising step that was just finished, from 1 to `steps`; step 0 says that denoising begins.
/// The steps of several images are counted through; some schedulers ask the model twice for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub step: u32,
    pub steps: u32,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Scheduler(#[from] scheduler::Error),
    #[error("clip_skip {clip_skip} leaves nothing of a text encoder with {layers} layers")]
    ClipSkip { clip_skip: u32, layers: usize },
    #[error("{} {error}", .field.name())]
    Source { field: RequestField, error: image::DecodeError },
    #[error(
        "the autoencoder (VAE) has no encoder, so that no image can be drawn over; name another one as the mode's 'vae'"
    )]
    NoEncoder,
    #[error(
        "the model's numbers left the range of numbers (NaN), so that there is no image; its weights may be damaged, or made for a LoRA strength far from this"
    )]
    NotFinite,
    #[error(transparent)]
    OutOfMemory(memory::OutOfMemory),
    #[error("the engine failed: {0}")]
    Engine(nn::Error),
}

impl From<nn::Error> for DrawError {
    fn from(error: nn::Error) -> Self {
        match error {
            nn::Error::OutOfMemory(error) => Self::OutOfMemory(error),
            error @ nn::Error::Backend(_) => Self::Engine(error),
        }
    }
}

impl DrawError {
    /// The field of the request that the model cannot follow, if it is one's fault.
    pub fn field(&self) -> Option<RequestField> {
        match self {
            Self::Scheduler(scheduler::Error::TooManySteps { .. }) => Some(RequestField::Steps),
            Self::Scheduler(scheduler::Error::NoStepLeft { .. }) => {
                Some(RequestField::DenoiseStrength)
            }
            Self::Scheduler(
                scheduler::Error::NoZeroTerminalSnr { .. }
                | scheduler::Error::NothingToPredict { .. },
            ) => Some(RequestField::Scheduler),
            Self::ClipSkip { .. } => Some(RequestField::ClipSkip),
            Self::Source { field, .. } => Some(*field),
            Self::NoEncoder => Some(RequestField::InitImage),
            Self::Cancelled | Self::NotFinite | Self::OutOfMemory(_) | Self::Engine(_) => None,
        }
    }
}

impl Pipeline {
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What became of the LoRAs, in their order.
    pub fn loras(&self) -> &[LoraReport] {
        &self.loras
    }

    /// What it took to load it.
    pub fn cost(&self) -> ReadingCost {
        self.cost
    }

    /// What it is made of, alone or with others.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The weights as they are held in memory.
    pub fn weights_bytes(&self) -> u64 {
        self.layers.bytes()
    }

    /// Draws the images that the request describes. `on_step` can end it at every step.
    pub fn draw(
        &self,
        request: &GenerateRequest,
        on_step: &mut dyn FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Drawn, DrawError> {
        self.draw_watched(request, &mut |step, _| on_step(step))
    }

    /// The same; `watch` may look at the first image, too, after each of its steps.
    pub fn draw_watched(
        &self,
        request: &GenerateRequest,
        watch: &mut dyn FnMut(Step, Option<&Glimpse<'_>>) -> ControlFlow<()>,
    ) -> Result<Drawn, DrawError> {
        diffusion::draw((&self.models, &self.facts, &self.remembered), request, watch)
    }

    /// Whether it draws at all: one step of a small image, through all of the networks.
    ///
    /// # Errors
    /// [`DrawError::NotFinite`] where weights are damaged.
    pub fn probe(&self) -> Result<(), DrawError> {
        diffusion::probe(&self.models, &self.facts)
    }

    /// The networks one by one, for those who measure or compare them.
    pub fn models(&self) -> &Models {
        &self.models
    }
}
