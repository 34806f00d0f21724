//! The tensor that models pass around: f32, contiguous, channels last.

use std::ops::Deref;

use candle_core::{CpuStorage, Device, Storage};

use super::cpu::{OutPtr, norm};
use crate::engine::memory::{self, OutOfMemory};

pub type Result<T> = std::result::Result<T, Error>;

/// Why a tensor was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A mistake in the engine's own shapes, or a backend's failure; never the user's doing.
    #[error(transparent)]
    Backend(#[from] candle_core::Error),
}

/// An array of f32. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct Tensor(candle_core::Tensor);

impl Tensor {
    pub fn from_vec(data: Vec<f32>, dims: &[usize]) -> Result<Self> {
        Ok(Self(candle_core::Tensor::from_vec(data, dims, &Device::Cpu)?))
    }

    pub fn zeros(dims: &[usize]) -> Result<Self> {
        let len = dims.iter().product();
        ask(len)?;
        Self::from_vec(vec![0.0; len], dims)
    }

    /// A tensor whose every element `fill` writes.
    pub(super) fn build(dims: &[usize], fill: impl FnOnce(OutPtr)) -> Result<Self> {
        Self::build_beside(0, dims, fill)
    }

    /// The same, where `fill` allocates so many floats for itself.
    pub(super) fn build_beside(
        scratch: usize,
        dims: &[usize],
        fill: impl FnOnce(OutPtr),
    ) -> Result<Self> {
        let len = dims.iter().product();
        ask(len + scratch)?;
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
        let data = self.data()?;
        ask(data.len())?;
        Ok(data.to_vec())
    }

    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        Ok(Self(self.0.reshape(dims)?))
    }

    /// Side by side along `dim`.
    pub fn cat(parts: &[&Self], dim: usize) -> Result<Self> {
        let parts: Vec<_> = parts.iter().map(|part| &part.0).collect();
        ask(parts.iter().map(|part| part.elem_count()).sum())?;
        Ok(Self(candle_core::Tensor::cat(&parts, dim)?.contiguous()?))
    }

    /// The part `start .. start + len` of `dim`.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        let part = self.0.narrow(dim, start, len)?;
        ask(part.elem_count())?;
        Ok(Self(part.contiguous()?))
    }

    pub fn add(&self, other: &Self) -> Result<Self> {
        ask(self.0.elem_count())?;
        Ok(Self(self.0.add(&other.0)?))
    }

    /// `self + factor·other`.
    pub fn add_scaled(&self, other: &Self, factor: f32) -> Result<Self> {
        if self.dims() != other.dims() {
            let (a, b) = (self.dims(), other.dims());
            return Err(candle_core::Error::msg(format!("{a:?} and {b:?} are added")).into());
        }
        let (x, y) = (self.data()?, other.data()?);
        Self::build(self.dims(), |out| norm::add_scaled(&x, &y, factor, out))
    }

    /// Squares of `n` pixels a side become channels (torch's `pixel_unshuffle`): `[b, h, w, c]` →
    /// `[b, h/n, w/n, c·n·n]`, a channel's pixels side by side, row by row.
    pub fn fold(&self, n: usize) -> Result<Self> {
        if n == 1 {
            return Ok(self.clone());
        }
        let [b, h, w, c] = self.dims4()?;
        let split = self.0.reshape(&[b, h / n, n, w / n, n, c][..])?;
        ask(split.elem_count())?;
        let folded = split.permute([0, 1, 3, 5, 2, 4])?.contiguous()?;
        Ok(Self(folded.reshape(&[b, h / n, w / n, c * n * n][..])?))
    }

    /// Element by element.
    pub fn mul(&self, other: &Self) -> Result<Self> {
        ask(self.0.elem_count())?;
        Ok(Self(self.0.mul(&other.0)?))
    }

    pub fn scale(&self, factor: f64) -> Result<Self> {
        ask(self.0.elem_count())?;
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

/// Whether so many floats may be allocated. (Asked before every array that grows with the image.)
fn ask(floats: usize) -> Result<()> {
    Ok(memory::check((floats * size_of::<f32>()) as u64)?)
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
