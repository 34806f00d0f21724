//! What models read their weights through.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    sync::Arc,
    time::{Duration, Instant},
};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use safetensors::Dtype;

use super::{
    Checkpoint, Error, Found, TensorFile, View,
    layers::{LayerKey, Layers, Source},
};
use crate::engine::lora::Patches;

/// Numbers that a thread converts at a time.
const CHUNK: usize = 64 << 10;

/// One walk of a model's loading code over a checkpoint: first as a check, which looks at names
/// and shapes alone, then to load. So that a file is refused before anything else had to go.
pub struct Reading<'a> {
    checkpoint: &'a Checkpoint,
    patches: &'a Patches,
    check: bool,
    /// Made before, by another reading.
    kept: Layers,
    /// Made or taken over by this one.
    layers: RefCell<Layers>,
    read: Cell<u64>,
    /// Of layers that were taken over.
    spared: Cell<u64>,
    merging: Cell<Duration>,
    on_bytes: &'a dyn Fn(u64),
}

/// What a reading took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadingCost {
    /// The file's bytes that were read (or would be).
    pub bytes: u64,
    /// Time spent on merging LoRAs.
    pub merging: Duration,
}

impl<'a> Reading<'a> {
    /// Looks at names, shapes and types; layers made from it hold nothing.
    pub fn check(checkpoint: &'a Checkpoint, patches: &'a Patches) -> Self {
        Self {
            checkpoint,
            patches,
            check: true,
            kept: Layers::default(),
            layers: RefCell::default(),
            read: Cell::new(0),
            spared: Cell::new(0),
            merging: Cell::default(),
            on_bytes: &|_| (),
        }
    }

    /// Reads the tensors of all layers but those that are `kept`; `on_bytes` hears how many bytes
    /// are there in all.
    pub fn load(
        checkpoint: &'a Checkpoint,
        patches: &'a Patches,
        kept: Layers,
        on_bytes: &'a dyn Fn(u64),
    ) -> Self {
        Self { check: false, kept, on_bytes, ..Self::check(checkpoint, patches) }
    }

    /// The layers that were made or taken over, and what that took.
    pub fn finish(self) -> (Layers, ReadingCost) {
        let cost = ReadingCost { bytes: self.read.get(), merging: self.merging.get() };
        (self.layers.into_inner(), cost)
    }

    /// The weights below a canonical name.
    pub fn weights(&self, name: &str) -> Weights<'_> {
        Weights { reading: self, name: name.to_owned() }
    }

    fn tell(&self) {
        if !self.check {
            (self.on_bytes)(self.read.get() + self.spared.get());
        }
    }
}

/// The tensors below one canonical name.
pub struct Weights<'a> {
    reading: &'a Reading<'a>,
    name: String,
}

