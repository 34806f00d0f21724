//! Layers: weights taken from a checkpoint once, then only run.
//!
//! What a layer has packed is shared with other pipelines that are made of the same tensors. In a
//! check it is only planned: it holds nothing, and says what it would take.

mod conv;
mod norm;

use std::{ops::Deref, sync::Arc};

pub use conv::Conv2d;
pub use norm::{GroupNorm, LayerNorm};

use super::{
    Error, Result, Tensor,
    cpu::{
        gemm::{self, Finish, Product},
        packed::PackedWeights,
    },
};
use crate::engine::checkpoint::{self, Held, Weights};

type Load<T> = std::result::Result<T, checkpoint::Error>;

/// `x·Wᵀ + b` over the last dimension.
pub struct Linear {
    out_channels: usize,
    dense: Arc<Dense>,
}

/// The weights of a [`Linear`] or a [`Geglu`].
struct Dense {
    weights: PackedWeights,
    bias: Option<Numbers>,
}

/// Numbers that are used as they are stored, or planned.
struct Numbers {
    numbers: Vec<f32>,
    count: usize,
}

impl Numbers {
    fn load(w: &Weights<'_>, name: &str, dims: &[usize]) -> Load<Self> {
        Ok(Self { numbers: w.load(name, dims)?, count: dims.iter().product() })
    }

    /// Of several modules, one behind the other.
    fn stack(parts: &[&Weights<'_>], name: &str, dims: &[usize]) -> Load<Self> {
        let count: usize = dims.iter().product();
        Ok(Self { numbers: load_stacked(parts, name, dims)?, count: count * parts.len() })
    }

    fn planned(count: usize) -> Self {
        Self { numbers: Vec::new(), count }
    }
}

impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Self {
        Self { count: numbers.len(), numbers }
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers
    }
}

impl Held for Numbers {
    fn bytes(&self) -> u64 {
        (self.count * size_of::<f32>()) as u64
    }
}

impl Held for Dense {
    fn bytes(&self) -> u64 {
        self.weights.bytes() as u64 + self.bias.as_ref().map_or(0, Held::bytes)
    }
}

/// A tensor of several modules, one behind the other; in a check, nothing. A matrix may be stored
/// as a 1×1 convolution.
fn load_stacked(parts: &[&Weights<'_>], name: &str, dims: &[usize]) -> Load<Vec<f32>> {
    let count: usize = dims.iter().product();
    let checks = parts.iter().any(|w| w.is_check());
    let mut numbers = if checks { Vec::new() } else { vec![0.0; count * parts.len()] };
    let mut left = &mut numbers[..];
    for w in parts {
        let room = left.split_off_mut(..count.min(left.len())).unwrap_or_default();
        match (dims, w.dims(name)?.len()) {
            ([n, k], 4) => w.load_into(name, &[*n, *k, 1, 1], room)?,
            _ => w.load_into(name, dims, room)?,
        }
    }
    Ok(numbers)
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
            Ok(Dense { weights, bias: Some(Numbers::stack(parts, "bias", &[n])?) })
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
        let rows = load_stacked(parts, "weight", &[n, k])?;
        if parts.iter().any(|w| w.is_check()) {
            return Ok(PackedWeights::planned(1, k, n * parts.len()));
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
                let columns = PackedWeights::geglu_columns(n / 2);
                let weights = PackedWeights::planned(1, k, columns);
                return Ok(Dense { weights, bias: Some(Numbers::planned(columns)) });
            }
            let (weights, bias) = PackedWeights::pack_geglu(k, n / 2, &rows, &bias);
            Ok(Dense { weights, bias: Some(bias.into()) })
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
    rows: Arc<Numbers>,
    width: usize,
}

impl Embedding {
    /// Reads `weight`, `[count, width]`.
    pub fn load(w: &Weights<'_>, count: usize, width: usize) -> Load<Self> {
        let load = || Numbers::load(w, "weight", &[count, width]);
        Ok(Self { rows: Weights::share(&[w], &["weight"], load)?, width })
    }

    /// The row of that index; indices come from the tokenizer, which knows the table's size.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.width..][..self.width]
    }
}
