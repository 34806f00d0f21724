//! Normalisations.

use super::{Load, Numbers, expect_channels};
use crate::engine::{
    checkpoint::{Held, Weights},
    nn::{
        Activation, Result, Tensor,
        cpu::norm::{self, Affine},
    },
};

/// The learned part of a normalisation: a factor and a shift for each channel.
pub struct Norm {
    weight: Numbers,
    bias: Numbers,
}

impl Held for Norm {
    fn bytes(&self) -> u64 {
        self.weight.bytes() + self.bias.bytes()
    }
}

impl Norm {
    pub fn load(w: &Weights<'_>, channels: usize) -> Load<Self> {
        let [weight, bias] = ["weight", "bias"].map(|name| Numbers::load(w, name, &[channels]));
        Ok(Self { weight: weight?, bias: bias? })
    }

    fn affine(&self, epsilon: f32) -> Affine<'_> {
        Affine { weight: &self.weight, bias: &self.bias, epsilon }
    }

    /// `[b, .., c]`, in one pass over the output.
    pub fn group(
        &self,
        x: &Tensor,
        groups: usize,
        epsilon: f32,
        activation: Activation,
    ) -> Result<Tensor> {
        let data = x.data()?;
        expect_channels(x, self.weight.len())?;
        let (images, affine) = (x.dims()[0], self.affine(epsilon));
        Tensor::build(x.dims(), |out| {
            norm::group_norm(&data, images, groups, &affine, activation, out);
        })
    }

    /// Over the last dimension.
    pub fn layer(&self, x: &Tensor, epsilon: f32) -> Result<Tensor> {
        let data = x.data()?;
        expect_channels(x, self.weight.len())?;
        Tensor::build(x.dims(), |out| norm::layer_norm(&data, &self.affine(epsilon), out))
    }
}
