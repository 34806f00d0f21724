//! 3×3 convolution by Winograd's minimal filtering, F(4×4, 3×3) (Lavin & Gray, 2016,
//! arXiv:1509.09308): 36 products for 16 pixels where the definition takes 144.
//!
//! Tiles of 6×6 pixels, 4 apart, are transformed; 36 matrix products follow, one for each place
//! in a tile; each result is transformed back to 4×4 pixels. All in f32: the sums are exact to
//! about 1e-5 of the largest, ten times coarser than by the definition.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    OutPtr, arch,
    gemm::{Dense, Finish, Product},
    packed::PackedWeights,
};

/// Pixels of a tile's result along one side, and of what it is made from.
const OUT: usize = 4;
const IN: usize = 6;
const PLACES: usize = IN * IN;
/// Tiles that are transformed at a time.
const BLOCK_TILES: usize = 512;
/// Of these, how many one work item multiplies.
const CHUNK_TILES: usize = 128;

/// Transformed weights: a matrix for each place in a tile.
pub(crate) struct WinogradWeights {
    places: Vec<PackedWeights>,
    pub channels: usize,
}

impl WinogradWeights {
    /// From `[n, channels, 3, 3]`.
    pub fn new(source: &[f32], channels: usize, n: usize) -> Self {
        let mut places: Vec<_> =
            (0..PLACES).map(|_| PackedWeights::zeroed(1, channels, n)).collect();
        let outs: Vec<_> = places.iter_mut().map(PackedWeights::as_out).collect();
        (0..n).into_par_iter().for_each(|row| {
            let (start, step) = places[0].place_of(row);
            for c in 0..channels {
                let taps = &source[(row * channels + c) * 9..][..9];
                for (out, weight) in outs.iter().zip(weight_places(taps)) {
                    // SAFETY: this row's column of the panel is nobody else's.
                    unsafe { out.slice_mut(start + c * step, 1)[0] = weight };
                }
            }
        });
        Self { places, channels }
    }

    /// Weights that are not there: only how much room they would take.
    pub fn planned(channels: usize, n: usize) -> Self {
        let places = (0..PLACES).map(|_| PackedWeights::planned(1, channels, n)).collect();
        Self { places, channels }
    }

    /// What they take in memory.
    pub fn bytes(&self) -> usize {
        self.places.iter().map(PackedWeights::bytes).sum()
    }

    /// Channels of the output.
    pub fn n(&self) -> usize {
        self.places[0].n
    }
}

/// `G·g·Gᵀ` of a kernel's nine weights.
fn weight_places(g: &[f32]) -> [f32; PLACES] {
    let one = |[a, b, c]: [f32; 3]| {
        let (even, odd) = ((a + c) / -6.0, b / 6.0);
        let (even2, odd2) = (a / 24.0 + c / 6.0, b / 12.0);
        [a / 4.0, even - odd, even + odd, even2 + odd2, even2 - odd2, c]
    };
    let columns = [0, 1, 2].map(|column| one([g[column], g[3 + column], g[6 + column]]));
    let mut places = [0.0; PLACES];
    for (row, places) in places.chunks_exact_mut(IN).enumerate() {
        places.copy_from_slice(&one(columns.map(|column| column[row])));
    }
    places
}

/// A convolution with padding 1 and stride 1 over a batch of images.
pub(crate) struct Winograd<'a> {
    pub weights: &'a WinogradWeights,
    /// `[images, stored height, stored width, channels]`
    pub x: &'a [f32],
    pub images: usize,
    pub stored: [usize; 2],
    /// For each seen row and column, the stored one (see `conv::Geometry::seen`).
    pub rows: &'a [usize],
    pub columns: &'a [usize],
    /// `[n]`, or `[images, n]`.
    pub bias: &'a [f32],
    /// What is added to the output, if anything.
    pub residual: Option<&'a [f32]>,
}