impl Weights<'_> {
    pub fn at(&self, name: &str) -> Self {
        Self { reading: self.reading, name: format!("{}.{name}", self.name) }
    }

    /// Whether the file has anything of this module.
    pub fn exists(&self) -> bool {
        self.reading.checkpoint.has_module(&self.name)
    }

    /// Whether this is a walk that keeps nothing.
    pub fn is_check(&self) -> bool {
        self.reading.check
    }

    /// How many modules there are that are called by this name and a number, from 0 on.
    pub fn count(&self) -> usize {
        (0..).take_while(|i| self.at(&i.to_string()).exists()).count()
    }

    /// A tensor's dimensions, of which there is at least one.
    pub fn dims(&self, name: &str) -> Result<Vec<usize>, Error> {
        let Found { file, tensor, view, entry } = self.find(name)?;
        let dims = view.dims(&entry.dims);
        if dims.is_empty() || dims.contains(&0) {
            return Err(wrong_shape(file, tensor, &entry.dims, "no empty tensor"));
        }
        Ok(dims)
    }

    /// A tensor that must have these dimensions, as f32; in a check, nothing.
    pub fn load(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, Error> {
        let Found { file, tensor, view, entry } = self.find(name)?;
        if view.dims(&entry.dims) != dims || !view.divides(&entry.dims) {
            let expected = format!("{:?}", view.stored(dims));
            return Err(wrong_shape(file, tensor, &entry.dims, &expected));
        }
        let Some(size) = float_bytes(entry.dtype) else {
            let (file, dtype) = (file.name.clone(), format!("{:?}", entry.dtype));
            return Err(Error::WrongType { file, tensor, dtype });
        };
        let bytes = file.bytes(entry);
        let bytes = match view {
            View::Whole | View::Transposed => bytes,
            View::Third(i) => {
                let len = dims.iter().product::<usize>() * size;
                &bytes[i * len..][..len]
            }
        };
        self.reading.read.update(|read| read + bytes.len() as u64);
        if self.is_check() {
            return Ok(Vec::new());
        }
        self.reading.tell();
        let mut numbers = to_f32(entry.dtype, bytes);
        if view == View::Transposed {
            numbers = transpose(&numbers, dims[0]);
        }
        let started = Instant::now();
        self.reading.patches.apply(&self.canonical(name), dims, &mut numbers);
        self.reading.merging.update(|merging| merging + started.elapsed());
        Ok(numbers)
    }

    /// What `make` makes of these tensors of these modules, or what it made of the very same ones
    /// for a pipeline that this one takes the place of.
    pub fn share<T: Any + Send + Sync>(
        modules: &[&Self],
        tensors: &[&str],
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Arc<T>, Error> {
        let Some(first) = modules.first() else { return make().map(Arc::new) };
        let sources = modules.iter().flat_map(|w| tensors.iter().map(|name| w.source(name)));
        let key = LayerKey::of::<T>(&first.name, sources.collect());
        let reading = first.reading;
        let (layer, bytes) = if let Some((layer, bytes)) = reading.kept.get::<T>(&key) {
            reading.spared.update(|spared| spared + bytes);
            reading.tell();
            (layer, bytes)
        } else {
            let before = reading.read.get();
            (Arc::new(make()?), reading.read.get() - before)
        };
        reading.layers.borrow_mut().insert(key, layer.clone(), bytes);
        Ok(layer)
    }

    /// Where a tensor comes from and what is done to it; nothing if it is not there.
    fn source(&self, name: &str) -> Option<Source> {
        let Found { file, tensor, .. } = self.find(name).ok()?;
        let patches = self.reading.patches.key(&self.canonical(name));
        Some(Source { file: file.identity.clone(), tensor, patches })
    }

    fn canonical(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// Refuses a tensor whose first dimension is not a multiple of `of`.
    pub fn expect_multiple_of(&self, name: &str, of: usize) -> Result<(), Error> {
        let dims = self.dims(name)?;
        if dims[0] % of == 0 { Ok(()) } else { self.refuse(name, &format!("a multiple of {of}")) }
    }

    /// An error that says what shape belongs where this tensor is.
    pub fn refuse<T>(&self, name: &str, expected: &str) -> Result<T, Error> {
        let Found { file, tensor, entry, .. } = self.find(name)?;
        Err(wrong_shape(file, tensor, &entry.dims, expected))
    }

    fn find(&self, name: &str) -> Result<Found<'_>, Error> {
        self.reading.checkpoint.find(&self.canonical(name))
    }
}

fn wrong_shape(file: &TensorFile, tensor: String, found: &[usize], expected: &str) -> Error {
    let (file, found) = (file.name.clone(), found.to_vec());
    Error::WrongShape { file, tensor, found, expected: expected.to_owned() }
}

/// A `[k, n]` matrix as `[n, k]`.
fn transpose(numbers: &[f32], n: usize) -> Vec<f32> {
    let k = numbers.len() / n.max(1);
    (0..n).flat_map(|row| (0..k).map(move |column| numbers[column * n + row])).collect()
}

/// The numbers of a tensor of a readable type.
pub(in crate::engine) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let size = float_bytes(dtype).unwrap_or(1);
    let mut numbers = vec![0.0; bytes.len() / size];
    let chunks = numbers.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size));
    chunks.for_each(|(numbers, bytes)| {
        let pairs = bytes.as_chunks::<2>().0;
        match dtype {
            Dtype::F16 => {
                let halves: Vec<f16> = pairs.iter().map(|pair| f16::from_le_bytes(*pair)).collect();
                halves.convert_to_f32_slice(numbers);
            }
            Dtype::BF16 => {
                for (number, pair) in numbers.iter_mut().zip(pairs) {
                    *number = bf16::from_le_bytes(*pair).to_f32();
                }
            }
            Dtype::F8_E4M3 => convert_bytes(numbers, bytes, e4m3),
            // The upper half of an fp16.
            Dtype::F8_E5M2 => {
                convert_bytes(numbers, bytes, |byte| f16::from_bits(u16::from(byte) << 8).to_f32());
            }
            _ => {
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = f32::from_le_bytes(*bytes);
                }
            }
        }
    });
    numbers
}

fn convert_bytes(numbers: &mut [f32], bytes: &[u8], value: impl Fn(u8) -> f32) {
    let table: [f32; 256] = std::array::from_fn(|byte| value(byte as u8));
    for (number, byte) in numbers.iter_mut().zip(bytes) {
        *number = table[usize::from(*byte)];
    }
}

/// fp8 with 4 bits of exponent and 3 of fraction, without infinities (Micikevicius et al., 2022,
/// arXiv:2209.05433, table 1; torch's `float8_e4m3fn`).
fn e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-6),
        _ => (1.0 + fraction) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Bytes of a number, of the types that weights are stored in.
pub(in crate::engine) fn float_bytes(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8() {
        for (byte, expected) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 7.0 * 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0xb9, -1.125),
            (0x7e, 448.0),
        ] {
            assert_eq!(e4m3(byte), expected, "{byte:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        let e5m2 = to_f32(Dtype::F8_E5M2, &[0x00, 0x01, 0x3c, 0xbd, 0x7b]);
        assert_eq!(e5m2, [0.0, 2f32.powi(-16), 1.0, -1.25, 57344.0]);
    }

    #[test]
    fn transposed() {
        assert_eq!(transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
