//! Layers: weights taken from a checkpoint once, then only run.
//!
//! What a layer has packed is shared with the next pipeline that is made of the same tensors.

use std::sync::Arc;

use super::{
    Activation, Error, Result, Tensor,
    cpu::{
        conv::{self, Geometry},
        gemm::{self, Finish, Product},
        norm::{self, Affine},
        packed::PackedWeights,
        winograd::{Winograd, WinogradWeights},
    },
};
use crate::engine::checkpoint::{self, Weights};

type Load<T> = std::result::Result<T, checkpoint::Error>;

/// `x·Wᵀ + b` over the last dimension.
pub struct Linear {
    out_channels: usize,
    dense: Arc<Dense>,
}

/// The weights of a [`Linear`] or a [`Geglu`].
struct Dense {
    weights: PackedWeights,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Reads `weight`, `[n, k]`, of a layer without a bias.
    pub fn load_unbiased(w: &Weights<'_>, k: usize) -> Load<Self> {
        let n = w.dims("weight")?[0];
        Self::stack_unbiased(&[w], k, n)
    }

    /// Reads `weight` (`[n, k]`, or a 1×1 convolution's `[n, k, 1, 1]`) and `bias`.
    pub fn load(w: &Weights<'_>, k: usize) -> Load<Self> {
        let n = w.dims("weight")?[0];
        Self::load_to(w, k, n)
    }

    /// The same, with a number of outputs that is known already.
    pub fn load_to(w: &Weights<'_>, k: usize, n: usize) -> Load<Self> {
        Self::stack(&[w], k, n)
    }

    /// Several layers of `n` outputs over the same input as one: their outputs stand side by side.
    pub fn stack(parts: &[&Weights<'_>], k: usize, n: usize) -> Load<Self> {
        let dense = Weights::share(parts, &["weight", "bias"], || {
            let weights = Self::pack(parts, k, n)?;
            let biases = parts.iter().map(|w| w.load("bias", &[n])).collect::<Load<Vec<_>>>()?;
            Ok(Dense { weights, bias: Some(biases.concat()) })
        })?;
        Ok(Self { out_channels: n * parts.len(), dense })
    }

    /// The same, of layers that have no bias.
    pub fn stack_unbiased(parts: &[&Weights<'_>], k: usize, n: usize) -> Load<Self> {
        let dense = Weights::share(parts, &["weight"], || {
            Ok(Dense { weights: Self::pack(parts, k, n)?, bias: None })
        })?;
        Ok(Self { out_channels: n * parts.len(), dense })
    }

    fn pack(parts: &[&Weights<'_>], k: usize, n: usize) -> Load<PackedWeights> {
        let mut rows = Vec::new();
        for w in parts {
            let dims: &[usize] = if w.dims("weight")?.len() == 4 { &[n, k, 1, 1] } else { &[n, k] };
            rows.extend(w.load("weight", dims)?);
        }
        if parts.iter().any(|w| w.is_check()) {
            return Ok(PackedWeights::default());
        }
        Ok(PackedWeights::pack(1, k, n * parts.len(), |n, _, d| rows[n * k + d]))
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Finish::Store)
    }

    /// Width of the output.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(x, Finish::Add(&residual.data()?))
    }

    pub fn bytes(&self) -> usize {
        self.dense.weights.bytes()
    }

    fn run(&self, x: &Tensor, finish: Finish<'_>) -> Result<Tensor> {
        self.dense.forward(x, self.out_channels, finish)
    }
}

/// A projection to twice the width, of which one half gates the other (Shazeer, 2020).
pub struct Geglu {
    dense: Arc<Dense>,
    half: usize,
}

impl Geglu {
    pub fn load(w: &Weights<'_>, k: usize) -> Load<Self> {
        let n = w.dims("weight")?[0];
        let dense = Weights::share(&[w], &["weight", "bias"], || {
            let (rows, bias) = (w.load("weight", &[n, k])?, w.load("bias", &[n])?);
            if w.is_check() {
                return Ok(Dense { weights: PackedWeights::default(), bias: None });
            }
            let (weights, bias) = PackedWeights::pack_geglu(k, n / 2, &rows, &bias);
            Ok(Dense { weights, bias: Some(bias) })
        })?;
        Ok(Self { dense, half: n / 2 })
    }

    /// `[.., k]` → `[.., half]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.dense.forward(x, self.half, Finish::Geglu)
    }

    pub fn out_channels(&self) -> usize {
        self.half
    }

    pub fn bytes(&self) -> usize {
        self.dense.weights.bytes()
    }
}

