//! Layers: weights taken from a checkpoint once, then only run.

use super::{
    Activation, Error, Result, Tensor,
    cpu::{
        conv::{self, Geometry},
        gemm::{Dense, Finish, PackedWeights, Product},
        norm::{self, Affine},
    },
};
use crate::engine::checkpoint::{self, Weights};

type Load<T> = std::result::Result<T, checkpoint::Error>;

/// `x·Wᵀ + b` over the last dimension.
pub struct Linear {
    weights: PackedWeights,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Reads `weight` (`[n, k]`, or a 1×1 convolution's `[n, k, 1, 1]`) and, if there, `bias`.
    pub fn load(w: &Weights<'_>, k: usize) -> Load<Self> {
        let n = w.dims("weight")?[0];
        Self::stack(&[w], k, &[n])
    }

    /// The same, with a number of outputs that is known already.
    pub fn load_to(w: &Weights<'_>, k: usize, n: usize) -> Load<Self> {
        Self::stack(&[w], k, &[n])
    }

    /// Several layers over the same input as one: their outputs stand side by side.
    pub fn stack(parts: &[&Weights<'_>], k: usize, sizes: &[usize]) -> Load<Self> {
        let (mut rows, mut bias) = (Vec::new(), Vec::new());
        for (w, n) in parts.iter().zip(sizes) {
            let dims: &[usize] =
                if w.dims("weight")?.len() == 4 { &[*n, k, 1, 1] } else { &[*n, k] };
            rows.extend(w.load("weight", dims)?);
            bias.extend(w.load_if_present("bias", &[*n])?.unwrap_or_default());
        }
        let n: usize = sizes.iter().sum();
        let bias = (bias.len() == n).then_some(bias);
        if parts.iter().any(|w| w.is_check()) {
            return Ok(Self { weights: PackedWeights::default(), bias });
        }
        let weights = PackedWeights::pack(1, k, n, |n, _, d| rows[n * k + d]);
        Ok(Self { weights, bias })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Finish::Store)
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(x, Finish::Add(&residual.data()?))
    }

    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    fn run(&self, x: &Tensor, finish: Finish<'_>) -> Result<Tensor> {
        dense(x, &self.weights, self.bias.as_deref(), self.weights.n, finish)
    }
}

/// A projection to twice the width, of which one half gates the other (Shazeer, 2020).
pub struct Geglu {
    weights: PackedWeights,
    bias: Vec<f32>,
    half: usize,
}

impl Geglu {
    pub fn load(w: &Weights<'_>, k: usize) -> Load<Self> {
        let n = w.dims("weight")?[0];
        let (rows, bias) = (w.load("weight", &[n, k])?, w.load("bias", &[n])?);
        if w.is_check() {
            return Ok(Self { weights: PackedWeights::default(), bias, half: n / 2 });
        }
        let (weights, bias) = PackedWeights::pack_geglu(k, n / 2, &rows, &bias);
        Ok(Self { weights, bias, half: n / 2 })
    }

    /// `[.., k]` → `[.., half]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        dense(x, &self.weights, Some(&self.bias), self.half, Finish::Geglu)
    }

    pub fn out_channels(&self) -> usize {
        self.half
    }

    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }
}

fn dense(
    x: &Tensor,
    weights: &PackedWeights,
    bias: Option<&[f32]>,
    columns: usize,
    finish: Finish<'_>,
) -> Result<Tensor> {
    let k = weights.k;
    let (mut dims, data) = (x.dims().to_vec(), x.data()?);
    expect_channels(x, k)?;
    let count = data.len() / k.max(1);
    if let Some(last) = dims.last_mut() {
        *last = columns;
    }
    let rows = Dense { data: &data, stride: k, count };
    let (images, rows_per_image, out_stride) = (1, count, columns);
    let product =
        Product { rows, images, rows_per_image, weights, bias, finish, columns, out_stride };
    Tensor::build(&dims, |out| product.run(out))
}

fn expect_channels(x: &Tensor, expected: usize) -> Result<()> {
    match x.dims().last() {
        Some(last) if *last == expected => Ok(()),
        _ => Err(shape_error(x, &format!("[.., {expected}]"))),
    }
}

fn shape_error(x: &Tensor, expected: &str) -> Error {
    candle_core::Error::msg(format!("a tensor {:?} where {expected} belongs", x.dims())).into()
}

