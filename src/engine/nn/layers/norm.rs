//! Normalisations.

use std::sync::Arc;

use super::Load;
#[cfg(feature = "libtorch")]
use crate::engine::nn::torch;
use crate::engine::{
    backend::Backend,
    checkpoint::Weights,
    nn::{Activation, Result, Tensor, candle, host},
};

by_backend! {
    /// The learned part of a normalisation: a factor and a shift for each channel.
    Norm: host::Norm, candle::Norm, torch::Norm
}

impl Norm {
    fn load(w: &Weights<'_>, channels: usize) -> Load<Arc<Self>> {
        Weights::share(&[w], &["weight", "bias"], || match w.backend() {
            Backend::Cpu => host::Norm::load(w, channels).map(Self::Host),
            Backend::Candle(candle) => candle::Norm::load(candle, w, channels).map(Self::Candle),
            #[cfg(feature = "libtorch")]
            Backend::Torch(torch) => torch::Norm::load(torch, w, channels).map(Self::Torch),
        })
    }
}

/// Group normalisation with 32 groups, and an activation.
pub struct GroupNorm {
    norm: Arc<Norm>,
    epsilon: f32,
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
        Ok(Self { norm: Norm::load(w, channels)?, epsilon, activation })
    }

    /// `[b, .., c]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Self { epsilon, activation, .. } = *self;
        match &*self.norm {
            Norm::Host(norm) => norm.group(x, Self::GROUPS, epsilon, activation),
            Norm::Candle(norm) => {
                let group = |norm: &candle::norm::Norm, x: &_| {
                    norm.group(x, Self::GROUPS, epsilon, activation)
                };
                Ok(norm.run(x, group)?.into())
            }
            #[cfg(feature = "libtorch")]
            Norm::Torch(norm) => Ok(norm.group(x, Self::GROUPS, epsilon, activation)?.into()),
        }
    }
}

/// Layer normalisation over the last dimension.
pub struct LayerNorm(Arc<Norm>);

impl LayerNorm {
    const EPSILON: f32 = 1e-5;

    pub fn load(w: &Weights<'_>, channels: usize) -> Load<Self> {
        Ok(Self(Norm::load(w, channels)?))
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &*self.0 {
            Norm::Host(norm) => norm.layer(x, Self::EPSILON),
            Norm::Candle(norm) => Ok(norm.run(x, |norm, x| norm.layer(x, Self::EPSILON))?.into()),
            #[cfg(feature = "libtorch")]
            Norm::Torch(norm) => Ok(norm.layer(x, Self::EPSILON)?.into()),
        }
    }
}