impl Dense {
    /// `[.., k]` → `[.., columns]`
    fn forward(&self, x: &Tensor, columns: usize, finish: Finish<'_>) -> Result<Tensor> {
        let (weights, bias) = (&self.weights, self.bias.as_deref());
        let k = weights.k;
        let (mut dims, data) = (x.dims().to_vec(), x.data()?);
        expect_channels(x, k)?;
        let count = data.len() / k.max(1);
        if let Some(last) = dims.last_mut() {
            *last = columns;
        }
        let rows = gemm::Dense::new(&data, k, count, k);
        let (images, rows_per_image, out_stride) = (1, count, columns);
        let product =
            Product { rows, images, rows_per_image, weights, bias, finish, columns, out_stride };
        Tensor::build(&dims, |out| product.run(out))
    }
}

fn expect_channels(x: &Tensor, expected: usize) -> Result<()> {
    match x.dims().last() {
        Some(last) if *last == expected => Ok(()),
        _ => Err(shape_error(x, &format!("[.., {expected}]"))),
    }
}

fn expect_dims<'a>(x: &'a Tensor, dims: &[usize]) -> Result<&'a Tensor> {
    if x.dims() == dims { Ok(x) } else { Err(shape_error(x, &format!("{dims:?}"))) }
}

fn shape_error(x: &Tensor, expected: &str) -> Error {
    candle_core::Error::msg(format!("a tensor {:?} where {expected} belongs", x.dims())).into()
}

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
    bias: Vec<f32>,
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

    fn new(source: &[f32], channels: usize, n: usize, kernel: usize, stride: usize) -> Self {
        let wide = channels.min(n) >= Self::MIN_CHANNELS && channels * n <= Self::MAX_WINOGRAD;
        if kernel == 3 && stride == 1 && wide {
            return Self::Winograd(WinogradWeights::new(source, channels, n));
        }
        let taps = kernel * kernel;
        let at = |n: usize, tap: usize, c: usize| source[(n * channels + c) * taps + tap];
        Self::Direct(PackedWeights::pack(taps, channels, n, at))
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
            let bias = w.load("bias", &[n])?;
            let weights = if w.is_check() {
                ConvWeights::Direct(PackedWeights::default())
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

    pub fn bytes(&self) -> usize {
        match &self.kernels.weights {
            ConvWeights::Direct(weights) => weights.bytes(),
            ConvWeights::Winograd(weights) => weights.bytes(),
        }
    }

    /// `[b, h, w, c]` → `[b, h/stride, w/stride, n]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        self.run(x, [h, w], &self.kernels.bias, None)
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        self.run(x, [h, w], &self.kernels.bias, Some(residual))
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
        self.run(x, [h, w], &bias, None)
    }

    /// The convolution of `x` enlarged to `size` by nearest neighbour, without enlarging it.
    pub fn forward_enlarged(&self, x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
        self.run(x, size, &self.kernels.bias, None)
    }

    fn run(
        &self,
        x: &Tensor,
        seen: [usize; 2],
        bias: &[f32],
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
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
        let residual = residual.map(|residual| expect_dims(residual, &dims)?.data()).transpose()?;
        let residual = residual.as_deref();
        match &self.kernels.weights {
            ConvWeights::Direct(weights) => {
                expect_channels(x, weights.k)?;
                let finish = residual.map_or(Finish::Store, Finish::Add);
                Tensor::build(&dims, |out| {
                    conv::conv2d(&data, images, geometry, weights, Some(bias), finish, out);
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
                Tensor::build(&dims, |out| winograd.run(out))
            }
        }
    }
}

/// The learned part of a normalisation.
struct Norm {
    learned: Arc<[Vec<f32>; 2]>,
    epsilon: f32,
}

impl Norm {
    fn load(w: &Weights<'_>, channels: usize, epsilon: f32) -> Load<Self> {
        let names = ["weight", "bias"];
        let learned = Weights::share(&[w], &names, || {
            let [weight, bias] = names.map(|name| w.load(name, &[channels]));
            Ok([weight?, bias?])
        })?;
        Ok(Self { learned, epsilon })
    }

    fn channels(&self) -> usize {
        self.learned[0].len()
    }

    fn affine(&self) -> Affine<'_> {
        let [weight, bias] = &*self.learned;
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

/// A table of vectors that are looked up by index.
pub struct Embedding {
    rows: Arc<Vec<f32>>,
    width: usize,
}

impl Embedding {
    /// Reads `weight`, `[count, width]`.
    pub fn load(w: &Weights<'_>, count: usize, width: usize) -> Load<Self> {
        let load = || w.load("weight", &[count, width]);
        Ok(Self { rows: Weights::share(&[w], &["weight"], load)?, width })
    }

    /// The row of that index; indices come from the tokenizer, which knows the table's size.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.width..][..self.width]
    }

    pub fn bytes(&self) -> usize {
        size_of_val(self.rows.as_slice())
    }
}
