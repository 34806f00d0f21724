//! The one matrix product that everything stands on: linear layers, convolutions, attention.
//!
//! `out[m, n] = bias[n] + Σ_tap rows(m, tap)[k] · weights[tap, k, n] (+ residual[m, n])`
//!
//! The left side is never copied: a [`Rows`] tells where row `m` of tap `t` starts, so that a
//! convolution over channels-last pixels is this product with one tap per kernel position, and
//! needs no im2col (the "indirect GEMM" of Dukhan, 2019, arXiv:1907.02129). The right side is
//! packed once into panels that a tile of the output streams through its registers.

use std::{ops::Range, ptr};

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    OutPtr, arch,
    packed::{PANEL_VECTORS, PackedWeights, panel_width},
};

/// Rows of a tile where the machine has 32 vector registers; half of it otherwise.
const TILE_ROWS: usize = 8;
/// Weights of one panel that are walked at a time (they stay in the second-level cache).
const MAX_DEPTH: usize = 4096;
/// Rows of the output that one work item computes.
const CHUNK_ROWS: usize = 512;

/// Where the rows of the left side are. Implementors promise that each pointer is good for `k` reads.
///
/// # Safety
/// `fill` must write pointers that are valid for `k` floats (the weights' `k`).
pub(crate) unsafe trait Rows: Sync {
    /// Pointers to rows `first ..` of `image` at `tap`; rows past the end may point at any valid row.
    fn fill(&self, image: usize, first: usize, tap: usize, rows: &mut [*const f32]);
}

/// Rows one after the other, `stride` apart: a matrix.
pub(crate) struct Dense<'a> {
    data: &'a [f32],
    stride: usize,
    count: usize,
}

impl<'a> Dense<'a> {
    /// `count` rows of `k` floats.
    pub fn new(data: &'a [f32], stride: usize, count: usize, k: usize) -> Self {
        assert!(count == 0 || data.len() >= (count - 1) * stride + k, "the rows are all there");
        Self { data, stride, count }
    }
}

// SAFETY: `new` checks that the slice holds `count` rows; later indices are clamped to the last.
unsafe impl Rows for Dense<'_> {
    #[inline(always)]
    fn fill(&self, _image: usize, first: usize, _tap: usize, rows: &mut [*const f32]) {
        for (i, row) in rows.iter_mut().enumerate() {
            *row = self.data.as_ptr().wrapping_add((first + i).min(self.count - 1) * self.stride);
        }
    }
}

/// What happens to a finished sum before it is stored.
#[derive(Clone, Copy)]
pub(crate) enum Finish<'a> {
    Store,
    /// Adds what stands at the same place.
    Add(&'a [f32]),
    /// Adds to what the output holds already; for products of one tap.
    Accumulate,
    /// The weights' left half times GELU of their right half (see [`PackedWeights::pack_geglu`]).
    Geglu,
}

/// One product over a batch of images of `rows_per_image` rows each.
pub(crate) struct Product<'a, R> {
    pub rows: R,
    pub images: usize,
    pub rows_per_image: usize,
    pub weights: &'a PackedWeights,
    /// `[n]`, or `[images, n]`.
    pub bias: Option<&'a [f32]>,
    pub finish: Finish<'a>,
    /// Columns that are stored: `n`, or half of what the weights had before they were paired.
    pub columns: usize,
    /// From one row of the output (and of what is added) to the next.
    pub out_stride: usize,
}