/// A square convolution with zero padding.
pub struct Conv2d {
    weights: PackedWeights,
    bias: Vec<f32>,
    kernel: usize,
    stride: usize,
    /// Zeros before and after.
    padding: [usize; 2],
}

impl Conv2d {
    /// Reads `weight`, `[n, channels, kernel, kernel]`, and `bias`. Padding keeps the size.
    pub fn load(w: &Weights<'_>, channels: usize, kernel: usize) -> Load<Self> {
        let n = w.dims("weight")?[0];
        let (taps, bias) = (kernel * kernel, w.load("bias", &[n])?);
        let source = w.load("weight", &[n, channels, kernel, kernel])?;
        let padding = [kernel / 2; 2];
        let weights = if w.is_check() {
            PackedWeights::unpacked(n)
        } else {
            PackedWeights::pack(taps, channels, n, |n, tap, c| {
                source[(n * channels + c) * taps + tap]
            })
        };
        Ok(Self { weights, bias, kernel, stride: 1, padding })
    }

    /// The same, at every other pixel: the UNet's downsampling.
    pub fn load_stride2(w: &Weights<'_>, channels: usize) -> Load<Self> {
        Ok(Self { stride: 2, ..Self::load(w, channels, 3)? })
    }

    pub fn out_channels(&self) -> usize {
        self.weights.n
    }

    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// `[b, h, w, c]` → `[b, h/stride, w/stride, n]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        self.run(x, [h, w], &self.bias, Finish::Store)
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        self.run(x, [h, w], &self.bias, Finish::Add(&residual.data()?))
    }

    /// `forward(x) + shift`, with a `[b, n]` shift for all pixels of an image.
    pub fn forward_shift(&self, x: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        let bias: Vec<f32> =
            shift.data()?.iter().zip(self.bias.iter().cycle()).map(|(s, b)| s + b).collect();
        self.run(x, [h, w], &bias, Finish::Store)
    }

    /// The convolution of `x` enlarged to `size` by nearest neighbour, without enlarging it.
    pub fn forward_enlarged(&self, x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
        self.run(x, size, &self.bias, Finish::Store)
    }

    fn run(
        &self,
        x: &Tensor,
        seen: [usize; 2],
        bias: &[f32],
        finish: Finish<'_>,
    ) -> Result<Tensor> {
        let [batch, h, w, _] = x.dims4()?;
        expect_channels(x, self.weights.k)?;
        let [before, after] = self.padding;
        let out = seen.map(|size| (size + before + after - self.kernel) / self.stride + 1);
        let geometry = Geometry {
            kernel: self.kernel,
            stride: self.stride,
            pad_before: before,
            stored: [h, w],
            seen,
            out,
        };
        let data = x.data()?;
        Tensor::build(&[batch, out[0], out[1], self.weights.n], |out| {
            conv::conv2d(&data, batch, geometry, &self.weights, Some(bias), finish, out);
        })
    }
}

/// The learned part of a normalisation.
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl Norm {
    fn load(w: &Weights<'_>, channels: usize, epsilon: f32) -> Load<Self> {
        let (weight, bias) = (w.load("weight", &[channels])?, w.load("bias", &[channels])?);
        Ok(Self { weight, bias, epsilon })
    }

    fn affine(&self) -> Affine<'_> {
        Affine { weight: &self.weight, bias: &self.bias, epsilon: self.epsilon }
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
        expect_channels(x, self.norm.weight.len())?;
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
        expect_channels(x, self.0.weight.len())?;
        Tensor::build(x.dims(), |out| norm::layer_norm(&data, &self.0.affine(), out))
    }
}

/// A table of vectors that are looked up by index.
pub struct Embedding {
    rows: Vec<f32>,
    width: usize,
}

impl Embedding {
    /// Reads `weight`, `[count, width]`.
    pub fn load(w: &Weights<'_>, count: usize, width: usize) -> Load<Self> {
        Ok(Self { rows: w.load("weight", &[count, width])?, width })
    }

    /// The row of that index; indices come from the tokenizer, which knows the table's size.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.width..][..self.width]
    }

    pub fn bytes(&self) -> usize {
        size_of_val(self.rows.as_slice())
    }
}
