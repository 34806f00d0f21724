//! Which tensors the original single-file checkpoints hold, and how wide their numbers spread.
//!
//! Knows nothing of files or random numbers. Names and shapes follow from the few numbers of each
//! [`Family`], by the rules that the original code builds its modules by.

mod text;
mod unet;
mod vae;

use clap::ValueEnum;
use text::{Clip, OpenClip};
use unet::{Projection, UNet};
use vae::Vae;

/// A kind of checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// Stable Diffusion 1.5: 2.1 GB, 1,131 tensors.
    Sd1,
    /// Stable Diffusion 2.1: 2.6 GB.
    Sd2,
    /// Stable Diffusion XL, base: 6.9 GB.
    Sdxl,
    /// Stable Diffusion XL, refiner: 6.1 GB.
    Refiner,
}

/// A tensor by its name in the file.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub fill: Fill,
}

/// What a tensor holds.
#[derive(Clone, Copy)]
pub enum Fill {
    /// Float16.
    Normal { mean: f32, std: f32 },
    /// 0, 1, 2 … as 64-bit integers.
    Positions,
}

/// Keeps outputs as wide as inputs.
const PLAIN: f32 = 1.0;
/// For the last layer of a branch that is added to its own input: keeps sums from growing.
const BRANCH: f32 = 0.3;

const CLIP_L: Clip = Clip { width: 768, layers: 12 };
const OPEN_CLIP_H: OpenClip = OpenClip { width: 1024, layers: 24 };
const OPEN_CLIP_BIG_G: OpenClip = OpenClip { width: 1280, layers: 32 };

impl Family {
    /// All tensors of the original file, those of training apart.
    pub fn tensors(self) -> Vec<Tensor> {
        let mut tensors = self.unet_tensors();
        let mut file = Module { prefix: String::new(), tensors: &mut tensors };
        Vae { image_channels: 3, latent_channels: 4, channels: [128, 256, 512, 512], layers: 2 }
            .build(&mut file.sub("first_stage_model"));
        match self {
            Self::Sd1 => CLIP_L.build(&mut file.sub("cond_stage_model.transformer.text_model")),
            Self::Sd2 => OPEN_CLIP_H.build(&mut file.sub("cond_stage_model.model")),
            Self::Sdxl => {
                CLIP_L.build(&mut file.sub("conditioner.embedders.0.transformer.text_model"));
                OPEN_CLIP_BIG_G.build(&mut file.sub("conditioner.embedders.1.model"));
            }
            Self::Refiner => OPEN_CLIP_BIG_G.build(&mut file.sub("conditioner.embedders.0.model")),
        }
        tensors
    }

    /// Those of the UNet, below `model.diffusion_model`.
    pub fn unet_tensors(self) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        let mut file = Module { prefix: String::new(), tensors: &mut tensors };
        self.unet().build(&mut file.sub("model.diffusion_model"));
        tensors
    }

    fn unet(self) -> UNet {
        let sd1 = UNet {
            latent_channels: 4,
            channels: &[320, 640, 1280, 1280],
            depths: &[1, 1, 1, 0],
            middle_depth: 1,
            layers: 2,
            context: CLIP_L.width,
            projection: Projection::Convolution,
            label: None,
        };
        let later = UNet { projection: Projection::Linear, ..sd1 };
        match self {
            Self::Sd1 => sd1,
            Self::Sd2 => UNet { context: OPEN_CLIP_H.width, ..later },
            Self::Sdxl => UNet {
                channels: &[320, 640, 1280],
                depths: &[0, 2, 10],
                middle_depth: 10,
                context: CLIP_L.width + OPEN_CLIP_BIG_G.width,
                // The pooled text and six numbers (sizes, crop) of 256 features each.
                label: Some(OPEN_CLIP_BIG_G.width + 6 * 256),
                ..later
            },
            Self::Refiner => UNet {
                channels: &[384, 768, 1536, 1536],
                depths: &[0, 4, 4, 0],
                middle_depth: 4,
                context: OPEN_CLIP_BIG_G.width,
                // The pooled text and five numbers (size, crop, aesthetic score).
                label: Some(OPEN_CLIP_BIG_G.width + 5 * 256),
                ..later
            },
        }
    }
}

/// Where in the tree of modules tensors are being named.
struct Module<'a> {
    /// Ends in a dot, but for the root's.
    prefix: String,
    tensors: &'a mut Vec<Tensor>,
}

impl Module<'_> {
    fn sub(&mut self, name: &str) -> Module<'_> {
        Module { prefix: format!("{}{name}.", self.prefix), tensors: self.tensors }
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, fill: Fill) {
        self.tensors.push(Tensor { name: format!("{}{name}", self.prefix), shape, fill });
    }

    /// `gain`: how wide the output spreads for an input of deviation 1.
    fn weight(&mut self, name: &str, shape: Vec<usize>, gain: f32) {
        let fan_in: usize = shape[1..].iter().product();
        let fill = Fill::Normal { mean: 0.0, std: gain / (fan_in as f32).sqrt() };
        self.push(&format!("{name}.weight"), shape, fill);
    }

    fn bias(&mut self, name: &str, channels: usize) {
        self.push(&format!("{name}.bias"), vec![channels], Fill::Normal { mean: 0.0, std: 0.05 });
    }

    fn conv(&mut self, name: &str, input: usize, output: usize, kernel: usize, gain: f32) {
        self.weight(name, vec![output, input, kernel, kernel], gain);
        self.bias(name, output);
    }

    fn linear(&mut self, name: &str, input: usize, output: usize, gain: f32) {
        self.weight(name, vec![output, input], gain);
        self.bias(name, output);
    }

    fn linear_without_bias(&mut self, name: &str, input: usize, output: usize) {
        self.weight(name, vec![output, input], PLAIN);
    }

    fn norm(&mut self, name: &str, channels: usize) {
        let scale = Fill::Normal { mean: 1.0, std: 0.05 };
        self.push(&format!("{name}.weight"), vec![channels], scale);
        self.bias(name, channels);
    }
}