impl Winograd<'_> {
    /// Into `[images, seen height, seen width, n]`.
    pub fn run(&self, out: OutPtr) {
        let (tiles, block, len) = (self.tiles(), self.block(), self.scratch());
        let (c, n) = (self.weights.channels, self.weights.n());
        let mut scratch = Vec::<f32>::with_capacity(len);
        let room = OutPtr::uninit(&mut scratch.spare_capacity_mut()[..len]);
        let (inputs, products) = (room, room.from(PLACES * block * c));
        for first in (0..tiles).step_by(block) {
            let count = block.min(tiles - first);
            (0..count).into_par_iter().for_each(|i| {
                arch().dispatch(ToPlaces { job: self, tile: first + i, i, count, out: inputs });
            });
            // SAFETY: the transform above has written these places, and nobody writes them now.
            let inputs = unsafe { inputs.slice(0, PLACES * count * c) };
            let chunks = count.div_ceil(CHUNK_TILES);
            (0..PLACES * chunks).into_par_iter().for_each(|item| {
                let (place, chunk) = (item / chunks, item % chunks * CHUNK_TILES);
                let rows = CHUNK_TILES.min(count - chunk);
                let at = place * count + chunk;
                Product {
                    rows: Dense::new(&inputs[at * c..], c, rows, c),
                    images: 1,
                    rows_per_image: rows,
                    weights: &self.weights.places[place],
                    bias: None,
                    finish: Finish::Store,
                    columns: n,
                    out_stride: n,
                }
                .run_here(products.from(at * n));
            });
            (0..count).into_par_iter().for_each(|i| {
                arch().dispatch(FromPlaces { job: self, tile: first + i, i, count, products, out });
            });
        }
    }

    /// How many floats [`Self::run`] allocates: the tiles of a block before and after the products.
    pub fn scratch(&self) -> usize {
        PLACES * self.block() * (self.weights.channels + self.weights.n())
    }

    /// Tiles that are in work at a time.
    fn block(&self) -> usize {
        BLOCK_TILES.min(self.tiles())
    }

    fn tiles(&self) -> usize {
        self.images * self.tile_rows() * self.tile_columns()
    }

    fn tile_rows(&self) -> usize {
        self.rows.len().div_ceil(OUT)
    }

    fn tile_columns(&self) -> usize {
        self.columns.len().div_ceil(OUT)
    }

    /// The tile's image, and its first row and column.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (rows, columns) = (self.tile_rows(), self.tile_columns());
        (tile / (rows * columns), tile / columns % rows * OUT, tile % columns * OUT)
    }
}

/// `Bᵀ·d·B` of one tile, for all channels.
struct ToPlaces<'a> {
    job: &'a Winograd<'a>,
    tile: usize,
    i: usize,
    count: usize,
    out: OutPtr,
}

impl WithSimd for ToPlaces<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (job, channels) = (self.job, self.job.weights.channels);
        let (image, y, x) = job.place(self.tile);
        let [height, width] = job.stored;
        // Where each pixel's channels start; `None` in the padding.
        let pixel = |i: usize| {
            let row = job.rows.get((y + i / IN).wrapping_sub(1))?;
            let column = job.columns.get((x + i % IN).wrapping_sub(1))?;
            Some(((image * height + row) * width + column) * channels)
        };
        let pixels: [Option<usize>; PLACES] = std::array::from_fn(pixel);
        for c in (0..channels).step_by(S::F32_LANES) {
            let end = channels.min(c + S::F32_LANES);
            let zero = simd.splat_f32s(0.0);
            let load = |i: usize| match pixels[i] {
                Some(at) => simd.partial_load_f32s(&job.x[at + c..at + end]),
                None => zero,
            };
            let mut half = [[zero; IN]; IN];
            for column in 0..IN {
                let d = std::array::from_fn(|row| load(row * IN + column));
                for (half, d) in half.iter_mut().zip(to_places(simd, d)) {
                    half[column] = d;
                }
            }
            for (row, half) in half.into_iter().enumerate() {
                for (column, v) in to_places(simd, half).into_iter().enumerate() {
                    let place = ((row * IN + column) * self.count + self.i) * channels;
                    // SAFETY: this tile's place is nobody else's.
                    let out = unsafe { self.out.slice_mut(place + c, end - c) };
                    simd.partial_store_f32s(out, v);
                }
            }
        }
    }
}

/// `Bᵀ·d` in one dimension.
#[inline(always)]
fn to_places<S: Simd>(simd: S, d: [S::f32s; IN]) -> [S::f32s; IN] {
    let k = |x: f32| simd.splat_f32s(x);
    let fma = |a, b, c| simd.mul_add_e_f32s(a, b, c);
    let (add, sub) = (|a, b| simd.add_f32s(a, b), |a, b| simd.sub_f32s(a, b));
    let even = fma(d[2], k(-4.0), d[4]);
    let odd = fma(d[1], k(-4.0), d[3]);
    let (even2, odd2) = (sub(d[4], d[2]), simd.mul_f32s(sub(d[3], d[1]), k(2.0)));
    [
        fma(d[0], k(4.0), fma(d[2], k(-5.0), d[4])),
        add(even, odd),
        sub(even, odd),
        add(even2, odd2),
        sub(even2, odd2),
        fma(d[1], k(4.0), fma(d[3], k(-5.0), d[5])),
    ]
}

/// `Aᵀ·m·A` of one tile, with bias and residual, for all output channels.
struct FromPlaces<'a> {
    job: &'a Winograd<'a>,
    tile: usize,
    i: usize,
    count: usize,
    products: OutPtr,
    out: OutPtr,
}

