//! The tensor that models pass around: f32, contiguous, channels last.

use std::ops::Deref;

use candle_core::{CpuStorage, Device, Storage};

use super::cpu::OutPtr;

pub type Result<T> = std::result::Result<T, Error>;

/// A mistake in the engine's own shapes, or a backend's failure; never the user's doing.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] candle_core::Error);

/// An array of f32. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct Tensor(candle_core::Tensor);

impl Tensor {
    pub fn from_vec(data: Vec<f32>, dims: &[usize]) -> Result<Self> {
        Ok(Self(candle_core::Tensor::from_vec(data, dims, &Device::Cpu)?))
    }

    pub fn zeros(dims: &[usize]) -> Result<Self> {
        Self::from_vec(vec![0.0; dims.iter().product()], dims)
    }

    /// A tensor whose every element `fill` writes.
    pub(super) fn build(dims: &[usize], fill: impl FnOnce(OutPtr)) -> Result<Self> {
        let len = dims.iter().product();
        let mut data = Vec::with_capacity(len);
        fill(OutPtr::uninit(&mut data.spare_capacity_mut()[..len]));
        // SAFETY: the kernels have written all `len` floats, and read none before they wrote it.
        // (Zeroing them first would cost as much as a pass of normalisation.)
        unsafe { data.set_len(len) };
        Self::from_vec(data, dims)
    }

    pub fn dims(&self) -> &[usize] {
        self.0.dims()
    }

    pub fn dims3(&self) -> Result<[usize; 3]> {
        Ok(self.0.dims3()?.into())
    }

    pub fn dims4(&self) -> Result<[usize; 4]> {
        Ok(self.0.dims4()?.into())
    }

    pub fn to_vec(&self) -> Result<Vec<f32>> {
        Ok(self.data()?.to_vec())
    }

    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        Ok(Self(self.0.reshape(dims)?))
    }

    /// Side by side along `dim`.
    pub fn cat(parts: &[&Self], dim: usize) -> Result<Self> {
        let parts: Vec<_> = parts.iter().map(|part| &part.0).collect();
        Ok(Self(candle_core::Tensor::cat(&parts, dim)?.contiguous()?))
    }

    /// The part `start .. start + len` of `dim`.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        Ok(Self(self.0.narrow(dim, start, len)?.contiguous()?))
    }

    pub fn add(&self, other: &Self) -> Result<Self> {
        Ok(Self(self.0.add(&other.0)?))
    }

    /// Element by element.
    pub fn mul(&self, other: &Self) -> Result<Self> {
        Ok(Self(self.0.mul(&other.0)?))
    }

    pub fn scale(&self, factor: f64) -> Result<Self> {
        Ok(Self(self.0.affine(factor, 0.0)?))
    }

    /// The elements, in the order of the dimensions.
    pub(super) fn data(&self) -> Result<impl Deref<Target = [f32]> + '_> {
        let (storage, layout) = self.0.storage_and_layout();
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(Data { storage, start, end }),
            None => Err(candle_core::Error::msg("a tensor that is not contiguous").into()),
        }
    }
}

/// A tensor's elements while they are looked at (`G` is candle's guard of its storage).
struct Data<G> {
    storage: G,
    start: usize,
    end: usize,
}

impl<G: Deref<Target = Storage>> Deref for Data<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.end],
            _ => unreachable!("tensors are made by `from_vec`, of f32 on the CPU"),
        }
    }
}
