//! Layers: weights taken from a checkpoint once, then only run.
//!
//! What a layer has packed is shared with the next pipeline that is made of the same tensors.

mod conv;
mod norm;

use std::sync::Arc;

pub use conv::Conv2d;
pub use norm::{GroupNorm, LayerNorm};

use super::{
    Error, Result, Tensor,
    cpu::{
        gemm::{self, Finish, Product},
        packed::PackedWeights,
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
