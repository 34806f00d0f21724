//! Normalisations.

use std::sync::Arc;

use super::{Load, Numbers, expect_channels};
use crate::engine::{
    checkpoint::{Held, Weights},
    nn::{
        Activation, Result, Tensor,
        cpu::norm::{self, Affine},
    },
};

/// The learned part of a normalisation.
struct Norm {
    learned: Arc<Learned>,
    epsilon: f32,
}

/// A factor and a shift for each channel.
struct Learned([Numbers; 2]);

impl Held for Learned {
    fn bytes(&self) -> u64 {
        self.0.iter().map(Held::bytes).sum()
    }
}

impl Norm {
    fn load(w: &Weights<'_>, channels: usize, epsilon: f32) -> Load<Self> {
        let names = ["weight", "bias"];
        let learned = Weights::share(&[w], &names, || {
            let [weight, bias] = names.map(|name| Numbers::load(w, name, &[channels]));
            Ok(Learned([weight?, bias?]))
        })?;
        Ok(Self { learned, epsilon })
    }

    fn channels(&self) -> usize {
        self.learned.0[0].len()
    }

    fn affine(&self) -> Affine<'_> {
        let [weight, bias] = &self.learned.0;
        Affine { weight, bias, epsilon: self.epsilon }
    }
}

/// Group normalisation with 32 groups and an activation, in one pass over the output.
pub struct GroupNorm {
    norm: Norm,
    activation: Activation,
}

impl GroupNorm {
    const GROUPS: usize = 32;

    pub fn load(
        w: &Weights<'_>,
        channels: usize,
        epsilon: f32,
        activation: Activation,
    ) -> Load<Self> {
        w.expect_multiple_of("weight", Self::GROUPS)?;
        Ok(Self { norm: Norm::load(w, channels, epsilon)?, activation })
    }

    /// `[b, .., c]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let data = x.data()?;
        expect_channels(x, self.norm.channels())?;
        let (images, affine) = (x.dims()[0], self.norm.affine());
        Tensor::build(x.dims(), |out| {
            norm::group_norm(&data, images, Self::GROUPS, &affine, self.activation, out);
        })
    }
}

/// Layer normalisation over the last dimension.
pub struct LayerNorm(Norm);

impl LayerNorm {
    pub fn load(w: &Weights<'_>, channels: usize) -> Load<Self> {
        Ok(Self(Norm::load(w, channels, 1e-5)?))
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let data = x.data()?;
        expect_channels(x, self.0.channels())?;
        Tensor::build(x.dims(), |out| norm::layer_norm(&data, &self.0.affine(), out))
    }
}
