//! What models read their weights through.

use std::cell::Cell;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use safetensors::Dtype;

use super::{Checkpoint, Error};

/// Numbers that a thread converts at a time.
const CHUNK: usize = 64 << 10;

/// One walk of a model's loading code over a checkpoint: first as a check, which looks at names
/// and shapes alone, then to load. So that a file is refused before anything else had to go.
pub struct Reading<'a> {
    checkpoint: &'a Checkpoint,
    check: bool,
    bytes: Cell<u64>,
    on_bytes: &'a dyn Fn(u64),
}

impl<'a> Reading<'a> {
    /// Looks at names, shapes and types; layers made from it hold nothing.
    pub fn check(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, check: true, bytes: Cell::new(0), on_bytes: &|_| () }
    }

    /// Reads the tensors; `on_bytes` hears how many bytes have been read in all.
    pub fn load(checkpoint: &'a Checkpoint, on_bytes: &'a dyn Fn(u64)) -> Self {
        Self { checkpoint, check: false, bytes: Cell::new(0), on_bytes }
    }

    /// The weights below a canonical name.
    pub fn weights(&self, name: &str) -> Weights<'_> {
        Weights { reading: self, name: name.to_owned() }
    }

    /// What was read (or would be), in the file's bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
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
    pub fn dims(&self, name: &str) -> Result<&[usize], Error> {
        let (entry, tensor) = self.reading.checkpoint.entry(&format!("{}.{name}", self.name))?;
        if entry.dims.is_empty() || entry.dims.contains(&0) {
            return Err(self.wrong_shape(tensor, &entry.dims, "no empty tensor"));
        }
        Ok(&entry.dims)
    }

    /// A tensor that must have these dimensions, as f32; in a check, nothing.
    pub fn load(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, Error> {
        let checkpoint = self.reading.checkpoint;
        let (entry, tensor) = checkpoint.entry(&format!("{}.{name}", self.name))?;
        if entry.dims != dims {
            return Err(self.wrong_shape(tensor, &entry.dims, &format!("{dims:?}")));
        }
        if !is_readable(entry.dtype) {
            let (file, dtype) = (checkpoint.file.clone(), format!("{:?}", entry.dtype));
            return Err(Error::WrongType { file, tensor, dtype });
        }
        let bytes = &checkpoint.map[entry.bytes.clone()];
        self.reading.bytes.update(|read| read + bytes.len() as u64);
        if self.is_check() {
            return Ok(Vec::new());
        }
        (self.reading.on_bytes)(self.reading.bytes.get());
        Ok(to_f32(entry.dtype, bytes))
    }

    /// Refuses a tensor whose first dimension is not a multiple of `of`.
    pub fn expect_multiple_of(&self, name: &str, of: usize) -> Result<(), Error> {
        let dims = self.dims(name)?;
        if dims[0] % of == 0 { Ok(()) } else { self.refuse(name, &format!("a multiple of {of}")) }
    }

    /// An error that says what shape belongs where this tensor is.
    pub fn refuse<T>(&self, name: &str, expected: &str) -> Result<T, Error> {
        let (entry, tensor) = self.reading.checkpoint.entry(&format!("{}.{name}", self.name))?;
        Err(self.wrong_shape(tensor, &entry.dims, expected))
    }

    fn wrong_shape(&self, tensor: String, found: &[usize], expected: &str) -> Error {
        let (file, found) = (self.reading.checkpoint.file.clone(), found.to_vec());
        Error::WrongShape { file, tensor, found, expected: expected.to_owned() }
    }
}

/// Whether tensors of that type can be converted.
pub(in crate::engine) fn is_readable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The numbers of a tensor of a readable type.
pub(in crate::engine) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut numbers = vec![0.0; bytes.len() / dtype_bytes(dtype)];
    let chunks = numbers.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * dtype_bytes(dtype)));
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
            _ => {
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = f32::from_le_bytes(*bytes);
                }
            }
        }
    });
    numbers
}

fn dtype_bytes(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}
