//! Scaled dot-product attention, one head at a time, a block of queries at a time: the score
//! matrix is never whole in memory, and no row of it leaves the second-level cache.

use std::cell::RefCell;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    OutPtr, arch,
    gemm::{Dense, Finish, Product},
    math::exp_v,
    packed::PackedWeights,
};

/// Scores of a block of queries, in floats (256 KiB).
const MAX_SCORES: usize = 64 << 10;
/// Queries of a block.
const MAX_QUERIES: usize = 64;

/// A matrix whose columns are those of all heads, side by side: `[batch, len, heads·head_dim]`
/// somewhere inside rows `stride` long.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    /// Where in a row the first head starts.
    pub offset: usize,
    pub len: usize,
}

pub(crate) struct Attention<'a> {
    pub q: Heads<'a>,
    pub k: Heads<'a>,
    pub v: Heads<'a>,
    pub batch: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Whether a query sees only the keys up to its own place.
    pub causal: bool,
}

impl Attention<'_> {
    /// How many floats [`Self::run`] allocates: all keys and values once more, packed.
    pub fn scratch(&self) -> usize {
        let (d, len) = (self.head_dim, self.k.len);
        let packed = [PackedWeights::planned(1, d, len), PackedWeights::planned(1, len, d)];
        let bytes: usize = packed.iter().map(PackedWeights::bytes).sum();
        self.batch * self.heads * bytes / size_of::<f32>()
    }

    /// `softmax(q·kᵀ / √head_dim)·v` into `out`, `[batch, q.len, heads·head_dim]`.
    pub fn run(&self, out: OutPtr) {
        let packed: Vec<_> = (0..self.batch * self.heads)
            .into_par_iter()
            .map(|head| {
                let (mut keys, mut values) = (PackedWeights::default(), PackedWeights::default());
                let (d, len) = (self.head_dim, self.k.len);
                keys.repack_columns(self.rows(self.k, head), self.k.stride, d, len);
                values.repack_rows(self.rows(self.v, head), self.v.stride, len, d);
                (keys, values)
            })
            .collect();
        let block = (MAX_SCORES / self.k.len.max(1) / 8 * 8).clamp(8, MAX_QUERIES);
        let blocks = self.q.len.div_ceil(block);
        (0..self.batch * self.heads * blocks).into_par_iter().for_each(|item| {
            let (head, first) = (item / blocks, item % blocks * block);
            let (keys, values) = &packed[head];
            self.block(head, first, block.min(self.q.len - first), keys, values, out);
        });
    }

    fn rows<'b>(&self, matrix: Heads<'b>, head: usize) -> &'b [f32] {
        let (image, head) = (head / self.heads, head % self.heads);
        &matrix.data[image * matrix.len * matrix.stride + matrix.offset + head * self.head_dim..]
    }

    /// Queries `first .. first + count` of one head.
    fn block(
        &self,
        head: usize,
        first: usize,
        count: usize,
        keys: &PackedWeights,
        values: &PackedWeights,
        out: OutPtr,
    ) {
        thread_local! {
            static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        let queries = &self.rows(self.q, head)[first * self.q.stride..];
        let (width, keys_len) = (self.heads * self.head_dim, self.k.len);
        SCORES.with_borrow_mut(|scores| {
            scores.resize(count * keys_len, 0.0);
            Product {
                rows: Dense::new(queries, self.q.stride, count, self.head_dim),
                images: 1,
                rows_per_image: count,
                weights: keys,
                bias: None,
                finish: Finish::Store,
                columns: keys_len,
                out_stride: keys_len,
            }
            .run_here(OutPtr::new(scores));
            let scale = (self.head_dim as f32).sqrt().recip();
            let mut inverses = [0.0; MAX_QUERIES];
            for (i, row) in scores.chunks_exact_mut(keys_len).enumerate() {
                let seen = if self.causal { (first + i + 1).min(keys_len) } else { keys_len };
                let (seen, unseen) = row.split_at_mut(seen);
                inverses[i] = arch().dispatch(Exponentials { row: seen, scale }).recip();
                unseen.fill(0.0);
            }
            let start = (head / self.heads * self.q.len + first) * width
                + head % self.heads * self.head_dim;
            Product {
                rows: Dense::new(scores, keys_len, count, keys_len),
                images: 1,
                rows_per_image: count,
                weights: values,
                bias: None,
                finish: Finish::Store,
                columns: self.head_dim,
                out_stride: width,
            }
            .run_here(out.from(start));
            // Dividing the few results is cheaper than dividing the many weights.
            for (i, inverse) in inverses[..count].iter().enumerate() {
                // SAFETY: these columns of these rows are this block's own, written just now.
                let row = unsafe { out.slice_mut(start + i * width, self.head_dim) };
                row.iter_mut().for_each(|x| *x *= inverse);
            }
        });
    }
}

/// `exp(scale·(row - max))`, in place; returns the sum.
struct Exponentials<'a> {
    row: &'a mut [f32],
    scale: f32,
}

impl WithSimd for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (vectors, tail) = S::as_mut_simd_f32s(self.row);
        let mut max = simd.splat_f32s(f32::NEG_INFINITY);
        for x in vectors.iter() {
            max = simd.max_f32s(max, *x);
        }
        let max = tail.iter().fold(simd.reduce_max_f32s(max), |max, x| max.max(*x));
        let scale = simd.splat_f32s(self.scale);
        let shift = simd.splat_f32s(-max * self.scale);
        let mut sum = simd.splat_f32s(0.0);
        for x in vectors.iter_mut() {
            *x = exp_v(simd, simd.mul_add_e_f32s(*x, scale, shift));
            sum = simd.add_f32s(sum, *x);
        }
        let mut total = simd.reduce_sum_f32s(sum);
        for x in tail.iter_mut() {
            *x = ((*x - max) * self.scale).exp();
            total += *x;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::cpu::tests::numbers;

    #[test]
    fn equals_the_definition() {
        let cases =
            [(5, 5, 40, false), (7, 77, 64, false), (77, 77, 64, true), (300, 1000, 8, false)];
        for (q_len, k_len, head_dim, causal) in cases {
            let (batch, heads) = (2, 3);
            let width = heads * head_dim;
            let q = numbers(batch * q_len * width, 1);
            let kv = numbers(batch * k_len * 2 * width, 2);
            let half = |offset| Heads { data: &kv, stride: 2 * width, offset, len: k_len };
            let mut out = vec![f32::NAN; q.len()];
            Attention {
                q: Heads { data: &q, stride: width, offset: 0, len: q_len },
                k: half(0),
                v: half(width),
                batch,
                heads,
                head_dim,
                causal,
            }
            .run(OutPtr::new(&mut out));
            for (i, found) in out.iter().enumerate() {
                let (column, row) = (i % width, i / width);
                let (image, head) = (row / q_len, column / head_dim);
                let query = &q[row * width + head * head_dim..][..head_dim];
                let seen = if causal { row % q_len + 1 } else { k_len };
                let at = |key: usize| &kv[(image * k_len + key) * 2 * width..][..2 * width];
                let weights: Vec<f64> = (0..seen)
                    .map(|key| {
                        query
                            .iter()
                            .zip(&at(key)[head * head_dim..])
                            .map(|(q, k)| f64::from(q * k))
                            .sum::<f64>()
                    })
                    .map(|score| (score / (head_dim as f64).sqrt()).exp())
                    .collect();
                let total: f64 = weights.iter().sum();
                let value = |key: usize| f64::from(at(key)[width + column]);
                let expected: f64 = (0..seen).map(|key| weights[key] / total * value(key)).sum();
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} is not {expected}");
            }
        }
    }
}
