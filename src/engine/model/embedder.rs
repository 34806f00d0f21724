//! How a UNet is told numbers: spread over waves, then through a small network.

use crate::engine::{
    checkpoint::{Error, Weights},
    nn::{self, Activation, Linear, Tensor},
};

/// Two linear layers with a silu between them (diffusers' `TimestepEmbedding`).
pub struct Embedder {
    linear1: Linear,
    linear2: Linear,
    pub width_in: usize,
}

/// `[cos(t·f), sin(t·f)]` with f falling from 1 to 1/10000, in f32 as the reference computes it
/// (diffusers' `get_timestep_embedding` with `flip_sin_to_cos` and no shift).
pub fn sinusoids(timesteps: &[f32], width: usize) -> Vec<f32> {
    let half = width / 2;
    let frequency = |i: usize| (-(10_000f32.ln()) * i as f32 / half as f32).exp();
    let angles = |t: f32| (0..half).map(move |i| t * frequency(i));
    timesteps
        .iter()
        .flat_map(|t| angles(*t).map(f32::cos).chain(angles(*t).map(f32::sin)))
        .collect()
}

impl Embedder {
    /// Width of what it makes.
    pub fn out_channels(&self) -> usize {
        self.linear2.out_channels()
    }

    pub fn load(w: &Weights<'_>, width_in: usize) -> Result<Self, Error> {
        let width = w.at("linear_1").dims("weight")?[0];
        Self::load_to(w, width_in, width)
    }

    /// What it takes is as wide as its weights say.
    pub fn load_any_width(w: &Weights<'_>, width: usize) -> Result<Self, Error> {
        let width_in = w.at("linear_1").dims("weight")?.last().copied().unwrap_or(0);
        Self::load_to(w, width_in, width)
    }

    pub fn load_to(w: &Weights<'_>, width_in: usize, width: usize) -> Result<Self, Error> {
        Ok(Self {
            linear1: Linear::load_to(&w.at("linear_1"), width_in, width)?,
            linear2: Linear::load_to(&w.at("linear_2"), width, width)?,
            width_in,
        })
    }

    /// `[b, width_in]` → `[b, width]`
    pub fn forward(&self, x: &Tensor) -> nn::Result<Tensor> {
        self.linear2.forward(&nn::activate(&self.linear1.forward(x)?, Activation::Silu)?)
    }
}
