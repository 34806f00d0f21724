//! Normalisation and activations over channels-last data, each in as few passes as it takes.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    OutPtr, arch,
    math::{gelu_v, swish_v},
};
use crate::engine::nn::Activation;

/// Rows that one work item takes; short enough that f32 sums over them stay exact to 1e-6.
const CHUNK_ROWS: usize = 64;

/// The learned part of a normalisation.
pub(crate) struct Affine<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub epsilon: f32,
}

/// Group normalisation of `[images, rows, channels]`, then the activation (Wu & He, 2018).
pub(crate) fn group_norm(
    x: &[f32],
    images: usize,
    groups: usize,
    affine: &Affine<'_>,
    activation: Activation,
    out: OutPtr,
) {
    let channels = affine.weight.len();
    let image_len = x.len() / images;
    let chunk = CHUNK_ROWS * channels;
    for (image, x) in x.chunks_exact(image_len).enumerate() {
        let (scale, shift) = scale_and_shift(x, groups, affine);
        x.par_chunks(chunk).enumerate().for_each(|(i, x)| {
            // SAFETY: each chunk has a place of its own.
            let out = unsafe { out.slice_mut(image * image_len + i * chunk, x.len()) };
            for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
                arch().dispatch(Apply { x, scale: &scale, shift: &shift, activation, out });
            }
        });
    }
}

/// What each channel of one image is multiplied by and then moved by.
fn scale_and_shift(x: &[f32], groups: usize, affine: &Affine<'_>) -> (Vec<f32>, Vec<f32>) {
    let channels = affine.weight.len();
    let size = channels / groups;
    // Sums are taken of the distance to some value of the group, so that a mean far from zero
    // does not drown the variance.
    let origin: Vec<f32> = (0..channels).map(|c| x[c / size * size]).collect();
    let sums = x
        .par_chunks(CHUNK_ROWS * channels)
        .map(|x| {
            let mut sums = vec![0.0; 2 * channels];
            arch().dispatch(Sums { x, origin: &origin, sums: &mut sums });
            let group = |of: &[f32]| -> Vec<f64> {
                of.chunks_exact(size).map(|c| c.iter().map(|x| f64::from(*x)).sum()).collect()
            };
            [group(&sums[..channels]), group(&sums[channels..])].concat()
        })
        .reduce(|| vec![0.0; 2 * groups], |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect());
    let count = (x.len() / groups) as f64;
    (0..channels)
        .map(|c| {
            let mean = sums[c / size] / count;
            let variance = (sums[groups + c / size] / count - mean * mean).max(0.0);
            let scale = f64::from(affine.weight[c]) / (variance + f64::from(affine.epsilon)).sqrt();
            let shift = f64::from(affine.bias[c]) - (mean + f64::from(origin[c])) * scale;
            (scale as f32, shift as f32)
        })
        .unzip()
}

/// Adds each channel's distances from `origin`, and their squares, to `sums` (`[2, channels]`).
struct Sums<'a> {
    x: &'a [f32],
    origin: &'a [f32],
    sums: &'a mut [f32],
}

impl WithSimd for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let channels = self.origin.len();
        let (sum, square) = self.sums.split_at_mut(channels);
        for x in self.x.chunks_exact(channels) {
            for c in 0..channels {
                let distance = x[c] - self.origin[c];
                sum[c] += distance;
                square[c] += distance * distance;
            }
        }
    }
}

/// `out = activation(x·scale + shift)` over one row.
struct Apply<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    activation: Activation,
    out: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let inputs =
            self.x.chunks(lanes).zip(self.scale.chunks(lanes).zip(self.shift.chunks(lanes)));
        for ((x, (scale, shift)), out) in inputs.zip(self.out.chunks_mut(lanes)) {
            let load = |from: &[f32]| simd.partial_load_f32s(from);
            let y = simd.mul_add_e_f32s(load(x), load(scale), load(shift));
            simd.partial_store_f32s(out, activate_v(simd, y, self.activation));
        }
    }
}

#[inline(always)]
fn activate_v<S: Simd>(simd: S, x: S::f32s, activation: Activation) -> S::f32s {
    match activation {
        Activation::None => x,
        Activation::Silu => swish_v(simd, x, 1.0),
        Activation::Gelu => gelu_v(simd, x),
        Activation::QuickGelu => swish_v(simd, x, 1.702),
        Activation::LeakyRelu => simd.max_f32s(x, simd.mul_f32s(x, simd.splat_f32s(0.2))),
    }
}

/// The activation of every element.
pub(crate) fn activate(x: &[f32], activation: Activation, out: OutPtr) {
    const CHUNK: usize = 16 << 10;
    x.par_chunks(CHUNK).enumerate().for_each(|(i, x)| {
        // SAFETY: each chunk has a place of its own.
        let out = unsafe { out.slice_mut(i * CHUNK, x.len()) };
        arch().dispatch(Activate { x, activation, out });
    });
}

/// The same where the numbers are.
pub(crate) fn activate_in_place(x: OutPtr, len: usize, activation: Activation) {
    const CHUNK: usize = 16 << 10;
    (0..len.div_ceil(CHUNK)).into_par_iter().for_each(|i| {
        // SAFETY: each chunk has a place of its own; who calls has written all of them.
        let x = unsafe { x.slice_mut(i * CHUNK, CHUNK.min(len - i * CHUNK)) };
        arch().dispatch(ActivateInPlace { x, activation });
    });
}

struct ActivateInPlace<'a> {
    x: &'a mut [f32],
    activation: Activation,
}

