//! Convolution over channels-last images as an indirect matrix product.

use super::{
    OutPtr,
    gemm::{Finish, Product, Rows},
    packed::PackedWeights,
};

/// The geometry of a convolution; padding is zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub kernel: usize,
    pub stride: usize,
    /// Zeros before the first row and column.
    pub pad_before: usize,
    /// Height and width of the image that is stored.
    pub stored: [usize; 2],
    /// Height and width of the image that the kernel sees: the stored one, or its nearest-neighbour
    /// enlargement, which is then never written out.
    pub seen: [usize; 2],
    pub out: [usize; 2],
}

impl Geometry {
    /// For each row (axis 0) or column (axis 1) that the kernel sees, the one that is stored.
    pub fn stored_at(&self, axis: usize) -> impl Fn(usize) -> usize + use<> {
        let (stored, seen) = (self.stored[axis], self.seen[axis]);
        // The reference's nearest neighbour: the index scaled in f32, rounded down.
        let scale = stored as f32 / seen as f32;
        move |at| ((at as f32 * scale) as usize).min(stored - 1)
    }
}

/// `out[b, y, x, n]`, with the weights' taps in the order of the kernel's rows, then columns.
pub(crate) fn conv2d(
    x: &[f32],
    images: usize,
    geometry: Geometry,
    weights: &PackedWeights,
    bias: Option<&[f32]>,
    finish: Finish<'_>,
    out: OutPtr,
) {
    let (rows, columns) = (Indirect::new(x, images, geometry, weights.k), weights.n);
    let rows_per_image = geometry.out[0] * geometry.out[1];
    let out_stride = columns;
    Product { rows, images, rows_per_image, weights, bias, finish, columns, out_stride }.run(out);
}

/// For each output row (column) and kernel row (column), where its input starts.
struct Indirect<'a> {
    image_len: usize,
    x: &'a [f32],
    zeros: Vec<f32>,
    kernel: usize,
    out_width: usize,
    /// `[out_height][kernel]`, in floats from the image's start; `OUTSIDE` in the padding.
    rows: Vec<usize>,
    /// `[out_width][kernel]`, in floats from the row's start.
    columns: Vec<usize>,
    pixels: usize,
}

const OUTSIDE: usize = usize::MAX;

impl<'a> Indirect<'a> {
    fn new(x: &'a [f32], images: usize, g: Geometry, channels: usize) -> Self {
        let [height, width] = g.stored;
        let image_len = height * width * channels;
        assert_eq!(x.len(), images * image_len, "the image is as large as its shape says");
        let axis = |axis: usize, step: usize| {
            let (seen, stored_at) = (g.seen[axis], g.stored_at(axis));
            (0..g.out[axis] * g.kernel)
                .map(|i| (i / g.kernel * g.stride + i % g.kernel).wrapping_sub(g.pad_before))
                .map(|at| if at < seen { stored_at(at) * step } else { OUTSIDE })
                .collect()
        };
        Self {
            image_len,
            x,
            zeros: vec![0.0; channels],
            kernel: g.kernel,
            out_width: g.out[1],
            rows: axis(0, width * channels),
            columns: axis(1, channels),
            pixels: g.out[0] * g.out[1],
        }
    }
}

// SAFETY: rows and columns hold only offsets of whole pixels inside an image (see `new`, which
// checks the slice's length against them); anything else points at `zeros`, one pixel long.
unsafe impl Rows for Indirect<'_> {
    #[inline(always)]
    fn fill(&self, image: usize, first: usize, tap: usize, rows: &mut [*const f32]) {
        let image = &self.x[image * self.image_len..];
        let (ky, kx) = (tap / self.kernel, tap % self.kernel);
        let (mut y, mut x) = (first / self.out_width, first % self.out_width);
        for (i, pointer) in rows.iter_mut().enumerate() {
            if first + i < self.pixels {
                let row = self.rows[y * self.kernel + ky];
                let column = self.columns[x * self.kernel + kx];
                *pointer = if row == OUTSIDE || column == OUTSIDE {
                    self.zeros.as_ptr()
                } else {
                    image[row + column..].as_ptr()
                };
                x += 1;
                if x == self.out_width {
                    (y, x) = (y + 1, 0);
                }
            } else {
                *pointer = self.zeros.as_ptr();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::cpu::tests::numbers;

    #[test]
    fn equals_the_definition() {
        // height, width, channels in and out, kernel, stride, padding before and after, enlarged to
        let cases = [
            ([5, 7], 3, 4, 3, 1, [1, 1], [5, 7]),
            ([8, 6], 20, 50, 1, 1, [0, 0], [8, 6]),
            ([9, 13], 5, 8, 3, 2, [1, 1], [9, 13]),
            ([8, 8], 4, 4, 3, 2, [0, 1], [8, 8]),
            ([5, 7], 6, 5, 3, 1, [1, 1], [10, 14]),
            ([5, 7], 6, 5, 3, 1, [1, 1], [9, 13]),
        ];
        for (stored, cin, cout, kernel, stride, [before, after], seen) in cases {
            let images = 2;
            let out = [0, 1].map(|a| (seen[a] + before + after - kernel) / stride + 1);
            let geometry = Geometry { kernel, stride, pad_before: before, stored, seen, out };
            let x = numbers(images * stored[0] * stored[1] * cin, 1);
            let w = numbers(cout * cin * kernel * kernel, 2);
            let bias = numbers(images * cout, 3);
            let at = |n: usize, c: usize, tap: usize| w[(n * cin + c) * kernel * kernel + tap];
            let weights =
                PackedWeights::pack(kernel * kernel, cin, cout, |n, tap, c| at(n, c, tap));
            let mut found = vec![f32::NAN; images * out[0] * out[1] * cout];
            let place = OutPtr::new(&mut found);
            conv2d(&x, images, geometry, &weights, Some(&bias), Finish::Store, place);
            for (i, found) in found.iter().enumerate() {
                let (n, pixel) = (i % cout, i / cout);
                let (ox, oy) = (pixel % out[1], pixel / out[1] % out[0]);
                let image = pixel / out[1] / out[0];
                let mut sum = f64::from(bias[image * cout + n]);
                for tap in 0..kernel * kernel {
                    let y = (oy * stride + tap / kernel).wrapping_sub(before);
                    let x_ = (ox * stride + tap % kernel).wrapping_sub(before);
                    if y < seen[0] && x_ < seen[1] {
                        let (y, x_) = (y * stored[0] / seen[0], x_ * stored[1] / seen[1]);
                        for c in 0..cin {
                            let pixel = (image * stored[0] + y) * stored[1] + x_;
                            sum += f64::from(x[pixel * cin + c]) * f64::from(at(n, c, tap));
                        }
                    }
                }
                assert!((f64::from(*found) - sum).abs() < 1e-4, "{found} {sum} {geometry:?} {i}");
            }
        }
    }
}
