//! Weights laid out for the product: packed once, in panels that a tile streams through registers.

use rayon::prelude::*;

use super::{OutPtr, lanes};

/// Vectors in a full panel: with the product's eight rows a tile they fill 32 registers (8×3 sums,
/// 3 weights, 1 input).
pub(crate) const PANEL_VECTORS: usize = 3;

/// Weights of a product, in panels of a few vectors' width: `[panel][tap][k][width]`, zero-padded.
#[derive(Default)]
pub(crate) struct PackedWeights {
    pub taps: usize,
    pub k: usize,
    pub n: usize,
    data: AlignedBuffer,
}

impl PackedWeights {
    /// Packs weights that `at(n, tap, k)` looks up.
    pub fn pack(
        taps: usize,
        k: usize,
        n: usize,
        at: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let mut packed = Self::zeroed(taps, k, n);
        let panel_len = (panel_width() * taps * k).max(1);
        packed.data.as_mut_slice().par_chunks_mut(panel_len).enumerate().for_each(|(p, panel)| {
            pack_panel(panel, p * panel_width(), taps, k, n, &at);
        });
        packed
    }

    /// Weights that are still to be written (see [`Self::place_of`]).
    pub fn zeroed(taps: usize, k: usize, n: usize) -> Self {
        let mut packed = Self::planned(taps, k, n);
        packed.data.allocate();
        packed
    }

    /// Weights that are not there: all but their numbers, and how much room these would take.
    pub fn planned(taps: usize, k: usize, n: usize) -> Self {
        Self { taps, k, n, data: AlignedBuffer::planned(padded(n) * taps * k) }
    }

    /// Where the weights of output `n` start, and how far they lie apart from one `k` to the next.
    pub fn place_of(&self, n: usize) -> (usize, usize) {
        let panel = n / panel_width();
        let width = (padded(self.n) - panel * panel_width()).min(panel_width());
        (panel * panel_width() * self.taps * self.k + n % panel_width(), width)
    }

    pub fn as_out(&mut self) -> OutPtr {
        OutPtr::new(self.data.as_mut_slice())
    }

    /// Packs the `[2·half, k]` weights of a GEGLU projection, value rows first, so that both
    /// halves start at a panel's edge. The bias is laid out to match.
    pub fn pack_geglu(k: usize, half: usize, rows: &[f32], bias: &[f32]) -> (Self, Vec<f32>) {
        let padded_half = Self::geglu_columns(half) / 2;
        let source = |n: usize| match (n / padded_half.max(1), n % padded_half.max(1)) {
            (side, column) if column < half => Some(side * half + column),
            _ => None,
        };
        let at = |n, _, d| source(n).map_or(0.0, |row| rows[row * k + d]);
        let bias = (0..2 * padded_half).map(|n| source(n).map_or(0.0, |row| bias[row])).collect();
        (Self::pack(1, k, 2 * padded_half, at), bias)
    }

    /// How many outputs a GEGLU projection has where it is packed.
    pub fn geglu_columns(half: usize) -> usize {
        2 * half.next_multiple_of(panel_width())
    }

    /// Packs a `[k, n]` matrix whose rows lie `stride` apart, on the calling thread, reusing the buffer.
    pub fn repack_rows(&mut self, rows: &[f32], stride: usize, k: usize, n: usize) {
        self.reset(k, n);
        let width = panel_width();
        for (p, panel) in self.data.as_mut_slice().chunks_mut((width * k).max(1)).enumerate() {
            let (n0, panel_n) = (p * width, panel.len() / k);
            let cols = (n - n0).min(panel_n);
            for (line, row) in panel.chunks_exact_mut(panel_n).zip(rows.chunks(stride)) {
                line[..cols].copy_from_slice(&row[n0..n0 + cols]);
                line[cols..].fill(0.0);
            }
        }
    }

    /// Packs the transpose of an `[n, k]` matrix whose rows lie `stride` apart.
    pub fn repack_columns(&mut self, rows: &[f32], stride: usize, k: usize, n: usize) {
        self.reset(k, n);
        let width = panel_width();
        for (p, panel) in self.data.as_mut_slice().chunks_mut((width * k).max(1)).enumerate() {
            pack_panel(panel, p * width, 1, k, n, &|n, _, k| rows[n * stride + k]);
        }
    }

    fn reset(&mut self, k: usize, n: usize) {
        (self.taps, self.k, self.n) = (1, k, n);
        self.data.resize(padded(n) * k);
    }

    /// What they take in memory.
    pub fn bytes(&self) -> usize {
        self.data.lines_needed() * size_of::<Line>()
    }

    pub fn panels(&self) -> usize {
        self.n.div_ceil(panel_width())
    }

    /// The panel's start and its width in vectors.
    pub fn panel(&self, index: usize) -> (*const f32, usize) {
        let (width, depth) = (panel_width(), self.taps * self.k);
        let vectors = (self.n - index * width).min(width).div_ceil(lanes());
        (self.data.as_slice()[index * width * depth..].as_ptr(), vectors)
    }
}

pub(crate) fn panel_width() -> usize {
    PANEL_VECTORS * lanes()
}

fn padded(n: usize) -> usize {
    n.next_multiple_of(lanes())
}

fn pack_panel(
    panel: &mut [f32],
    n0: usize,
    taps: usize,
    k: usize,
    n: usize,
    at: &impl Fn(usize, usize, usize) -> f32,
) {
    let width = panel.len() / (taps * k);
    let cols = (n - n0).min(width);
    // In the order in which checkpoints hold them, so that the source is read from end to end.
    for col in 0..cols {
        for depth in 0..k {
            for tap in 0..taps {
                panel[(tap * k + depth) * width + col] = at(n0 + col, tap, depth);
            }
        }
    }
    for line in panel.chunks_exact_mut(width) {
        line[cols..].fill(0.0);
    }
}

/// Floats that start at a cache line, so that no vector of a panel straddles two.
#[derive(Default)]
struct AlignedBuffer {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read through `AlignedBuffer::as_slice`")] [f32; 16]);

impl AlignedBuffer {
    /// Without its floats: it must be allocated before anybody looks at them.
    fn planned(len: usize) -> Self {
        Self { lines: Vec::new(), len }
    }

    fn allocate(&mut self) {
        self.lines = vec![Line([0.0; 16]); self.lines_needed()];
    }

    fn lines_needed(&self) -> usize {
        self.len.div_ceil(16)
    }

    /// Makes it `len` floats long; what they hold is whatever was there before.
    fn resize(&mut self, len: usize) {
        self.len = len;
        self.lines.resize(self.lines_needed(), Line([0.0; 16]));
    }

    fn as_slice(&self) -> &[f32] {
        assert!(self.lines.len() >= self.lines_needed(), "weights that were only planned");
        // SAFETY: a Line is 16 floats without padding, and `len` does not exceed them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        assert!(self.lines.len() >= self.lines_needed(), "weights that were only planned");
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
