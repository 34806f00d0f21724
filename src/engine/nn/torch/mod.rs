//! libtorch's side of the seam: its arrays, the verbs on them, and the layers.
//!
//! Everything goes by ATen's own operations, the same on a CPU and on a card. Feature maps are
//! `[b, h, w, c]` as everywhere; a convolution sees them as `[b, c, h, w]` in torch's `channels_last`
//! format, which is the same memory.

mod account;
mod array;
pub(super) mod cuda;
mod layers;
mod open;
mod recordings;
mod weight;

pub(super) use array::{Array, Part, activate, attention};
pub(super) use layers::{Conv, Dense, Norm, Rows};
pub(super) use open::open;
pub(super) use recordings::Recordings;

use tch::TchError;

use super::Error;
use crate::engine::memory::OutOfMemory;

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        failure(&error.to_string())
    }
}

/// What libtorch says of a failure.
fn failure(text: &str) -> Error {
    if !text.contains("out of memory") {
        // The first line says what; the others where in libtorch.
        return Error::Backend(text.lines().next().unwrap_or_default().to_owned());
    }
    tracing::debug!("{text}");
    Error::OutOfMemory(account::last_refusal().unwrap_or_else(|| of_card(text)))
}

/// "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which …"
fn of_card(text: &str) -> OutOfMemory {
    let bytes_after = |words: &str| {
        let mut words = text.split_once(words)?.1.split_whitespace();
        let number: f64 = words.next()?.parse().ok()?;
        let unit = match words.next()?.trim_end_matches('.') {
            "GiB" => 30,
            "MiB" => 20,
            "KiB" => 10,
            _ => 0,
        };
        Some((number * f64::from(1 << unit)) as u64)
    };
    let limit_bytes = bytes_after("total capacity of ").unwrap_or(0);
    let free_bytes = bytes_after("of which ").unwrap_or(0);
    let asked_bytes = bytes_after("Tried to allocate ").unwrap_or(0);
    OutOfMemory { needed_bytes: limit_bytes.saturating_sub(free_bytes) + asked_bytes, limit_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cards_want_of_memory_is_told_in_figures() {
        let text = "Internal torch error: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a \
                    total capacity of 23.50 GiB of which 512.00 MiB is free. Including non-PyTorch memory";
        let Error::OutOfMemory(error) = failure(text) else { panic!("{text}") };
        assert_eq!((error.needed_bytes, error.limit_bytes), (25 << 30, 47 << 29));
        let error = failure("Internal torch error: mat1 and mat2 differ\nException raised from");
        assert_eq!(error.to_string(), "Internal torch error: mat1 and mat2 differ");
    }
}
