//! Convolutions, by whichever algorithm suits their size.

use std::sync::Arc;

use super::{Load, Numbers, expect_channels, expect_dims};
use crate::engine::{
    checkpoint::{Held, Weights},
    nn::{
        Activation, Result, Tensor,
        cpu::{
            OutPtr,
            conv::{self, Geometry},
            gemm::Finish,
            norm,
            packed::PackedWeights,
            winograd::{Winograd, WinogradWeights},
        },
    },
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

/// The weights of a [`Conv2d`].
struct Kernels {
    weights: ConvWeights,
    bias: Numbers,
}

impl Held for Kernels {
    fn bytes(&self) -> u64 {
        let weights = match &self.weights {
            ConvWeights::Direct(weights) => weights.bytes(),
            ConvWeights::Winograd(weights) => weights.bytes(),
        };
        weights as u64 + self.bias.bytes()
    }
}

/// What becomes of the sums.
enum Then<'a> {
    Add(&'a Tensor),
    /// While they are where they are.
    Activate(Activation),
}

/// By which algorithm a convolution runs; chosen when it is loaded.
enum ConvWeights {
    Direct(PackedWeights),
    Winograd(WinogradWeights),
}

impl ConvWeights {
    /// Winograd's weights are four times as large. That pays where there are many pixels for few
    /// weights, and not in the innermost blocks (1280 × 1280 channels, 8 × 8 pixels).
    const MAX_WINOGRAD: usize = 1_300_000;
    /// With fewer channels the transforms cost more than they save.
    const MIN_CHANNELS: usize = 32;

    fn is_winograd(channels: usize, n: usize, kernel: usize, stride: usize) -> bool {
        let wide = channels.min(n) >= Self::MIN_CHANNELS
            && channels.saturating_mul(n) <= Self::MAX_WINOGRAD;
        kernel == 3 && stride == 1 && wide
    }

    fn new(source: &[f32], channels: usize, n: usize, kernel: usize, stride: usize) -> Self {
        if Self::is_winograd(channels, n, kernel, stride) {
            return Self::Winograd(WinogradWeights::new(source, channels, n));
        }
        let taps = kernel * kernel;
        let at = |n: usize, tap: usize, c: usize| source[(n * channels + c) * taps + tap];
        Self::Direct(PackedWeights::pack(taps, channels, n, at))
    }

    /// The same without its numbers.
    fn planned(channels: usize, n: usize, kernel: usize, stride: usize) -> Self {
        if Self::is_winograd(channels, n, kernel, stride) {
            Self::Winograd(WinogradWeights::planned(channels, n))
        } else {
            Self::Direct(PackedWeights::planned(kernel * kernel, channels, n))
        }
    }
}

impl Conv2d {
    /// Reads `weight`, `[n, channels, kernel, kernel]`, and `bias`. Padding keeps the size.
    pub fn load(w: &Weights<'_>, channels: usize, kernel: usize) -> Load<Self> {
        Self::load_strided(w, channels, kernel, 1, [kernel / 2; 2])
    }

    /// 3×3 at every other pixel, with `padding` zeros before and after: downsampling.
    pub fn load_stride2(w: &Weights<'_>, channels: usize, padding: [usize; 2]) -> Load<Self> {
        Self::load_strided(w, channels, 3, 2, padding)
    }

    fn load_strided(
        w: &Weights<'_>,
        channels: usize,
        kernel: usize,
        stride: usize,
        padding: [usize; 2],
    ) -> Load<Self> {
        let n = w.dims("weight")?[0];
        let kernels = Weights::share(&[w], &["weight", "bias"], || {
            let source = w.load("weight", &[n, channels, kernel, kernel])?;
            let bias = Numbers::load(w, "bias", &[n])?;
            let weights = if w.is_check() {
                ConvWeights::planned(channels, n, kernel, stride)
            } else {
                ConvWeights::new(&source, channels, n, kernel, stride)
            };
            Ok(Kernels { weights, bias })
        })?;
        Ok(Self { kernels, kernel, stride, padding, out_channels: n })
    }

    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// `[b, h, w, c]` → `[b, h/stride, w/stride, n]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_activated(x, Activation::None)
    }

    /// `activation(forward(x))`.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        self.run(x, [h, w], &self.kernels.bias, Then::Activate(activation))
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        self.run(x, [h, w], &self.kernels.bias, Then::Add(residual))
    }

    /// `forward(x) + shift`, with a `[b, n]` shift for all pixels of an image.
    pub fn forward_shift(&self, x: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        let bias: Vec<f32> = shift
            .data()?
            .iter()
            .zip(self.kernels.bias.iter().cycle())
            .map(|(s, b)| s + b)
            .collect();
        self.run(x, [h, w], &bias, Then::Activate(Activation::None))
    }

    /// The convolution of `x` enlarged to `size` by nearest neighbour, without enlarging it; and the
    /// activation of that.
    pub fn forward_enlarged(
        &self,
        x: &Tensor,
        size: [usize; 2],
        activation: Activation,
    ) -> Result<Tensor> {
        self.run(x, size, &self.kernels.bias, Then::Activate(activation))
    }

    fn run(&self, x: &Tensor, seen: [usize; 2], bias: &[f32], then: Then<'_>) -> Result<Tensor> {
        let [images, h, w, _] = x.dims4()?;
        let [before, after] = self.padding;
        let out =
            seen.map(|size| (size + before + after).saturating_sub(self.kernel) / self.stride + 1);
        let dims = [images, out[0], out[1], self.out_channels];
        let geometry = Geometry {
            kernel: self.kernel,
            stride: self.stride,
            pad_before: before,
            stored: [h, w],
            seen,
            out,
        };
        let data = x.data()?;
        let (residual, activation) = match then {
            Then::Add(residual) => (Some(residual), Activation::None),
            Then::Activate(activation) => (None, activation),
        };
        let activate = |out: OutPtr| match activation {
            Activation::None => {}
            some => norm::activate_in_place(out, dims.iter().product(), some),
        };
        let residual = residual.map(|residual| expect_dims(residual, &dims)?.data()).transpose()?;
        let residual = residual.as_deref();
        match &self.kernels.weights {
            ConvWeights::Direct(weights) => {
                expect_channels(x, weights.k)?;
                let finish = residual.map_or(Finish::Store, Finish::Add);
                Tensor::build(&dims, |out| {
                    conv::conv2d(&data, images, geometry, weights, Some(bias), finish, out);
                    activate(out);
                })
            }
            ConvWeights::Winograd(weights) => {
                expect_channels(x, weights.channels)?;
                let [rows, columns] = [0, 1]
                    .map(|axis| (0..seen[axis]).map(geometry.stored_at(axis)).collect::<Vec<_>>());
                let winograd = Winograd {
                    weights,
                    x: &data,
                    images,
                    stored: [h, w],
                    rows: &rows,
                    columns: &columns,
                    bias,
                    residual,
                };
                Tensor::build_beside(winograd.scratch(), &dims, |out| {
                    winograd.run(out);
                    activate(out);
                })
            }
        }
    }
}
