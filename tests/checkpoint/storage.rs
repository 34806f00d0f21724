//! Numbers of every type that weights are stored in.

use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};

use crate::{
    recipe::{Made, Recipe, write},
    support::{draw, refused},
};

const FLOATS: [Dtype; 5] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2];

/// The number with this sign, exponent and fraction; the widths of the latter two make the type.
fn float(byte: u8, exponent_bits: u8, fraction_bits: u8) -> f32 {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let exponent = i32::from(byte >> fraction_bits & ((1 << exponent_bits) - 1));
    let steps = f32::from(1u8 << fraction_bits);
    let fraction = f32::from(byte & ((1 << fraction_bits) - 1)) / steps;
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(1 - bias),
        _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The bytes of an 8-bit type that stand for numbers, by what they stand for.
fn values(dtype: Dtype) -> Vec<(f32, u8)> {
    let (exponent_bits, fraction_bits, last) = match dtype {
        Dtype::F8_E4M3 => (4, 3, 0x7e),
        _ => (5, 2, 0x7b),
    };
    let bytes = (0..=255u8).filter(|byte| byte & 0x7f <= last);
    let mut values: Vec<_> =
        bytes.map(|byte| (float(byte, exponent_bits, fraction_bits), byte)).collect();
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    values
}

/// The nearest there is.
fn nearest(values: &[(f32, u8)], x: f32) -> (f32, u8) {
    let above = values.partition_point(|(value, _)| *value < x).min(values.len() - 1);
    let below = above.saturating_sub(1);
    if x - values[below].0 < values[above].0 - x { values[below] } else { values[above] }
}

/// Numbers as they are stored, and what is read of them.
fn stored(dtype: Dtype, numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let numbers = numbers.iter().copied();
    match dtype {
        Dtype::F32 => (numbers.clone().flat_map(f32::to_le_bytes).collect(), numbers.collect()),
        Dtype::F16 => (
            numbers.clone().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            numbers.map(|x| f16::from_f32(x).to_f32()).collect(),
        ),
        Dtype::BF16 => (
            numbers.clone().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            numbers.map(|x| bf16::from_f32(x).to_f32()).collect(),
        ),
        _ => {
            let values = values(dtype);
            let found = numbers.map(|x| nearest(&values, x));
            found.map(|(value, byte)| (byte, value)).unzip()
        }
    }
}

/// Writes tensors in these types in turns.
fn write_as(path: &Path, tensors: &[(String, Made)], types: &[Dtype]) {
    let stored: Vec<_> = tensors
        .iter()
        .zip(types.iter().cycle())
        .map(|((_, made), dtype)| (*dtype, stored(*dtype, &made.numbers).0))
        .collect();
    let views = tensors.iter().zip(&stored).map(|((name, made), (dtype, bytes))| {
        (name.as_str(), TensorView::new(*dtype, made.dims.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

#[test]
fn eight_bits_stand_for_these_numbers() {
    for (dtype, largest, smallest, count) in [
        (Dtype::F8_E4M3, 448.0, 2f32.powi(-9), 254),
        (Dtype::F8_E5M2, 57344.0, 2f32.powi(-16), 248),
    ] {
        let values = values(dtype);
        assert_eq!(values.len(), count);
        assert_eq!((values[0].0, values[count - 1].0), (-largest, largest));
        assert_eq!(nearest(&values, 0.6 * smallest).0, smallest);
        assert_eq!(nearest(&values, -1.01).0, -1.0);
        assert_eq!(nearest(&values, 1e9).0, largest);
    }
}

#[test]
fn a_model_draws_what_its_rounded_numbers_draw() {
    let recipe = Recipe::of("small");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let mut images = Vec::new();
    for types in FLOATS.iter().map(std::slice::from_ref).chain([&FLOATS[..]]) {
        let mut tensors = recipe.single_file();
        write_as(&path("stored"), &tensors, types);
        for ((_, made), dtype) in tensors.iter_mut().zip(types.iter().cycle()) {
            made.numbers = stored(*dtype, &made.numbers).1;
        }
        write(&path("rounded"), &tensors);
        let image = draw(&path("stored"));
        assert!(image == draw(&path("rounded")), "{types:?} draws another image");
        assert!(!images.contains(&image), "{types:?} draws the image of another type");
        images.push(image);
    }
}

#[test]
fn a_weight_that_is_no_fraction_is_refused_by_its_name() {
    let mut tensors = Recipe::of("small").single_file();
    let name = "model.diffusion_model.out.2.bias";
    let at = tensors.iter().position(|(tensor, _)| tensor == name).unwrap();
    let (name, made) = tensors.remove(at);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for (dtype, bytes_each) in [(Dtype::I64, 8), (Dtype::BOOL, 1), (Dtype::U8, 1), (Dtype::F64, 8)]
    {
        let bytes = vec![0; made.numbers.len() * bytes_each];
        let wrong = TensorView::new(dtype, made.dims.clone(), &bytes).unwrap();
        let bytes: Vec<_> =
            tensors.iter().map(|(_, made)| stored(Dtype::F16, &made.numbers).0).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, made), bytes)| {
            (name.as_str(), TensorView::new(Dtype::F16, made.dims.clone(), bytes).unwrap())
        });
        serialize_to_file(views.chain([(&*name, wrong)]), None, &path).unwrap();
        let expected = format!(
            "x.safetensors: the tensor '{name}' is stored as {dtype:?}; fp32, fp16, bf16 and fp8 (e4m3, e5m2) are read"
        );
        assert_eq!(refused(&path), expected);
    }
}
