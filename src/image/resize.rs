//! Lanczos resampling in PIL's integers (`Image.resize(size, LANCZOS)`), so that an image enters
//! the VAE with the very bytes that the reference gives it.

use std::f64::consts::PI;

/// The window's half width, in pixels of the coarser of both images.
const SUPPORT: f64 = 3.0;
/// Weights are whole numbers with so many binary digits behind the point.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// What one pixel of a resized line is made of.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// An image of `C` bytes a pixel, resized. Rows first, rounded to bytes, then columns.
pub fn resize<const C: usize>(pixels: Vec<u8>, from: (u32, u32), to: (u32, u32)) -> Vec<u8> {
    let [(from_width, from_height), (to_width, to_height)] =
        [from, to].map(|(width, height)| (width as usize, height as usize));
    let pixels = if from_width == to_width {
        pixels
    } else {
        let windows = windows(from_width, to_width);
        pixels.chunks_exact(C * from_width).flat_map(|row| resize_row::<C>(row, &windows)).collect()
    };
    if from_height == to_height {
        return pixels;
    }
    let stride = C * to_width;
    let column = |window: &Window, x: usize| {
        let rows = pixels[stride * window.first + x..].iter().step_by(stride);
        weigh(rows, &window.weights)
    };
    let windows = windows(from_height, to_height);
    windows.iter().flat_map(|window| (0..stride).map(move |x| column(window, x))).collect()
}

fn resize_row<const C: usize>(row: &[u8], windows: &[Window]) -> Vec<u8> {
    let pixel = |window: &Window| -> [u8; C] {
        let pixels = &row[C * window.first..];
        std::array::from_fn(|c| weigh(pixels[c..].iter().step_by(C), &window.weights))
    };
    windows.iter().flat_map(pixel).collect()
}

fn weigh<'a>(bytes: impl Iterator<Item = &'a u8>, weights: &[i32]) -> u8 {
    let half = 1 << (PRECISION_BITS - 1);
    let sum = bytes.zip(weights).fold(half, |sum, (byte, weight)| sum + i32::from(*byte) * weight);
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// One window for each pixel of a line of `to`, over a line of `from`.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0); // an enlargement interpolates, a reduction averages
    let support = SUPPORT * filter_scale;
    let window = |x: usize| {
        let center = (x as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |at: usize| lanczos((at as f64 - center + 0.5) / filter_scale);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let whole = |weight: f64| (weight / sum * f64::from(1 << PRECISION_BITS)).round() as i32;
        Window { first, weights: weights.into_iter().map(whole).collect() }
    };
    (0..to).map(window).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
    if (-SUPPORT..SUPPORT).contains(&x) { sinc(x) * sinc(x / SUPPORT) } else { 0.0 }
}
