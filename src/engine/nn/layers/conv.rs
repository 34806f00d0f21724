//! Convolutions.

use std::sync::Arc;

use super::Load;
#[cfg(feature = "libtorch")]
use crate::engine::nn::torch;
use crate::engine::{
    backend::Backend,
    checkpoint::Weights,
    nn::{Activation, After, ConvShape, Result, Tensor, candle, host},
};

/// A square convolution with zero padding.
pub struct Conv2d {
    kernels: Arc<Kernels>,
    kernel: usize,
    stride: usize,
    /// Zeros before and after each row and column.
    padding: [usize; 2],
    out_channels: usize,
}

by_backend! {
    /// The weights of a [`Conv2d`].
    Kernels: host::Conv, candle::Conv, torch::Conv
}

impl Conv2d {
    /// Reads `weight`, `[n, channels, kernel, kernel]`, and `bias`. Padding keeps the size.
    pub fn load(w: &Weights<'_>, channels: usize, kernel: usize) -> Load<Self> {
        Self::load_strided(w, [channels, kernel], 1, [kernel / 2; 2])
    }

    /// 3×3 at every other pixel, with `padding` zeros before and after: downsampling.
    pub fn load_stride2(w: &Weights<'_>, channels: usize, padding: [usize; 2]) -> Load<Self> {
        Self::load_strided(w, [channels, 3], 2, padding)
    }

    fn load_strided(
        w: &Weights<'_>,
        [channels, kernel]: [usize; 2],
        stride: usize,
        padding: [usize; 2],
    ) -> Load<Self> {
        let n = w.dims("weight")?[0];
        let kernels = Weights::share(&[w], &["weight", "bias"], || match w.backend() {
            Backend::Cpu => host::Conv::load(w, [n, channels, kernel], stride).map(Kernels::Host),
            Backend::Candle(candle) => {
                candle::Conv::load(candle, w, [n, channels, kernel], stride, padding)
                    .map(Kernels::Candle)
            }
            #[cfg(feature = "libtorch")]
            Backend::Torch(torch) => {
                torch::Conv::load(torch, w, [n, channels, kernel, kernel]).map(Kernels::Torch)
            }
        })?;
        Ok(Self { kernels, kernel, stride, padding, out_channels: n })
    }

    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// `[b, h, w, c]` → `[b, h/stride, w/stride, n]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, After::NOTHING)
    }

    /// `activation(forward(x))`.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(x, After::Activate(activation))
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(x, After::Add(residual))
    }

    /// `forward(x) + shift`, with a `[b, n]` shift for all pixels of an image.
    pub fn forward_shift(&self, x: &Tensor, shift: &Tensor) -> Result<Tensor> {
        self.run(x, After::Shift(shift))
    }

    /// The convolution of `x` enlarged to `size` by nearest neighbour; and the activation of that.
    pub fn forward_enlarged(
        &self,
        x: &Tensor,
        size: [usize; 2],
        activation: Activation,
    ) -> Result<Tensor> {
        self.run_on(x, size, After::Activate(activation))
    }

    fn run(&self, x: &Tensor, after: After<'_>) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        self.run_on(x, [h, w], after)
    }

    fn run_on(&self, x: &Tensor, seen: [usize; 2], after: After<'_>) -> Result<Tensor> {
        let shape = ConvShape {
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            out_channels: self.out_channels,
            seen,
        };
        match &*self.kernels {
            Kernels::Host(conv) => conv.forward(x, &shape, after),
            Kernels::Candle(conv) => Ok(conv.forward(x, &shape, after)?.into()),
            #[cfg(feature = "libtorch")]
            Kernels::Torch(conv) => Ok(conv.forward(x, &shape, after)?.into()),
        }
    }
}
