//! The engine: a checkpoint and a request in, an image out. Knows nothing of jobs, HTTP or YAML.
//!
//! - [`checkpoint`]: the file, its family, its tensors under canonical names;
//! - [`model`]: the networks, as their papers draw them, over [`nn`], the seam to the backends;
//! - [`scheduler`], [`sampling`], [`noise`], [`tokenizer`]: what is neither network nor file;
//! - [`diffusion`]: encode → denoise → decode.

pub mod checkpoint;
pub mod diffusion;
pub mod model;
pub mod nn;
pub mod noise;
pub mod sampling;
pub mod scheduler;
pub mod tokenizer;

use std::{ops::ControlFlow, time::Duration};

use crate::{modes::SchedulerId, request::GenerateRequest};
use checkpoint::{Checkpoint, Reading};
use diffusion::{LATENT_CHANNELS, Models};
use model::{ClipTextEncoder, Heads, UNet, VaeDecoder};

/// A checkpoint's kind; it fixes only what the tensors' shapes cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.x.
    Sd1,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "SD1.x",
        }
    }

    /// What draws where neither mode nor request names a scheduler.
    pub fn default_scheduler(self) -> SchedulerId {
        match self {
            Self::Sd1 => SchedulerId::Ddim,
        }
    }

    fn heads(self) -> Heads {
        match self {
            Self::Sd1 => Heads::Count(8),
        }
    }
}

/// A loaded checkpoint, ready to draw.
pub struct Pipeline {
    family: Family,
    models: Models,
}

/// An image, rows top to bottom, three bytes a pixel, and how it came about.
pub struct Drawn {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
    pub scheduler: SchedulerId,
    pub encode: Duration,
    pub denoise: Duration,
    pub decode: Duration,
}

/// A denoising step that was just finished, from 1 to `steps`; step 0 says that denoising begins.
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
    Sampling(#[from] scheduler::Error),
    #[error("clip_skip {clip_skip} leaves nothing of a text encoder with {layers} layers")]
    ClipSkip { clip_skip: u32, layers: usize },
    #[error("the engine failed: {0}")]
    Engine(#[from] nn::Error),
}

impl Pipeline {
    /// Looks whether the checkpoint has every tensor that its pipeline needs, in the right shape
    /// and type, without reading any.
    pub fn check(checkpoint: &Checkpoint) -> Result<(), checkpoint::Error> {
        Self::read(checkpoint, &Reading::check(checkpoint)).map(drop)
    }

    /// Checks, then loads. `on_progress` hears what fraction has been read.
    pub fn load(
        checkpoint: &Checkpoint,
        on_progress: &dyn Fn(f32),
    ) -> Result<Self, checkpoint::Error> {
        let check = Reading::check(checkpoint);
        Self::read(checkpoint, &check)?;
        let total = check.bytes().max(1);
        let on_bytes = |bytes: u64| on_progress(bytes as f32 / total as f32);
        Self::read(checkpoint, &Reading::load(checkpoint, &on_bytes))
    }

    fn read(checkpoint: &Checkpoint, reading: &Reading<'_>) -> Result<Self, checkpoint::Error> {
        let family = checkpoint.family();
        let text_encoder = ClipTextEncoder::load(&reading.weights("text_encoder"))?;
        let weights = reading.weights("unet");
        let unet = UNet::load(&weights, text_encoder.width(), family.heads())?;
        if unet.in_channels() != LATENT_CHANNELS {
            weights.at("conv_in").refuse("weight", "4 input channels (no inpainting model)")?;
        }
        let vae = VaeDecoder::load(&reading.weights("vae"), LATENT_CHANNELS)?;
        Ok(Self { family, models: Models { text_encoder, unet, vae } })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// The weights as they are held in memory.
    pub fn weights_bytes(&self) -> u64 {
        let Models { text_encoder, unet, vae } = &self.models;
        (text_encoder.bytes() + unet.bytes() + vae.bytes()) as u64
    }

    /// Draws the image that the request describes. `on_step` can end it at every step.
    pub fn draw(
        &self,
        request: &GenerateRequest,
        on_step: &mut dyn FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Drawn, DrawError> {
        diffusion::draw(&self.models, self.family, request, on_step)
    }

    /// The networks one by one, for those who measure or compare them.
    pub fn parts(&self) -> (&ClipTextEncoder, &UNet, &VaeDecoder) {
        let Models { text_encoder, unet, vae } = &self.models;
        (text_encoder, unet, vae)
    }
}