impl<R: Rows> Product<'_, R> {
    /// Computes into `out`, `[images, rows_per_image, columns]`, over all threads.
    pub fn run(&self, out: OutPtr) {
        let groups = self.panel_groups();
        let chunks = self.rows_per_image.div_ceil(CHUNK_ROWS);
        (0..self.images * chunks * groups).into_par_iter().for_each(|item| {
            let (group, rest) = (item % groups, item / groups);
            let (chunk, image) = (rest % chunks, rest / chunks);
            let rows = chunk * CHUNK_ROWS..self.rows_per_image.min((chunk + 1) * CHUNK_ROWS);
            let panels = self.output_panels();
            let panels = group * panels / groups..(group + 1) * panels / groups;
            arch().dispatch(Item { product: self, image, rows, panels, out });
        });
    }

    /// The same on the calling thread alone.
    pub fn run_here(&self, out: OutPtr) {
        for image in 0..self.images {
            let (rows, panels) = (0..self.rows_per_image, 0..self.output_panels());
            arch().dispatch(Item { product: self, image, rows, panels, out });
        }
    }

    /// Few rows are shared out by panels, so that all threads have work; many by rows alone.
    fn panel_groups(&self) -> usize {
        let row_items = self.images * self.rows_per_image.div_ceil(CHUNK_ROWS);
        let wanted = 4 * rayon::current_num_threads();
        wanted.div_ceil(row_items.max(1)).clamp(1, self.output_panels().max(1))
    }

    /// Geglu's panels come in pairs, the second half of the columns beside the first.
    fn output_panels(&self) -> usize {
        match self.finish {
            Finish::Store | Finish::Add(_) | Finish::Accumulate => self.weights.panels(),
            Finish::Geglu => self.weights.panels() / 2,
        }
    }
}

struct Item<'a, R> {
    product: &'a Product<'a, R>,
    image: usize,
    rows: Range<usize>,
    panels: Range<usize>,
    out: OutPtr,
}

impl<R: Rows> WithSimd for Item<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.compute::<S, TILE_ROWS>(simd);
        } else {
            self.compute::<S, { TILE_ROWS / 2 }>(simd);
        }
    }
}

