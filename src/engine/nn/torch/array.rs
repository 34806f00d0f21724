//! An array on libtorch's device, and what is done with it.

use tch::{Device, Kind, Tensor as Torch};

use super::cuda;
use crate::engine::nn::{Activation, Result};

/// How much of what is below 0 LeakyReLU lets through.
const LEAK: f64 = 0.2;

/// A tensor of libtorch's.
#[derive(Debug)]
pub struct Array {
    tensor: Torch,
    dims: Vec<usize>,
}

// SAFETY: libtorch's tensors may be read by several threads at a time; those that are handed out here
// are never written to again.
unsafe impl Sync for Array {}

impl Clone for Array {
    fn clone(&self) -> Self {
        Self { tensor: self.tensor.shallow_clone(), dims: self.dims.clone() }
    }
}

impl From<Torch> for Array {
    fn from(tensor: Torch) -> Self {
        let dims = tensor.size().iter().map(|dim| *dim as usize).collect();
        Self { tensor, dims }
    }
}

pub fn sizes(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|dim| *dim as i64).collect()
}

impl Array {
    /// Of numbers in the host's memory.
    pub fn of(numbers: &[f32], dims: &[usize], device: Device) -> Result<Self> {
        if device == Device::Cpu {
            return Ok(Torch::f_from_slice(numbers)?.f_reshape(sizes(dims))?.into());
        }
        // By way of memory that the card reads by itself: nobody waits.
        let staged = cuda::pinned(size_of_val(numbers))?.f_view_dtype(Kind::Float)?;
        let mut staged = staged.f_reshape(sizes(dims))?;
        staged.f_copy_(&Torch::f_from_slice(numbers)?.f_reshape(sizes(dims))?)?;
        Ok(staged.f_to_device_(device, Kind::Float, true, false)?.into())
    }

    /// The same numbers in memory of their own.
    pub fn copied(&self) -> Result<Torch> {
        Ok(self.tensor.f_to_device_(self.device(), self.tensor.kind(), false, true)?)
    }

    pub fn tensor(&self) -> &Torch {
        &self.tensor
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub fn device(&self) -> Device {
        self.tensor.device()
    }

    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let there = self.tensor.f_to_device_(Device::Cpu, Kind::Float, false, false)?;
        let there = there.f_contiguous()?;
        let mut numbers = vec![0.0; self.dims.iter().product()];
        let len = numbers.len();
        there.f_copy_data(&mut numbers, len)?;
        Ok(numbers)
    }

    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        Ok(self.tensor.f_reshape(sizes(dims))?.into())
    }

    pub fn permute<const N: usize>(&self, order: [i64; N]) -> Result<Self> {
        Ok(self.tensor.f_permute(order)?.into())
    }

    pub fn cat(parts: &[Self], dim: usize) -> Result<Self> {
        let parts: Vec<_> = parts.iter().map(|part| &part.tensor).collect();
        Ok(Torch::f_cat(&parts, dim as i64)?.into())
    }

    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        Ok(self.tensor.f_narrow(dim as i64, start as i64, len as i64)?.into())
    }

    pub fn add(&self, other: &Self) -> Result<Self> {
        Ok(self.tensor.f_add(&other.tensor)?.into())
    }

    pub fn mul(&self, other: &Self) -> Result<Self> {
        Ok(self.tensor.f_mul(&other.tensor)?.into())
    }

    pub fn scale(&self, factor: f64) -> Result<Self> {
        Ok(self.tensor.f_mul_scalar(factor)?.into())
    }

    /// As `Tensor::with_deviation_of`, without waiting for the device.
    pub fn with_deviation_of(&self, other: &Self, amount: f64) -> Result<Self> {
        let [own, others] = [self, other].map(|it| it.tensor.f_to_kind(Kind::Float)?.f_std(true));
        let factor = others?.f_div(&own?)?.f_mul_scalar(amount)?.f_add_scalar(1.0 - amount)?;
        Ok(self.tensor.f_mul(&factor)?.into())
    }
}

pub fn activate(x: &Array, activation: Activation) -> Result<Array> {
    Ok(activated(x.tensor.shallow_clone(), activation, false)?.into())
}

/// `in_place`: `x` is nobody else's.
pub fn activated(mut x: Torch, activation: Activation, in_place: bool) -> Result<Torch> {
    Ok(match (activation, in_place) {
        (Activation::None, _) => x,
        (Activation::Silu, true) => x.f_silu_()?,
        (Activation::Silu, false) => x.f_silu()?,
        (Activation::Gelu, _) => x.f_gelu("none")?,
        (Activation::QuickGelu, _) => x.f_mul_scalar(1.702)?.f_sigmoid_()?.f_mul_(&x)?,
        (Activation::LeakyRelu, _) => x.f_where_self(&x.f_ge(0.0)?, &x.f_mul_scalar(LEAK)?)?,
    })
}

/// Columns `first .. first + heads·head_dim` of a tensor `[b, len, c]`.
pub struct Part<'a> {
    pub array: &'a Array,
    pub first: usize,
}

/// `[b, q_len, heads·head_dim]`, by whichever of torch's fused kernels takes it.
pub fn attention(
    parts: [Part<'_>; 3],
    heads: usize,
    head_dim: usize,
    causal: bool,
) -> Result<Array> {
    let [batch, length] = [0, 1].map(|dim| parts[0].array.dims[dim] as i64);
    let (heads, head_dim) = (heads as i64, head_dim as i64);
    let [q, k, v] = parts.map(|Part { array, first }| {
        let part = array.tensor.f_narrow(2, first as i64, heads * head_dim)?;
        let len = array.dims[1] as i64;
        // [b, heads, len, head_dim]
        part.f_reshape([batch, len, heads, head_dim])?.f_transpose(1, 2)
    });
    let attended = Torch::f_scaled_dot_product_attention::<&Torch>(
        &q?, &k?, &v?, None, 0.0, causal, None, false,
    )?;
    Ok(attended.f_transpose(1, 2)?.f_reshape([batch, length, heads * head_dim])?.into())
}
