//! From a checkpoint's tensors to candle's layers.

use std::{
    any::Any,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Array, Dense, Embedding, Place, activate, conv, norm};
use crate::engine::{
    backend::Candle,
    checkpoint::{self, Held, Weights},
    nn::{After, ConvShape, Error, Result, Tensor, host::load_stacked},
};

type Load<T> = std::result::Result<T, checkpoint::Error>;

/// A layer on the device; of one that is only planned, how much it would take.
pub struct Loaded<T> {
    layer: Option<T>,
    bytes: u64,
}

pub type Conv = Loaded<conv::Conv>;
pub type Norm = Loaded<norm::Norm>;
pub type Table = Loaded<Embedding>;

impl<T: Any + Send + Sync> Held for Loaded<T> {
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What all layers hold.
static HELD: AtomicU64 = AtomicU64::new(0);

/// See [`HELD`]: candle's allocators say nothing.
pub fn held_bytes() -> u64 {
    HELD.load(Relaxed)
}

impl<T> Drop for Loaded<T> {
    fn drop(&mut self) {
        if self.layer.is_some() {
            HELD.fetch_sub(self.bytes, Relaxed);
        }
    }
}

impl<T> Loaded<T> {
    fn new(
        candle: Candle,
        w: &Weights<'_>,
        bytes: usize,
        make: impl FnOnce(&Place) -> candle_core::Result<T>,
    ) -> Load<Self> {
        let bytes = bytes as u64;
        if w.is_check() {
            return Ok(Self { layer: None, bytes });
        }
        let place = Place::of(candle, w.component()).map_err(checkpoint::Error::Engine)?;
        let made = make(&place).map_err(|error| checkpoint::Error::Engine(error.to_string()))?;
        HELD.fetch_add(bytes, Relaxed);
        Ok(Self { layer: Some(made), bytes })
    }

    fn get(&self) -> Result<&T> {
        let planned = || Error::Backend("a layer that was only planned is run".to_owned());
        self.layer.as_ref().ok_or_else(planned)
    }
}

impl Loaded<Dense> {
    pub fn load(
        candle: Candle,
        parts: &[&Weights<'_>],
        [n, k]: [usize; 2],
        has_bias: bool,
    ) -> Load<Self> {
        let (w, outputs) = (parts[0], n * parts.len());
        let weight = load_stacked(parts, "weight", &[n, k])?;
        let bias = has_bias.then(|| load_stacked(parts, "bias", &[n])).transpose()?;
        let bytes = outputs * (k + usize::from(has_bias)) * candle.floats.of(w.component()).bytes();
        Self::new(candle, w, bytes, |place| Dense::new(place, weight, bias, k))
    }

    pub fn forward(&self, x: &Tensor, after: After<'_>) -> Result<Array> {
        let dense = self.get()?;
        let device = dense.weight.device();
        let x = x.to_candle(device)?;
        let x = x.tensor();
        Ok(match after {
            After::Activate(activation) => activate(&dense.forward(x)?, activation)?,
            After::Add(residual) => dense.forward_add(x, residual.to_candle(device)?.tensor())?,
            After::Geglu => dense.forward_geglu(x)?,
            After::Shift(_) => {
                return Err(Error::Backend("a linear layer has no pixels".to_owned()));
            }
        }
        .into())
    }
}

impl Conv {
    pub fn load(
        candle: Candle,
        w: &Weights<'_>,
        shape: [usize; 3],
        stride: usize,
        padding: [usize; 2],
    ) -> Load<Self> {
        let [n, channels, kernel] = shape;
        let weight = w.load("weight", &[n, channels, kernel, kernel])?;
        let bias = w.load("bias", &[n])?;
        let bytes = n * (channels * kernel * kernel + 1) * candle.floats.of(w.component()).bytes();
        Self::new(candle, w, bytes, |place| {
            conv::Conv::new(place, [weight, bias], kernel, stride, padding)
        })
    }

    pub fn forward(&self, x: &Tensor, shape: &ConvShape, after: After<'_>) -> Result<Array> {
        let conv = self.get()?;
        let device = conv.device();
        let [_, h, w, _] = x.dims4()?;
        let x = x.to_candle(device)?;
        let enlarged = (shape.seen != [h, w]).then_some(shape.seen);
        let run = |shift: Option<&Array>, residual: Option<&Array>| {
            let (shift, residual) = (shift.map(Array::tensor), residual.map(Array::tensor));
            conv.forward(x.tensor(), conv::Around { enlarged, shift, residual })
        };
        Ok(match after {
            After::Activate(activation) => activate(&run(None, None)?, activation)?,
            After::Add(residual) => run(None, Some(&residual.to_candle(device)?))?,
            After::Shift(shift) => run(Some(&shift.to_candle(device)?), None)?,
            After::Geglu => return Err(Error::Backend("a convolution has no gate".to_owned())),
        }
        .into())
    }
}

impl Norm {
    pub fn load(candle: Candle, w: &Weights<'_>, channels: usize) -> Load<Self> {
        let learned = [w.load("weight", &[channels])?, w.load("bias", &[channels])?];
        // In f32, whatever the others are in.
        let bytes = 2 * channels * size_of::<f32>();
        Self::new(candle, w, bytes, |place| norm::Norm::new(place, learned))
    }

    /// With what the device has of the input.
    pub fn run(
        &self,
        x: &Tensor,
        normalise: impl FnOnce(
            &norm::Norm,
            &candle_core::Tensor,
        ) -> candle_core::Result<candle_core::Tensor>,
    ) -> Result<Array> {
        let norm = self.get()?;
        Ok(normalise(norm, x.to_candle(norm.device())?.tensor())?.into())
    }
}

impl Table {
    pub fn load(candle: Candle, w: &Weights<'_>, [count, width]: [usize; 2]) -> Load<Self> {
        let rows = w.load("weight", &[count, width])?;
        let bytes = count * width * candle.floats.of(w.component()).bytes();
        Self::new(candle, w, bytes, |place| Embedding::new(place, rows, width))
    }

    pub fn at(&self, indices: &[u32]) -> Result<Array> {
        Ok(self.get()?.rows(indices)?.into())
    }
}
