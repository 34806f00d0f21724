//! The layers on the host's CPU: what they pack of their weights, and how they run by the kernels in
//! `cpu`. In fp32.

mod conv;
mod norm;

use std::ops::Deref;

pub use conv::Conv;
pub use norm::Norm;

use super::{
    Activation, After, Error, Result, Tensor, activate,
    cpu::{
        gemm::{self, Finish, Product},
        packed::PackedWeights,
    },
};
use crate::engine::checkpoint::{self, Held, Weights};

type Load<T> = std::result::Result<T, checkpoint::Error>;

/// The weights of a linear layer.
pub struct Dense {
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
pub fn load_stacked(parts: &[&Weights<'_>], name: &str, dims: &[usize]) -> Load<Vec<f32>> {
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

impl Dense {
    /// Of several layers of `n` outputs over the same `k` inputs.
    pub fn load(parts: &[&Weights<'_>], [n, k]: [usize; 2], has_bias: bool) -> Load<Self> {
        let weights = Self::pack(parts, [n, k])?;
        let bias = has_bias.then(|| Numbers::stack(parts, "bias", &[n])).transpose()?;
        Ok(Self { weights, bias })
    }

    fn pack(parts: &[&Weights<'_>], [n, k]: [usize; 2]) -> Load<PackedWeights> {
        let rows = load_stacked(parts, "weight", &[n, k])?;
        if parts.iter().any(|w| w.is_check()) {
            return Ok(PackedWeights::planned(1, k, n * parts.len()));
        }
        Ok(PackedWeights::pack(1, k, n * parts.len(), |n, _, d| rows[n * k + d]))
    }

    /// Of `n` outputs, of which one half gates the other.
    pub fn load_geglu(w: &Weights<'_>, [n, k]: [usize; 2]) -> Load<Self> {
        let (rows, bias) = (w.load("weight", &[n, k])?, w.load("bias", &[n])?);
        if w.is_check() {
            let columns = PackedWeights::geglu_columns(n / 2);
            let weights = PackedWeights::planned(1, k, columns);
            return Ok(Self { weights, bias: Some(Numbers::planned(columns)) });
        }
        let (weights, bias) = PackedWeights::pack_geglu(k, n / 2, &rows, &bias);
        Ok(Self { weights, bias: Some(bias.into()) })
    }

    /// `[.., k]` → `[.., columns]`, which for a gated layer is half of its outputs.
    pub fn forward(&self, x: &Tensor, columns: usize, after: After<'_>) -> Result<Tensor> {
        match after {
            After::Activate(Activation::None) => self.run(x, columns, Finish::Store),
            After::Activate(activation) => {
                activate(&self.run(x, columns, Finish::Store)?, activation)
            }
            After::Add(residual) => self.run(x, columns, Finish::Add(&residual.data()?)),
            After::Geglu => self.run(x, columns, Finish::Geglu),
            After::Shift(_) => Err(Error::Backend("a linear layer has no pixels".to_owned())),
        }
    }

    fn run(&self, x: &Tensor, columns: usize, finish: Finish<'_>) -> Result<Tensor> {
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

/// A table of vectors.
pub struct Rows {
    numbers: Numbers,
    width: usize,
}

impl Held for Rows {
    fn bytes(&self) -> u64 {
        self.numbers.bytes()
    }
}

impl Rows {
    pub fn load(w: &Weights<'_>, [count, width]: [usize; 2]) -> Load<Self> {
        Ok(Self { numbers: Numbers::load(w, "weight", &[count, width])?, width })
    }

    /// `[len, width]`
    pub fn at(&self, indices: &[u32]) -> Result<Tensor> {
        let row = |index: &u32| &self.numbers[*index as usize * self.width..][..self.width];
        let rows = indices.iter().flat_map(|index| row(index).iter().copied()).collect();
        Tensor::from_vec(rows, &[indices.len(), self.width])
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
    Error::Backend(format!("a tensor {:?} where {expected} belongs", x.dims()))
}