impl WithSimd for FromPlaces<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (job, n) = (self.job, self.job.weights.n());
        let (image, y, x) = job.place(self.tile);
        let (height, width) = (job.rows.len(), job.columns.len());
        let bias = if job.bias.len() == n { job.bias } else { &job.bias[image * n..][..n] };
        for c in (0..n).step_by(S::F32_LANES) {
            let end = n.min(c + S::F32_LANES);
            let load = |i: usize| {
                // SAFETY: written by the products, and not any more.
                let m = unsafe { self.products.slice((i * self.count + self.i) * n + c, end - c) };
                simd.partial_load_f32s(m)
            };
            let mut half = [[simd.splat_f32s(0.0); IN]; OUT];
            for column in 0..IN {
                let m = std::array::from_fn(|row| load(row * IN + column));
                for (half, m) in half.iter_mut().zip(from_places(simd, m)) {
                    half[column] = m;
                }
            }
            let bias = simd.partial_load_f32s(&bias[c..end]);
            for (row, half) in half.into_iter().enumerate().take(height - y) {
                let results = from_places(simd, half).into_iter().enumerate();
                for (column, result) in results.take(width - x) {
                    let at = ((image * height + y + row) * width + x + column) * n + c;
                    let mut sum = simd.add_f32s(result, bias);
                    if let Some(residual) = job.residual {
                        let residual = simd.partial_load_f32s(&residual[at..at + end - c]);
                        sum = simd.add_f32s(sum, residual);
                    }
                    // SAFETY: this tile's pixels are nobody else's.
                    simd.partial_store_f32s(unsafe { self.out.slice_mut(at, end - c) }, sum);
                }
            }
        }
    }
}

/// `Aᵀ·m` in one dimension.
#[inline(always)]
fn from_places<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; OUT] {
    let k = |x: f32| simd.splat_f32s(x);
    let fma = |a, b, c| simd.mul_add_e_f32s(a, b, c);
    let (add, sub) = (|a, b| simd.add_f32s(a, b), |a, b| simd.sub_f32s(a, b));
    let (sum1, difference1) = (add(m[1], m[2]), sub(m[1], m[2]));
    let (sum2, difference2) = (add(m[3], m[4]), sub(m[3], m[4]));
    [
        add(m[0], add(sum1, sum2)),
        fma(difference2, k(2.0), difference1),
        fma(sum2, k(4.0), sum1),
        add(fma(difference2, k(8.0), difference1), m[5]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::cpu::tests::numbers;

    #[test]
    fn equals_the_definition() {
        let (channels, n, images) = (20, 33, 2);
        for (stored, seen) in [([8, 8], [8, 8]), ([5, 7], [5, 7]), ([5, 7], [10, 13])] {
            let x = numbers(images * stored[0] * stored[1] * channels, 1);
            let w = numbers(n * channels * 9, 2);
            let (bias, residual) =
                (numbers(images * n, 3), numbers(images * seen[0] * seen[1] * n, 4));
            let map = |a: usize| (0..seen[a]).map(|i| i * stored[a] / seen[a]).collect::<Vec<_>>();
            let (rows, columns) = (map(0), map(1));
            let weights = WinogradWeights::new(&w, channels, n);
            let mut found = vec![f32::NAN; residual.len()];
            Winograd {
                weights: &weights,
                x: &x,
                images,
                stored,
                rows: &rows,
                columns: &columns,
                bias: &bias,
                residual: Some(&residual),
            }
            .run(OutPtr::new(&mut found));
            for (i, found) in found.iter().enumerate() {
                let (k, pixel) = (i % n, i / n);
                let (px, py, image) =
                    (pixel % seen[1], pixel / seen[1] % seen[0], pixel / seen[1] / seen[0]);
                let mut sum = f64::from(bias[image * n + k]) + f64::from(residual[i]);
                for tap in 0..9 {
                    let (row, column) =
                        ((py + tap / 3).wrapping_sub(1), (px + tap % 3).wrapping_sub(1));
                    if let (Some(row), Some(column)) = (rows.get(row), columns.get(column)) {
                        let pixel = (image * stored[0] + row) * stored[1] + column;
                        sum += (0..channels)
                            .map(|c| {
                                f64::from(x[pixel * channels + c])
                                    * f64::from(w[(k * channels + c) * 9 + tap])
                            })
                            .sum::<f64>();
                    }
                }
                // The terms add up to about 45 in absolute value; see the module's words on exactness.
                assert!((f64::from(*found) - sum).abs() < 1e-4, "{found} is not {sum}");
            }
        }
    }
}
