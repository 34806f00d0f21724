//! An array on one of candle's devices, and what is done with it.

use candle_core::{DType, Device, Tensor};

use super::attention::{self, Columns, Heads};
use crate::engine::nn::{Activation, Result};

/// A tensor of candle's that is somewhere else than in the host's memory, or not in f32.
#[derive(Debug, Clone)]
pub struct Array(Tensor);

impl From<Tensor> for Array {
    fn from(tensor: Tensor) -> Self {
        Self(tensor)
    }
}

impl Array {
    pub fn of(host: &Tensor, device: &Device) -> Result<Self> {
        Ok(Self(host.to_device(device)?))
    }

    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    pub fn dims(&self) -> &[usize] {
        self.0.dims()
    }

    pub fn device(&self) -> &Device {
        self.0.device()
    }

    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let there = self.0.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        Ok(there.flatten_all()?.to_vec1()?)
    }

    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        Ok(Self(self.0.reshape(dims)?))
    }

    pub fn permute(&self, order: [usize; 6]) -> Result<Self> {
        Ok(Self(self.0.permute(order)?))
    }

    pub fn cat(parts: &[Self], dim: usize) -> Result<Self> {
        let dtype = parts.iter().map(|part| part.0.dtype()).reduce(wider);
        let parts = parts.iter().map(|part| part.0.to_dtype(dtype.unwrap_or(DType::F32)));
        Ok(Self(Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, dim)?))
    }

    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        Ok(Self(self.0.narrow(dim, start, len)?))
    }

    pub fn add(&self, other: &Self) -> Result<Self> {
        let [x, y] = self.alike(other)?;
        Ok(Self(x.add(&y)?))
    }

    pub fn mul(&self, other: &Self) -> Result<Self> {
        let [x, y] = self.alike(other)?;
        Ok(Self(x.mul(&y)?))
    }

    pub fn scale(&self, factor: f64) -> Result<Self> {
        Ok(Self(self.0.affine(factor, 0.0)?))
    }

    /// As `Tensor::with_deviation_of`, without waiting for the device.
    pub fn with_deviation_of(&self, other: &Self, amount: f64) -> Result<Self> {
        let deviation = |x: &Self| x.0.to_dtype(DType::F32)?.flatten_all()?.var_keepdim(0)?.sqrt();
        let contrast = deviation(other)?.div(&deviation(self)?)?;
        let factor = contrast.affine(amount, 1.0 - amount)?.reshape(())?;
        Ok(Self(self.0.to_dtype(DType::F32)?.broadcast_mul(&factor)?))
    }

    pub fn activate(&self, activation: Activation) -> Result<Self> {
        Ok(Self(super::activate(&self.0, activation)?))
    }

    /// Both in the wider one's type.
    fn alike(&self, other: &Self) -> Result<[Tensor; 2]> {
        let dtype = wider(self.0.dtype(), other.0.dtype());
        Ok([self.0.to_dtype(dtype)?, other.0.to_dtype(dtype)?])
    }
}

fn wider(a: DType, b: DType) -> DType {
    if a == b { a } else { DType::F32 }
}

/// `[b, q_len, heads·head_dim]`, of parts that begin at those columns.
pub fn attention(parts: [(&Array, usize); 3], heads: Heads) -> Result<Array> {
    let parts = parts.map(|(array, first)| Columns { tensor: &array.0, first });
    Ok(Array(attention::attention(parts, heads)?))
}