impl<R: Rows> Item<'_, R> {
    #[inline(always)]
    fn compute<S: Simd, const MR: usize>(&self, simd: S) {
        for panel in self.panels.clone() {
            match (self.product.finish, self.product.weights.panel(panel).1) {
                (Finish::Geglu, _) => self.geglu_panel::<S, MR>(simd, panel),
                (_, 1) => self.panel::<S, MR, 1>(simd, panel),
                (_, 2) => self.panel::<S, MR, 2>(simd, panel),
                _ => self.panel::<S, MR, PANEL_VECTORS>(simd, panel),
            }
        }
    }

    /// All tiles of one panel; a deep product is walked in blocks that stay in the cache,
    /// with the sums so far resting in the output.
    #[inline(always)]
    fn panel<S: Simd, const MR: usize, const NV: usize>(&self, simd: S, panel: usize) {
        let weights = self.product.weights;
        let taps_per_block = (MAX_DEPTH / weights.k.max(1)).clamp(1, weights.taps);
        let (lines, bias) = (weights.panel(panel).0, self.bias::<S, NV>(simd, panel));
        for first_tap in (0..weights.taps).step_by(taps_per_block) {
            let taps = first_tap..weights.taps.min(first_tap + taps_per_block);
            for row in self.rows.clone().step_by(MR) {
                let sums = if first_tap == 0 {
                    [bias; MR]
                } else {
                    self.read_out::<S, MR, NV>(simd, panel, row)
                };
                let mut sums = self.accumulate(simd, lines, row, taps.clone(), sums);
                if matches!(self.product.finish, Finish::Accumulate) {
                    let before = self.read_out::<S, MR, NV>(simd, panel, row);
                    for (sum, before) in sums.iter_mut().flatten().zip(before.as_flattened()) {
                        *sum = simd.add_f32s(*sum, *before);
                    }
                }
                let residual = match self.product.finish {
                    Finish::Add(residual) if taps.end == weights.taps => Some(residual),
                    _ => None,
                };
                self.store(simd, panel, row, &sums, residual);
            }
        }
    }

    #[inline(always)]
    fn geglu_panel<S: Simd, const MR: usize>(&self, simd: S, panel: usize) {
        let gate_panel = panel + self.product.output_panels();
        let weights = self.product.weights;
        let lines = [panel, gate_panel].map(|panel| weights.panel(panel).0);
        let bias = [panel, gate_panel].map(|panel| self.bias::<S, PANEL_VECTORS>(simd, panel));
        for row in self.rows.clone().step_by(MR) {
            let taps = 0..weights.taps;
            let gate = self.accumulate(simd, lines[1], row, taps.clone(), [bias[1]; MR]);
            let mut value = self.accumulate(simd, lines[0], row, taps, [bias[0]; MR]);
            for (value, gate) in value.iter_mut().flatten().zip(gate.iter().flatten()) {
                *value = simd.mul_f32s(*value, super::math::gelu_v(simd, *gate));
            }
            self.store(simd, panel, row, &value, None);
        }
    }

    #[inline(always)]
    fn bias<S: Simd, const NV: usize>(&self, simd: S, panel: usize) -> [S::f32s; NV] {
        let mut line = [simd.splat_f32s(0.0); NV];
        if let Some(bias) = self.product.bias {
            let n = self.product.weights.n;
            let bias = if bias.len() == n { bias } else { &bias[self.image * n..][..n] };
            for (v, vector) in line.iter_mut().enumerate() {
                let at = panel * panel_width() + v * S::F32_LANES;
                *vector = simd.partial_load_f32s(&bias[at..n.min(at + S::F32_LANES)]);
            }
        }
        line
    }

    /// The inner loop of the whole engine: adds the rows' products with a panel to `sums`.
    #[inline(always)]
    fn accumulate<S: Simd, const MR: usize, const NV: usize>(
        &self,
        simd: S,
        panel: *const f32,
        first_row: usize,
        taps: Range<usize>,
        mut sums: [[S::f32s; NV]; MR],
    ) -> [[S::f32s; NV]; MR] {
        let k = self.product.weights.k;
        let mut rows = [ptr::null(); MR];
        for tap in taps {
            self.product.rows.fill(self.image, first_row, tap, &mut rows);
            // SAFETY: the panel holds taps × k lines of NV vectors, aligned to a cache line;
            // `Rows` promises k floats behind each row pointer.
            unsafe {
                let mut line = panel.add(tap * k * NV * S::F32_LANES) as *const S::f32s;
                for depth in 0..k {
                    let mut w = [simd.splat_f32s(0.0); NV];
                    for (v, w) in w.iter_mut().enumerate() {
                        *w = line.add(v).read();
                    }
                    for (row, sums) in rows.iter().zip(sums.iter_mut()) {
                        let x = simd.splat_f32s(*row.add(depth));
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = simd.mul_add_e_f32s(x, w, *sum);
                        }
                    }
                    line = line.add(NV);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn read_out<S: Simd, const MR: usize, const NV: usize>(
        &self,
        simd: S,
        panel: usize,
        first_row: usize,
    ) -> [[S::f32s; NV]; MR] {
        let mut sums = [[simd.splat_f32s(0.0); NV]; MR];
        for (r, sums) in sums.iter_mut().enumerate().take(self.rows.end - first_row) {
            let (place, columns) = self.place(panel, first_row + r);
            // SAFETY: this item alone writes these columns of these rows; they were written before,
            // by it or (`Accumulate`) by the caller.
            let out = unsafe { self.out.slice(place, columns.min(NV * S::F32_LANES)) };
            for (sum, out) in sums.iter_mut().zip(out.chunks(S::F32_LANES)) {
                *sum = simd.partial_load_f32s(out);
            }
        }
        sums
    }

    #[inline(always)]
    fn store<S: Simd, const MR: usize, const NV: usize>(
        &self,
        simd: S,
        panel: usize,
        first_row: usize,
        sums: &[[S::f32s; NV]; MR],
        residual: Option<&[f32]>,
    ) {
        for (r, sums) in sums.iter().enumerate().take(self.rows.end - first_row) {
            let (place, columns) = self.place(panel, first_row + r);
            let columns = columns.min(NV * S::F32_LANES);
            // SAFETY: no other item writes these columns of these rows.
            let out = unsafe { self.out.slice_mut(place, columns) };
            let residual = residual.map(|residual| &residual[place..place + columns]);
            if columns == NV * S::F32_LANES {
                // Almost always; a loop over vectors whose number is known costs next to nothing.
                let out = out.as_mut_ptr().cast::<S::f32s>();
                let residual = residual.map(|residual| residual.as_ptr().cast::<S::f32s>());
                for (v, sum) in sums.iter().enumerate() {
                    // SAFETY: both are just as long as these vectors.
                    unsafe {
                        let sum = match residual {
                            None => *sum,
                            Some(residual) => simd.add_f32s(*sum, residual.add(v).read_unaligned()),
                        };
                        out.add(v).write_unaligned(sum);
                    }
                }
                continue;
            }
            for (v, (out, sum)) in out.chunks_mut(S::F32_LANES).zip(sums).enumerate() {
                let sum = match residual {
                    None => *sum,
                    Some(residual) => {
                        let at = v * S::F32_LANES;
                        simd.add_f32s(*sum, simd.partial_load_f32s(&residual[at..at + out.len()]))
                    }
                };
                simd.partial_store_f32s(out, sum);
            }
        }
    }

    /// Where a row's part of a panel starts in the output, and how many columns are left there.
    #[inline(always)]
    fn place(&self, panel: usize, row: usize) -> (usize, usize) {
        let first = panel * panel_width();
        let row = self.image * self.product.rows_per_image + row;
        (row * self.product.out_stride + first, self.product.columns - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::cpu::{math::tests::erf, tests::numbers};

    #[test]
    fn equals_the_plain_product() {
        for (m, k, n) in [(1, 1, 1), (7, 5, 3), (13, 40, 49), (600, 33, 130), (9, 5000, 20)] {
            let (x, w) = (numbers(m * k, 1), numbers(n * k, 2));
            let (bias, add) = (numbers(n, 3), numbers(m * n, 4));
            let weights = PackedWeights::pack(1, k, n, |n, _, d| w[n * k + d]);
            let run = |finish| {
                let mut out = match finish {
                    Finish::Accumulate => add.clone(),
                    _ => vec![f32::NAN; m * n],
                };
                let rows = Dense::new(&x, k, m, k);
                let (bias, columns) = (Some(bias.as_slice()), n);
                let (images, rows_per_image, out_stride) = (1, m, n);
                let weights = &weights;
                Product {
                    rows,
                    images,
                    rows_per_image,
                    weights,
                    bias,
                    finish,
                    columns,
                    out_stride,
                }
                .run(OutPtr::new(&mut out));
                out
            };
            let (stored, added) = (run(Finish::Store), run(Finish::Add(&add)));
            let accumulated = run(Finish::Accumulate);
            for i in 0..m * n {
                let plain = plain_product(&x, &w, k, n, i) + f64::from(bias[i % n]);
                close(stored[i], plain, k);
                close(added[i], plain + f64::from(add[i]), k);
                close(accumulated[i], plain + f64::from(add[i]), k);
            }
        }
    }

    #[test]
    fn geglu_pairs_the_right_columns() {
        let (m, k) = (11, 24);
        for half in [1, 48, 50, 320] {
            let (x, w, bias) = (numbers(m * k, 1), numbers(2 * half * k, 2), numbers(2 * half, 3));
            let (weights, padded_bias) = PackedWeights::pack_geglu(k, half, &w, &bias);
            let mut out = vec![f32::NAN; m * half];
            Product {
                rows: Dense::new(&x, k, m, k),
                images: 1,
                rows_per_image: m,
                weights: &weights,
                bias: Some(&padded_bias),
                finish: Finish::Geglu,
                columns: half,
                out_stride: half,
            }
            .run(OutPtr::new(&mut out));
            for (i, out) in out.iter().enumerate() {
                let column = |c: usize| {
                    let i = i / half * (2 * half) + c;
                    plain_product(&x, &w, k, 2 * half, i) + f64::from(bias[c])
                };
                let (value, gate) = (column(i % half), column(half + i % half));
                close(*out, value * gate * 0.5 * (1.0 + erf(gate / 2f64.sqrt())), k);
            }
        }
    }

    fn plain_product(x: &[f32], w: &[f32], k: usize, n: usize, i: usize) -> f64 {
        let (row, column) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
        row.iter().zip(column).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    }

    fn close(found: f32, expected: f64, k: usize) {
        let tolerance = 1e-6 * (k as f64) + 1e-6;
        assert!(
            (f64::from(found) - expected).abs() < tolerance,
            "{found} is not {expected} at k = {k}"
        );
    }
}
