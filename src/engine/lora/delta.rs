//! The arithmetic of LoRAs: plain matrices in, a weight changed in place.
//!
//! A convolution's weight `[n, c, kh, kw]` is the matrix `[n, c·kh·kw]` that it lies in memory as.
//! Nothing here can fail: whoever makes a [`Delta`] has seen to it that the sizes agree.

use rayon::prelude::*;

use crate::engine::nn;

/// Rows that one work item adds up, and that are held beside the weight at a time.
pub const CHUNK_ROWS: usize = 256;

/// A matrix `a·b` that is kept as its factors, `[n, rank]` and `[rank, k]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Product {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub rank: usize,
}

/// A matrix with `columns` columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    pub numbers: Vec<f32>,
    pub columns: usize,
}

/// What is added to a weight, times a scale.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// LoRA.
    Product(Product),
    /// LoHa: `(a₁·b₁) ⊙ (a₂·b₂)`.
    Hadamard(Product, Product),
    /// LoKr: `w₁ ⊗ w₂`.
    Kronecker(Matrix, Matrix),
    /// The difference itself.
    Full(Vec<f32>),
}

impl Product {
    /// `up [n, m]`, a core `[m, r, kh·kw]` and `down [r, c]`: the core takes the input channels
    /// first, so that a product of rank m is left (Tucker's decomposition, as LoCon has it).
    pub fn with_core(up: Vec<f32>, core: &[f32], down: &[f32], m: usize, r: usize) -> Self {
        let (taps, c) = (core.len() / (m * r), down.len() / r);
        let mut b = vec![0.0; m * c * taps];
        for (i, row) in b.chunks_exact_mut(c * taps).enumerate() {
            for (j, core) in core[i * r * taps..][..r * taps].chunks_exact(taps).enumerate() {
                for (kernel, x) in row.chunks_exact_mut(taps).zip(&down[j * c..]) {
                    add_scaled(kernel, *x, core);
                }
            }
        }
        Self { a: up, b, rank: m }
    }

    /// As one matrix.
    pub fn multiply(&self) -> Matrix {
        let (n, columns) = (self.a.len() / self.rank, self.b.len() / self.rank);
        let mut numbers = vec![0.0; n * columns];
        nn::add_product(&mut numbers, 1.0, &self.a, &self.b, self.rank);
        Matrix { numbers, columns }
    }

    fn rows(&self, first: usize, out: &mut [f32]) {
        let count = out.len() / (self.b.len() / self.rank);
        let a = &self.a[first * self.rank..][..count * self.rank];
        nn::add_product(out, 1.0, a, &self.b, self.rank);
    }
}

impl Delta {
    /// `weight += scale · delta`
    pub fn add_to(&self, weight: &mut [f32], scale: f32) {
        match self {
            Self::Product(Product { a, b, rank }) => nn::add_product(weight, scale, a, b, *rank),
            Self::Hadamard(first, second) => add_hadamard(weight, scale, first, second),
            Self::Kronecker(first, second) => add_kronecker(weight, scale, first, second),
            Self::Full(numbers) => weight
                .par_chunks_mut(1 << 14)
                .zip(numbers.par_chunks(1 << 14))
                .for_each(|(weight, numbers)| add_scaled(weight, scale, numbers)),
        }
    }
}

fn add_hadamard(weight: &mut [f32], scale: f32, first: &Product, second: &Product) {
    let columns = first.b.len() / first.rank;
    for (chunk, weight) in weight.chunks_mut(CHUNK_ROWS * columns).enumerate() {
        let (mut x, mut y) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        first.rows(chunk * CHUNK_ROWS, &mut x);
        second.rows(chunk * CHUNK_ROWS, &mut y);
        for ((weight, x), y) in weight.iter_mut().zip(&x).zip(&y) {
            *weight += scale * (x * y);
        }
    }
}