impl WithSimd for ActivateInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for x in self.x.chunks_mut(S::F32_LANES) {
            let y = activate_v(simd, simd.partial_load_f32s(x), self.activation);
            simd.partial_store_f32s(x, y);
        }
    }
}

/// `out = x + factor·y`.
pub(crate) fn add_scaled(x: &[f32], y: &[f32], factor: f32, out: OutPtr) {
    const CHUNK: usize = 16 << 10;
    x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)).enumerate().for_each(|(i, (x, y))| {
        // SAFETY: each chunk has a place of its own.
        let out = unsafe { out.slice_mut(i * CHUNK, x.len()) };
        arch().dispatch(AddScaled { x, y, factor, out });
    });
}

struct AddScaled<'a> {
    x: &'a [f32],
    y: &'a [f32],
    factor: f32,
    out: &'a mut [f32],
}

impl WithSimd for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let factor = simd.splat_f32s(self.factor);
        let inputs = self.x.chunks(S::F32_LANES).zip(self.y.chunks(S::F32_LANES));
        for ((x, y), out) in inputs.zip(self.out.chunks_mut(S::F32_LANES)) {
            let (x, y) = (simd.partial_load_f32s(x), simd.partial_load_f32s(y));
            simd.partial_store_f32s(out, simd.mul_add_e_f32s(y, factor, x));
        }
    }
}

struct Activate<'a> {
    x: &'a [f32],
    activation: Activation,
    out: &'a mut [f32],
}

impl WithSimd for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (x, out) in self.x.chunks(S::F32_LANES).zip(self.out.chunks_mut(S::F32_LANES)) {
            simd.partial_store_f32s(
                out,
                activate_v(simd, simd.partial_load_f32s(x), self.activation),
            );
        }
    }
}

/// Layer normalisation of each row of `[rows, channels]` (Ba, Kiros & Hinton, 2016).
pub(crate) fn layer_norm(x: &[f32], affine: &Affine<'_>, out: OutPtr) {
    let channels = affine.weight.len();
    let chunk = CHUNK_ROWS * channels;
    x.par_chunks(chunk).enumerate().for_each(|(i, x)| {
        // SAFETY: each chunk has a place of its own.
        let out = unsafe { out.slice_mut(i * chunk, x.len()) };
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            arch().dispatch(LayerNorm { x, affine, out });
        }
    });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    affine: &'a Affine<'a>,
    out: &'a mut [f32],
}

impl WithSimd for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, affine, out } = self;
        let (vectors, tail) = S::as_simd_f32s(x);
        let mut sum = simd.splat_f32s(0.0);
        for x in vectors {
            sum = simd.add_f32s(sum, *x);
        }
        let mean = (simd.reduce_sum_f32s(sum) + tail.iter().sum::<f32>()) / x.len() as f32;
        let means = simd.splat_f32s(mean);
        let mut sum = simd.splat_f32s(0.0);
        for x in vectors {
            let distance = simd.sub_f32s(*x, means);
            sum = simd.mul_add_e_f32s(distance, distance, sum);
        }
        let tail: f32 = tail.iter().map(|x| (x - mean) * (x - mean)).sum();
        let variance = (simd.reduce_sum_f32s(sum) + tail) / x.len() as f32;
        let scale = (variance + affine.epsilon).sqrt().recip();
        let (weights, biases) = (affine.weight, affine.bias);
        for (((x, w), b), out) in x.iter().zip(weights).zip(biases).zip(out) {
            *out = (x - mean) * scale * w + b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::cpu::tests::numbers;

    fn moments(x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64)
    }

    #[test]
    fn group_norm_equals_the_definition_even_far_from_zero() {
        for (rows, channels, groups, offset) in
            [(7, 8, 4, 0.0), (500, 64, 32, 100.0), (129, 20, 2, -3.0)]
        {
            let images = 2;
            let x: Vec<f32> =
                numbers(images * rows * channels, 1).iter().map(|x| x + offset).collect();
            let (weight, bias) = (numbers(channels, 2), numbers(channels, 3));
            let affine = Affine { weight: &weight, bias: &bias, epsilon: 1e-5 };
            let mut out = vec![f32::NAN; x.len()];
            group_norm(&x, images, groups, &affine, Activation::Silu, OutPtr::new(&mut out));
            let size = channels / groups;
            for (i, found) in out.iter().enumerate() {
                let (c, image) = (i % channels, i / (rows * channels));
                let group: Vec<f64> = (0..rows * size)
                    .map(|j| x[(image * rows + j / size) * channels + c / size * size + j % size])
                    .map(f64::from)
                    .collect();
                let (mean, variance) = moments(&group);
                let normal = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                let y = normal * f64::from(weight[c]) + f64::from(bias[c]);
                let expected = y / (1.0 + (-y).exp());
                assert!((f64::from(*found) - expected).abs() < 2e-5, "{found} is not {expected}");
            }
        }
    }

    #[test]
    fn layer_norm_equals_the_definition() {
        for channels in [1, 5, 64, 77, 320] {
            let x = numbers(130 * channels, 1);
            let (weight, bias) = (numbers(channels, 2), numbers(channels, 3));
            let affine = Affine { weight: &weight, bias: &bias, epsilon: 1e-5 };
            let mut out = vec![f32::NAN; x.len()];
            layer_norm(&x, &affine, OutPtr::new(&mut out));
            for (i, found) in out.iter().enumerate() {
                let row: Vec<f64> = x[i / channels * channels..][..channels]
                    .iter()
                    .map(|x| f64::from(*x))
                    .collect();
                let (mean, variance) = moments(&row);
                let normal = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                let expected =
                    normal * f64::from(weight[i % channels]) + f64::from(bias[i % channels]);
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} is not {expected}");
            }
        }
    }
}
