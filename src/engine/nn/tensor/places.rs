//! Where tensors are, and how they get from one place to another.

use candle_core::Device;

#[cfg(feature = "libtorch")]
use super::Array;
use super::{Error, Place, Result, Tensor, candle};

impl Tensor {
    pub(in crate::engine::nn) fn on_candle(&self) -> Option<&candle::Array> {
        match &self.0 {
            Place::Candle(x) => Some(x),
            Place::Host(_) => None,
            #[cfg(feature = "libtorch")]
            Place::Torch(_) => None,
        }
    }

    pub(in crate::engine::nn) fn to_candle(&self, device: &Device) -> Result<candle::Array> {
        match &self.0 {
            Place::Host(x) => candle::Array::of(x, device),
            Place::Candle(x) => Ok(x.clone()),
            #[cfg(feature = "libtorch")]
            Place::Torch(_) => Err(elsewhere()),
        }
    }
}

pub(super) fn elsewhere() -> Error {
    Error::Backend("a tensor that is on another engine's device".to_owned())
}

impl From<candle::Array> for Tensor {
    fn from(array: candle::Array) -> Self {
        Self(Place::Candle(array))
    }
}

#[cfg(feature = "libtorch")]
impl Tensor {
    pub(in crate::engine::nn) fn on_torch(&self) -> Option<&Array> {
        match &self.0 {
            Place::Host(_) | Place::Candle(_) => None,
            Place::Torch(x) => Some(x),
        }
    }

    /// The same on the other's device.
    pub(super) fn beside(&self, there: &Array) -> Result<Array> {
        self.to_torch(there.device())
    }

    pub(in crate::engine::nn) fn to_torch(&self, device: tch::Device) -> Result<Array> {
        match &self.0 {
            Place::Host(_) => Array::of(&self.data()?, self.dims(), device),
            Place::Candle(_) => Err(elsewhere()),
            Place::Torch(x) => Ok(x.clone()),
        }
    }
}

#[cfg(feature = "libtorch")]
impl From<Array> for Tensor {
    fn from(array: Array) -> Self {
        Self(Place::Torch(array))
    }
}