fn add_kronecker(weight: &mut [f32], scale: f32, first: &Matrix, second: &Matrix) {
    let rows = second.numbers.len() / second.columns;
    let columns = first.columns * second.columns;
    weight.par_chunks_mut(columns).enumerate().for_each(|(n, weight)| {
        let first = &first.numbers[n / rows * first.columns..][..first.columns];
        let second = &second.numbers[n % rows * second.columns..][..second.columns];
        for (weight, x) in weight.chunks_exact_mut(second.len()).zip(first) {
            add_scaled(weight, scale * x, second);
        }
    });
}

fn add_scaled(to: &mut [f32], scale: f32, numbers: &[f32]) {
    for (to, x) in to.iter_mut().zip(numbers) {
        *to += scale * x;
    }
}

/// Of what a weight's norms are taken: DoRA's magnitudes have one number for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Each output, over all that goes into it.
    Output,
    /// Each input channel of `taps` numbers side by side, over all outputs.
    Input { taps: usize },
}

/// DoRA: gives `weight`, to which the delta was added, the magnitudes that were learned:
/// `w ← m · w / ‖w‖` (LyCORIS' `weight_decompose`; PEFT's `DoraLinearLayer` means the same).
pub fn set_magnitudes(weight: &mut [f32], n: usize, axis: Axis, magnitudes: &[f32]) {
    let k = weight.len() / n;
    // LyCORIS keeps zeros from being divided by.
    let factor = |magnitude: f32, squares: f64| magnitude / (squares.sqrt() as f32 + f32::EPSILON);
    match axis {
        Axis::Output => {
            weight.par_chunks_mut(k).zip(magnitudes).for_each(|(row, magnitude)| {
                let factor = factor(*magnitude, row.iter().map(|x| f64::from(*x).powi(2)).sum());
                row.iter_mut().for_each(|x| *x *= factor);
            });
        }
        Axis::Input { taps } => {
            let squares = column_squares(weight, k);
            let channels = squares.chunks_exact(taps).zip(magnitudes);
            let factors: Vec<f32> = channels
                .flat_map(|(squares, magnitude)| {
                    std::iter::repeat_n(factor(*magnitude, squares.iter().sum()), taps)
                })
                .collect();
            weight.par_chunks_mut(k).for_each(|row| {
                row.iter_mut().zip(&factors).for_each(|(x, factor)| *x *= factor);
            });
        }
    }
}

/// The sum of each column's squares; added up in the same order whatever threads there are.
fn column_squares(weight: &[f32], k: usize) -> Vec<f64> {
    let chunks: Vec<Vec<f64>> = weight
        .par_chunks(CHUNK_ROWS * k)
        .map(|rows| {
            let mut sums = vec![0.0; k];
            for row in rows.chunks_exact(k) {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*x).powi(2);
                }
            }
            sums
        })
        .collect();
    let mut sums = vec![0.0; k];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    sums
}

/// `a ← b + strength · (a − b)`: as much of a change as a strength asks for.
pub fn interpolate(a: &mut [f32], b: &[f32], strength: f32) {
    let chunks = a.par_chunks_mut(1 << 14).zip(b.par_chunks(1 << 14));
    chunks.for_each(|(a, b)| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = b + strength * (*a - b));
    });
}

