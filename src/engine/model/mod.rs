//! The networks, as their papers draw them, over [`super::nn`]; nothing about devices or files.
//!
//! Channels, depths and widths are read off the checkpoint's tensors, so that every size of a
//! family loads by the same code.

mod clip;
mod embedder;
mod resnet;
mod rrdbnet;
mod transformer;
mod unet;
mod vae;

pub use clip::ClipTextEncoder;
pub use rrdbnet::RrdbNet;
pub use unet::{Conditioning, Told, UNet};
pub use vae::{Moments, Vae};

/// Channels of the latents, which the autoencoder makes and the UNet denoises.
pub const LATENT_CHANNELS: usize = 4;
