//! Convolutions, by whichever algorithm suits their size.

use super::{Load, Numbers, expect_channels, expect_dims};
use crate::engine::{
    checkpoint::{Held, Weights},
    nn::{
        Activation, After, ConvShape, Error, Result, Tensor,
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

/// The weights of a convolution.
pub struct Conv {
    weights: ConvWeights,
    bias: Numbers,
}

impl Held for Conv {
    fn bytes(&self) -> u64 {
        let weights = match &self.weights {
            ConvWeights::Direct(weights) => weights.bytes(),
            ConvWeights::Winograd(weights) => weights.bytes(),
        };
        weights as u64 + self.bias.bytes()
    }
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

impl Conv {
    /// Reads `weight`, `[n, channels, kernel, kernel]`, and `bias`.
    pub fn load(w: &Weights<'_>, [n, channels, kernel]: [usize; 3], stride: usize) -> Load<Self> {
        let source = w.load("weight", &[n, channels, kernel, kernel])?;
        let bias = Numbers::load(w, "bias", &[n])?;
        let weights = if w.is_check() {
            ConvWeights::planned(channels, n, kernel, stride)
        } else {
            ConvWeights::new(&source, channels, n, kernel, stride)
        };
        Ok(Self { weights, bias })
    }

    /// `[b, h, w, c]` → `[b, h', w', n]`
    pub fn forward(&self, x: &Tensor, shape: &ConvShape, after: After<'_>) -> Result<Tensor> {
        let bias = &self.bias[..];
        match after {
            After::Activate(activation) => self.run(x, shape, bias, (None, activation)),
            After::Add(residual) => self.run(x, shape, bias, (Some(residual), Activation::None)),
            After::Shift(shift) => {
                let shift = shift.data()?;
                let bias: Vec<f32> =
                    shift.iter().zip(bias.iter().cycle()).map(|(s, b)| s + b).collect();
                self.run(x, shape, &bias, (None, Activation::None))
            }
            After::Geglu => Err(Error::Backend("a convolution has no gate".to_owned())),
        }
    }

    /// `bias` is one for all images, or one for each.
    fn run(
        &self,
        x: &Tensor,
        shape: &ConvShape,
        bias: &[f32],
        (residual, activation): (Option<&Tensor>, Activation),
    ) -> Result<Tensor> {
        let [images, h, w, _] = x.dims4()?;
        let (seen, out) = (shape.seen, shape.out());
        let dims = [images, out[0], out[1], shape.out_channels];
        let geometry = Geometry {
            kernel: shape.kernel,
            stride: shape.stride,
            pad_before: shape.padding[0],
            stored: [h, w],
            seen,
            out,
        };
        let data = x.data()?;
        let activate = |out: OutPtr| match activation {
            Activation::None => {}
            some => norm::activate_in_place(out, dims.iter().product(), some),
        };
        let residual = residual.map(|residual| expect_dims(residual, &dims)?.data()).transpose()?;
        let residual = residual.as_deref();
        match &self.weights {
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
