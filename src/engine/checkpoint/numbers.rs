//! How numbers are stored in files: which types are read, what people call them, and how they
//! become f32. Knows nothing of tensors' names or shapes.

use std::collections::BTreeMap;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use safetensors::Dtype;

/// Numbers that a thread converts at a time.
const CHUNK: usize = 64 << 10;

/// The numbers of a tensor of a readable type.
pub(in crate::engine) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut numbers = vec![0.0; bytes.len() / float_bytes(dtype).unwrap_or(1)];
    write_f32(dtype, bytes, &mut numbers);
    numbers
}

/// The same, to where there is room for as many.
pub(super) fn write_f32(dtype: Dtype, bytes: &[u8], numbers: &mut [f32]) {
    let size = float_bytes(dtype).unwrap_or(1);
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

/// How most of the bytes are stored.
pub(in crate::engine) fn precision(
    tensors: impl Iterator<Item = (Dtype, usize)>,
) -> Option<String> {
    let mut bytes = BTreeMap::<String, usize>::new();
    for (dtype, len) in tensors {
        *bytes.entry(dtype_name(dtype)).or_default() += len;
    }
    bytes.into_iter().max_by_key(|(_, len)| *len).map(|(name, _)| name)
}

/// As people call it.
fn dtype_name(dtype: Dtype) -> String {
    match dtype {
        Dtype::F32 => "fp32".to_owned(),
        Dtype::F16 => "fp16".to_owned(),
        Dtype::BF16 => "bf16".to_owned(),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => "fp8".to_owned(),
        other => format!("{other:?}").to_lowercase(),
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
}
