//! Layers: weights taken from a checkpoint once, then only run.
//!
//! What a layer has made of its weights is shared with other pipelines that are made of the same
//! tensors. In a check it is only planned: it holds nothing, and says what it would take.

/// What a layer has made of its weights, by the backend that it was loaded to: an enum over what each
/// of them has.
macro_rules! by_backend {
    ($(#[$doc:meta])* $layer:ident: $host:ty, $candle:ty, $torch:ty) => {
        $(#[$doc])*
        enum $layer {
            Host($host),
            Candle($candle),
            #[cfg(feature = "libtorch")]
            Torch($torch),
        }

        impl $crate::engine::checkpoint::Held for $layer {
            fn bytes(&self) -> u64 {
                match self {
                    Self::Host(layer) => layer.bytes(),
                    Self::Candle(layer) => layer.bytes(),
                    #[cfg(feature = "libtorch")]
                    Self::Torch(layer) => layer.bytes(),
                }
            }

            #[cfg(feature = "libtorch")]
            fn moved(
                &self,
                to: $crate::engine::checkpoint::Home,
            ) -> Option<Load<Arc<dyn $crate::engine::checkpoint::Held>>> {
                match self {
                    Self::Host(_) | Self::Candle(_) => None,
                    Self::Torch(layer) => {
                        Some(layer.moved(to).map(|moved| Arc::new(Self::Torch(moved)) as _))
                    }
                }
            }
        }
    };
}

mod conv;
mod norm;

use std::sync::Arc;

pub use conv::Conv2d;
pub use norm::{GroupNorm, LayerNorm};

#[cfg(feature = "libtorch")]
use super::torch;
use super::{After, Result, Tensor, candle, host};
use crate::engine::{
    backend::Backend,
    checkpoint::{self, Weights},
};

type Load<T> = std::result::Result<T, checkpoint::Error>;

/// `x·Wᵀ + b` over the last dimension.
pub struct Linear {
    out_channels: usize,
    dense: Arc<Dense>,
}

by_backend! {
    /// The weights of a [`Linear`] or a [`Geglu`].
    Dense: host::Dense, candle::Loaded<candle::Dense>, torch::Dense
}

impl Dense {
    fn load(parts: &[&Weights<'_>], dims: [usize; 2], has_bias: bool) -> Load<Arc<Self>> {
        let names: &[&str] = if has_bias { &["weight", "bias"] } else { &["weight"] };
        Weights::share(parts, names, || match parts[0].backend() {
            Backend::Cpu => host::Dense::load(parts, dims, has_bias).map(Self::Host),
            Backend::Candle(candle) => {
                candle::Loaded::<candle::Dense>::load(candle, parts, dims, has_bias)
                    .map(Self::Candle)
            }
            #[cfg(feature = "libtorch")]
            Backend::Torch(torch) => {
                torch::Dense::load(torch, parts, dims, has_bias).map(Self::Torch)
            }
        })
    }

    /// `[.., k]` → `[.., columns]`
    fn forward(&self, x: &Tensor, columns: usize, after: After<'_>) -> Result<Tensor> {
        match self {
            Self::Host(dense) => dense.forward(x, columns, after),
            Self::Candle(dense) => Ok(dense.forward(x, after)?.into()),
            #[cfg(feature = "libtorch")]
            Self::Torch(dense) => Ok(dense.forward(x, after)?.into()),
        }
    }
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
        Ok(Self { out_channels: n * parts.len(), dense: Dense::load(parts, [n, k], true)? })
    }

    /// The same, of layers that have no bias.
    pub fn stack_unbiased(parts: &[&Weights<'_>], k: usize, n: usize) -> Load<Self> {
        Ok(Self { out_channels: n * parts.len(), dense: Dense::load(parts, [n, k], false)? })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.dense.forward(x, self.out_channels, After::NOTHING)
    }

    /// Width of the output.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.dense.forward(x, self.out_channels, After::Add(residual))
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
        let dense = Weights::share(&[w], &["weight", "bias"], || match w.backend() {
            Backend::Cpu => host::Dense::load_geglu(w, [n, k]).map(Dense::Host),
            Backend::Candle(candle) => {
                candle::Loaded::<candle::Dense>::load(candle, &[w], [n, k], true).map(Dense::Candle)
            }
            #[cfg(feature = "libtorch")]
            Backend::Torch(torch) => {
                torch::Dense::load(torch, &[w], [n, k], true).map(Dense::Torch)
            }
        })?;
        Ok(Self { dense, half: n / 2 })
    }

    /// `[.., k]` → `[.., half]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.dense.forward(x, self.half, After::Geglu)
    }

    pub fn out_channels(&self) -> usize {
        self.half
    }
}

/// A table of vectors that are looked up by index.
pub struct Embedding {
    rows: Arc<Rows>,
}

by_backend! { Rows: host::Rows, candle::Table, torch::Rows }

impl Embedding {
    /// Reads `weight`, `[count, width]`.
    pub fn load(w: &Weights<'_>, count: usize, width: usize) -> Load<Self> {
        let rows = Weights::share(&[w], &["weight"], || match w.backend() {
            Backend::Cpu => host::Rows::load(w, [count, width]).map(Rows::Host),
            Backend::Candle(candle) => {
                candle::Table::load(candle, w, [count, width]).map(Rows::Candle)
            }
            #[cfg(feature = "libtorch")]
            Backend::Torch(torch) => torch::Rows::load(torch, w, [count, width]).map(Rows::Torch),
        })?;
        Ok(Self { rows })
    }

    /// The rows of those indices, `[len, width]`; they come from the tokenizer, which knows the
    /// table's size.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        match &*self.rows {
            Rows::Host(rows) => rows.at(indices),
            Rows::Candle(rows) => Ok(rows.at(indices)?.into()),
            #[cfg(feature = "libtorch")]
            Rows::Torch(rows) => Ok(rows.at(indices)?.into()),
        }
    }
}
