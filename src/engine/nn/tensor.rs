//! The tensor that models pass around: channels last, in the host's memory or on a backend's device.
//!
//! What is made of numbers begins in the host's memory, as f32, and goes to a device when it meets
//! what is there: a layer's weights or another tensor. So nobody above says where things are.

mod places;

use std::ops::Deref;

use candle_core::{CpuStorage, Device, Storage};

#[cfg(feature = "libtorch")]
use super::torch::Array;
use super::{
    candle,
    cpu::{OutPtr, norm},
};
use crate::engine::memory::{self, OutOfMemory};
use places::elsewhere;

pub type Result<T> = std::result::Result<T, Error>;

/// Why a tensor was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A mistake in the engine's own shapes, or a backend's failure; never the user's doing.
    #[error("{0}")]
    Backend(String),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        if text.contains("OUT_OF_MEMORY") {
            let held = candle::held_bytes();
            return OutOfMemory { needed_bytes: held, limit_bytes: held }.into();
        }
        Self::Backend(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// An array of numbers. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct Tensor(Place);

#[derive(Debug, Clone)]
enum Place {
    /// f32, contiguous.
    Host(candle_core::Tensor),
    Candle(candle::Array),
    #[cfg(feature = "libtorch")]
    Torch(Array),
}

/// Two tensors in one place.
enum Pair<'a> {
    Host(&'a candle_core::Tensor, &'a candle_core::Tensor),
    Candle(candle::Array, candle::Array),
    #[cfg(feature = "libtorch")]
    Torch(Array, Array),
}

impl Tensor {
    pub fn from_vec(data: Vec<f32>, dims: &[usize]) -> Result<Self> {
        Ok(Self(Place::Host(candle_core::Tensor::from_vec(data, dims, &Device::Cpu)?)))
    }

    pub fn zeros(dims: &[usize]) -> Result<Self> {
        let len = dims.iter().product();
        ask(len)?;
        Self::from_vec(vec![0.0; len], dims)
    }

