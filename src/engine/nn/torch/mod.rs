//! libtorch's side of the seam: its arrays, the verbs on them, and the layers.
//!
//! Everything goes by ATen's own operations, the same on a CPU and on a card. Feature maps are
//! `[b, h, w, c]` as everywhere; a convolution sees them as `[b, c, h, w]` in torch's `channels_last`
//! format, which is the same memory.

mod array;
mod layers;
mod open;
mod weight;

pub(super) use array::{Array, Part, activate, attention};
pub(super) use layers::{Conv, Dense, Norm, Rows};
pub(super) use open::open;

use tch::TchError;

use super::Error;
use crate::engine::memory::{self, OutOfMemory};

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        if !text.contains("out of memory") {
            // The first line says what; the others where in libtorch.
            return Self::Backend(text.lines().next().unwrap_or_default().to_owned());
        }
        tracing::debug!("{text}");
        let in_use = memory::allocated_bytes();
        Self::OutOfMemory(OutOfMemory { needed_bytes: in_use, limit_bytes: in_use })
    }
}