/// The transpose of a matrix with `columns` columns.
pub fn transpose(numbers: &[f32], columns: usize) -> Vec<f32> {
    let rows = numbers.len() / columns;
    (0..numbers.len()).map(|i| numbers[i % rows * columns + i / rows]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        crate::engine::noise::Generator::new(seed).randn(count)
    }

    fn close(found: &[f32], expected: impl Iterator<Item = f64>) {
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < 2e-5, "{i}: {found}, not {expected}");
        }
    }

    /// One number of `a·b`.
    fn at(product: &Product, row: usize, column: usize) -> f64 {
        let columns = product.b.len() / product.rank;
        let pairs = (0..product.rank)
            .map(|r| (product.a[row * product.rank + r], product.b[r * columns + column]));
        pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum()
    }

    fn product(n: usize, rank: usize, k: usize, seed: u64) -> Product {
        Product { a: numbers(n * rank, seed), b: numbers(rank * k, seed + 1), rank }
    }

    #[test]
    fn each_is_its_definition() {
        let (n, k) = (300, 70);
        let base = numbers(n * k, 9);
        let (p, q) = (product(n, 5, k, 1), product(n, 3, k, 3));
        let (w1, w2) = (
            Matrix { numbers: numbers(30 * 7, 5), columns: 7 },
            Matrix { numbers: numbers(100, 6), columns: 10 },
        );
        let full = numbers(n * k, 7);
        type Expected<'a> = Box<dyn Fn(usize, usize) -> f64 + 'a>;
        let cases: [(Delta, Expected<'_>); 4] = [
            (Delta::Product(p.clone()), Box::new(|i, j| at(&p, i, j))),
            (Delta::Hadamard(p.clone(), q.clone()), Box::new(|i, j| at(&p, i, j) * at(&q, i, j))),
            (
                Delta::Kronecker(w1.clone(), w2.clone()),
                Box::new(|i, j| {
                    let first = w1.numbers[i / 10 * 7 + j / 10];
                    f64::from(first) * f64::from(w2.numbers[i % 10 * 10 + j % 10])
                }),
            ),
            (Delta::Full(full.clone()), Box::new(|i, j| f64::from(full[i * k + j]))),
        ];
        for (delta, expected) in cases {
            let mut weight = base.clone();
            delta.add_to(&mut weight, -0.5);
            let places = (0..n * k).map(|at| (at / k, at % k));
            let sums = places.map(|(i, j)| f64::from(base[i * k + j]) - 0.5 * expected(i, j));
            close(&weight, sums);
        }
    }

    #[test]
    fn a_core_stands_between_up_and_down() {
        let (n, m, r, c, taps) = (6, 4, 3, 5, 9);
        let (up, core, down) = (numbers(n * m, 1), numbers(m * r * taps, 2), numbers(r * c, 3));
        let found = Product::with_core(up.clone(), &core, &down, m, r).multiply();
        assert_eq!((found.numbers.len(), found.columns), (n * c * taps, c * taps));
        close(
            &found.numbers,
            (0..n * c * taps).map(|place| {
                let (out, channel, tap) = (place / (c * taps), place / taps % c, place % taps);
                let sum = (0..m * r).map(|ij| {
                    let (i, j) = (ij / r, ij % r);
                    let core = core[ij * taps + tap];
                    f64::from(up[out * m + i]) * f64::from(core) * f64::from(down[j * c + channel])
                });
                sum.sum()
            }),
        );
    }

    #[test]
    fn magnitudes_are_those_asked_for() {
        let (n, c, taps) = (300, 4, 9);
        let k = c * taps;
        let base = numbers(n * k, 1);
        for (axis, count) in [(Axis::Output, n), (Axis::Input { taps }, c)] {
            let magnitudes: Vec<f32> = (0..count).map(|i| 0.5 + i as f32).collect();
            let mut weight = base.clone();
            set_magnitudes(&mut weight, n, axis, &magnitudes);
            let channel = |place: usize| match axis {
                Axis::Output => place / k,
                Axis::Input { .. } => place % k / taps,
            };
            let mut squares = vec![0f64; count];
            weight.iter().enumerate().for_each(|(i, x)| squares[channel(i)] += f64::from(x * x));
            for (found, expected) in squares.iter().zip(&magnitudes) {
                let (found, expected) = (found.sqrt(), f64::from(*expected));
                assert!((found / expected - 1.0).abs() < 1e-5, "{axis:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn transposed_twice_is_the_same() {
        let matrix = numbers(12, 1);
        let turned = transpose(&matrix, 4);
        assert_eq!(turned[1], matrix[4]);
        assert_eq!(transpose(&turned, 3), matrix);
    }
}