    /// A tensor in the host's memory whose every element `fill` writes.
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
        match &self.0 {
            Place::Host(x) => x.dims(),
            Place::Candle(x) => x.dims(),
            #[cfg(feature = "libtorch")]
            Place::Torch(x) => x.dims(),
        }
    }

    pub fn dims3(&self) -> Result<[usize; 3]> {
        self.dims().try_into().map_err(|_| self.has_no_dims(3))
    }

    pub fn dims4(&self) -> Result<[usize; 4]> {
        self.dims().try_into().map_err(|_| self.has_no_dims(4))
    }

    fn has_no_dims(&self, count: usize) -> Error {
        Error::Backend(format!(
            "a tensor {:?} where one of {count} dimensions belongs",
            self.dims()
        ))
    }

    /// The elements as f32, in the order of the dimensions. Waits for the device, and is the only
    /// thing that does.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        ask(self.dims().iter().product())?;
        match &self.0 {
            Place::Host(_) => Ok(self.data()?.to_vec()),
            Place::Candle(x) => x.to_vec(),
            #[cfg(feature = "libtorch")]
            Place::Torch(x) => x.to_vec(),
        }
    }

    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        match &self.0 {
            Place::Host(x) => Ok(Self(Place::Host(x.reshape(dims)?))),
            Place::Candle(x) => Ok(x.reshape(dims)?.into()),
            #[cfg(feature = "libtorch")]
            Place::Torch(x) => Ok(x.reshape(dims)?.into()),
        }
    }

    /// Side by side along `dim`.
    pub fn cat(parts: &[&Self], dim: usize) -> Result<Self> {
        #[cfg(feature = "libtorch")]
        if let Some(there) = parts.iter().find_map(|part| part.on_torch()) {
            let parts = parts.iter().map(|part| part.beside(there)).collect::<Result<Vec<_>>>()?;
            return Ok(Array::cat(&parts, dim)?.into());
        }
        if let Some(there) = parts.iter().find_map(|part| part.on_candle()) {
            let parts = parts.iter().map(|part| part.to_candle(there.device()));
            return Ok(candle::Array::cat(&parts.collect::<Result<Vec<_>>>()?, dim)?.into());
        }
        let parts = parts.iter().map(|part| part.host()).collect::<Result<Vec<_>>>()?;
        ask(parts.iter().map(|part| part.elem_count()).sum())?;
        Ok(Self(Place::Host(candle_core::Tensor::cat(&parts, dim)?.contiguous()?)))
    }

    /// The part `start .. start + len` of `dim`.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        match &self.0 {
            Place::Host(x) => {
                let part = x.narrow(dim, start, len)?;
                ask(part.elem_count())?;
                Ok(Self(Place::Host(part.contiguous()?)))
            }
            Place::Candle(x) => Ok(x.narrow(dim, start, len)?.into()),
            #[cfg(feature = "libtorch")]
            Place::Torch(x) => Ok(x.narrow(dim, start, len)?.into()),
        }
    }

    pub fn add(&self, other: &Self) -> Result<Self> {
        match self.pair(other)? {
            Pair::Host(x, y) => {
                ask(x.elem_count())?;
                Ok(Self(Place::Host(x.add(y)?)))
            }
            Pair::Candle(x, y) => Ok(x.add(&y)?.into()),
            #[cfg(feature = "libtorch")]
            Pair::Torch(x, y) => Ok(x.add(&y)?.into()),
        }
    }

    /// `self + factor·other`.
    pub fn add_scaled(&self, other: &Self, factor: f32) -> Result<Self> {
        if self.dims() != other.dims() {
            let (a, b) = (self.dims(), other.dims());
            return Err(Error::Backend(format!("{a:?} and {b:?} are added")));
        }
        match self.pair(other)? {
            Pair::Host(..) => {
                let (x, y) = (self.data()?, other.data()?);
                Self::build(self.dims(), |out| norm::add_scaled(&x, &y, factor, out))
            }
            Pair::Candle(x, y) => Ok(x.add(&y.scale(factor.into())?)?.into()),
            #[cfg(feature = "libtorch")]
            Pair::Torch(x, y) => Ok(x.add(&y.scale(factor.into())?)?.into()),
        }
    }

    /// Squares of `n` pixels a side become channels (torch's `pixel_unshuffle`): `[b, h, w, c]` →
    /// `[b, h/n, w/n, c·n·n]`, a channel's pixels side by side, row by row.
    pub fn fold(&self, n: usize) -> Result<Self> {
        if n == 1 {
            return Ok(self.clone());
        }
        let [b, h, w, c] = self.dims4()?;
        let (split, folded) = ([b, h / n, n, w / n, n, c], [b, h / n, w / n, c * n * n]);
        let order = [0, 1, 3, 5, 2, 4];
        match &self.0 {
            Place::Host(x) => {
                ask(x.elem_count())?;
                let turned = x.reshape(&split[..])?.permute(order)?.contiguous()?;
                Ok(Self(Place::Host(turned.reshape(&folded[..])?)))
            }
            Place::Candle(x) => Ok(x.reshape(&split)?.permute(order)?.reshape(&folded)?.into()),
            #[cfg(feature = "libtorch")]
            Place::Torch(x) => {
                Ok(x.reshape(&split)?.permute(order.map(|i| i as i64))?.reshape(&folded)?.into())
            }
        }
    }

    /// Element by element.
    pub fn mul(&self, other: &Self) -> Result<Self> {
        match self.pair(other)? {
            Pair::Host(x, y) => {
                ask(x.elem_count())?;
                Ok(Self(Place::Host(x.mul(y)?)))
            }
            Pair::Candle(x, y) => Ok(x.mul(&y)?.into()),
            #[cfg(feature = "libtorch")]
            Pair::Torch(x, y) => Ok(x.mul(&y)?.into()),
        }
    }

    pub fn scale(&self, factor: f64) -> Result<Self> {
        match &self.0 {
            Place::Host(x) => {
                ask(x.elem_count())?;
                Ok(Self(Place::Host(x.affine(factor, 0.0)?)))
            }
            Place::Candle(x) => Ok(x.scale(factor)?.into()),
            #[cfg(feature = "libtorch")]
            Place::Torch(x) => Ok(x.scale(factor)?.into()),
        }
    }

    /// The same with its standard deviation (of all elements, as torch's `std` has it) brought so much
    /// of the way, 0 ..= 1, to that of another one.
    pub fn with_deviation_of(&self, other: &Self, amount: f64) -> Result<Self> {
        match self.pair(other)? {
            Pair::Host(..) => {
                let contrast = deviation(&other.data()?) / deviation(&self.data()?);
                self.scale(amount * contrast + 1.0 - amount)
            }
            Pair::Candle(x, y) => Ok(x.with_deviation_of(&y, amount)?.into()),
            #[cfg(feature = "libtorch")]
            Pair::Torch(x, y) => Ok(x.with_deviation_of(&y, amount)?.into()),
        }
    }

    /// The elements, in the order of the dimensions; of what is in the host's memory.
    pub(super) fn data(&self) -> Result<impl Deref<Target = [f32]> + '_> {
        let (storage, layout) = self.host()?.storage_and_layout();
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(Data { storage, start, end }),
            None => Err(Error::Backend("a tensor that is not contiguous".to_owned())),
        }
    }

    fn host(&self) -> Result<&candle_core::Tensor> {
        match &self.0 {
            Place::Host(x) => Ok(x),
            Place::Candle(_) => Err(elsewhere()),
            #[cfg(feature = "libtorch")]
            Place::Torch(_) => Err(elsewhere()),
        }
    }

    fn pair<'a>(&'a self, other: &'a Self) -> Result<Pair<'a>> {
        #[cfg(feature = "libtorch")]
        if let Some(there) = self.on_torch().or(other.on_torch()) {
            return Ok(Pair::Torch(self.beside(there)?, other.beside(there)?));
        }
        if let Some(there) = self.on_candle().or(other.on_candle()) {
            let device = there.device();
            return Ok(Pair::Candle(self.to_candle(device)?, other.to_candle(device)?));
        }
        Ok(Pair::Host(self.host()?, other.host()?))
    }
}

fn deviation(numbers: &[f32]) -> f64 {
    let count = numbers.len() as f64;
    let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let squares: f64 = numbers.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    (squares / (count - 1.0)).sqrt()
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
