//! Convolutions, by bands of rows.

use candle_core::{DType, Device, Result, Tensor};

use super::Place;

/// What a band may take, in numbers: candle writes each output pixel's neighbourhood out (and counts
/// those numbers in 32 bits).
const MAX_COLUMNS: usize = 128 << 20;

/// A square convolution with zero padding, over channels-last images.
#[derive(Debug, Clone)]
pub(crate) struct Conv {
    /// `[n, c, kernel, kernel]`
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    /// Zeros before and after each row and column.
    padding: [usize; 2],
}

/// What a convolution may have besides its input.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around<'a> {
    /// Height and width to which the input is enlarged by nearest neighbour before.
    pub enlarged: Option<[usize; 2]>,
    /// `[b, n]`, added to all pixels of an image.
    pub shift: Option<&'a Tensor>,
    /// As large as the output, and added to it.
    pub residual: Option<&'a Tensor>,
}

impl Conv {
    /// `weight` is `[n, c, kernel, kernel]`, `bias` `[n]`.
    pub fn new(
        place: &Place,
        [weight, bias]: [Vec<f32>; 2],
        kernel: usize,
        stride: usize,
        padding: [usize; 2],
    ) -> Result<Self> {
        let n = bias.len();
        let channels = weight.len() / (n * kernel * kernel).max(1);
        let weight = place.put(weight, &[n, channels, kernel, kernel])?;
        Ok(Self { weight, bias: place.put(bias, &[n])?, stride, padding })
    }

    /// `[b, h, w, c]` → `[b, h/stride, w/stride, n]`
    pub fn forward(&self, x: &Tensor, around: Around<'_>) -> Result<Tensor> {
        self.run(x, around, MAX_COLUMNS)
    }

    pub fn device(&self) -> &Device {
        self.weight.device()
    }

    fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    fn run(&self, x: &Tensor, around: Around<'_>, max_columns: usize) -> Result<Tensor> {
        let (.., channels) = x.dims4()?;
        if channels != self.weight.dim(1)? {
            candle_core::bail!(
                "a tensor {:?} where [.., {}] belongs",
                x.dims(),
                self.weight.dim(1)?
            );
        }
        let x = x.to_dtype(self.dtype())?;
        let x = match around.enlarged {
            Some([h, w]) => enlarged(&enlarged(&x, 1, h)?, 2, w)?,
            None => x,
        };
        let sums = self.sums(&x, max_columns)?;
        let sums = match around.shift {
            Some(shift) => {
                let shift = shift.to_dtype(self.dtype())?.broadcast_add(&self.bias)?;
                sums.broadcast_add(&shift.reshape((shift.dim(0)?, 1, 1, ()))?)?
            }
            None => sums.broadcast_add(&self.bias)?,
        };
        match around.residual {
            Some(residual) => sums + residual.to_dtype(self.dtype())?,
            None => Ok(sums),
        }
    }

    /// Without the bias.
    fn sums(&self, x: &Tensor, max_columns: usize) -> Result<Tensor> {
        let (n, channels, kernel, _) = self.weight.dims4()?;
        let [before, after] = self.padding;
        if (kernel, self.stride, before + after) == (1, 1, 0) {
            let (images, h, w, _) = x.dims4()?;
            let weight = self.weight.reshape((n, channels))?;
            let product = x.contiguous()?.reshape(((), channels))?.matmul(&weight.t()?)?;
            return product.reshape((images, h, w, n));
        }
        let x = x.pad_with_zeros(1, before, after)?.pad_with_zeros(2, before, after)?;
        let (images, h, w, _) = x.dims4()?;
        if h.min(w) < kernel {
            candle_core::bail!("an image of {h}x{w} under a kernel of {kernel}");
        }
        let out = [h, w].map(|size| (size - kernel) / self.stride + 1);
        let row = images * out[1] * kernel * kernel * channels;
        let band = (max_columns / row).max(1);
        let bands = (0..out[0]).step_by(band).map(|first| {
            let rows = (band.min(out[0] - first) - 1) * self.stride + kernel;
            let seen = x.narrow(1, first * self.stride, rows)?.permute((0, 3, 1, 2))?;
            seen.conv2d(&self.weight, 0, self.stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()
        });
        Tensor::cat(&bands.collect::<Result<Vec<_>>>()?, 1)
    }
}

/// By nearest neighbour, along one dimension: the index scaled in f32 and rounded down, as torch has it.
fn enlarged(x: &Tensor, dim: usize, size: usize) -> Result<Tensor> {
    let stored = x.dim(dim)?;
    let scale = stored as f32 / size as f32;
    let nearest = |at| ((at as f32 * scale) as u32).min(stored as u32 - 1);
    let indices = Tensor::from_iter((0..size).map(nearest), x.device())?;
    x.contiguous()?.index_select(&indices, dim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::{
        candle::tests::{assert_close, floats, numbers, place, tensor},
        cpu::{
            OutPtr,
            conv::{Geometry, conv2d},
            gemm::Finish,
            packed::PackedWeights,
        },
    };

    struct Case {
        kernel: usize,
        stride: usize,
        padding: [usize; 2],
        seen: Option<[usize; 2]>,
    }

    const IMAGES: usize = 2;
    const STORED: [usize; 2] = [5, 7];
    const CHANNELS: usize = 6;
    const N: usize = 9;

    impl Case {
        fn weights(&self) -> [Vec<f32>; 2] {
            [numbers(N * CHANNELS * self.kernel * self.kernel, 2), numbers(N, 3)]
        }

        fn conv(&self, dtype: DType) -> Conv {
            let Self { kernel, stride, padding, .. } = *self;
            Conv::new(&place(dtype), self.weights(), kernel, stride, padding).unwrap()
        }

        /// What the CPU's kernels make of it, with a `[b, n]` bias.
        fn expected(&self, x: &Tensor, bias: &[f32]) -> Vec<f32> {
            let Self { kernel, stride, padding: [before, after], .. } = *self;
            let (taps, [weight, _]) = (kernel * kernel, self.weights());
            let at = |n: usize, tap: usize, c: usize| weight[(n * CHANNELS + c) * taps + tap];
            let weights = PackedWeights::pack(taps, CHANNELS, N, at);
            let seen = self.seen.unwrap_or(STORED);
            let out = seen.map(|size| (size + before + after - kernel) / stride + 1);
            let geometry =
                Geometry { kernel, stride, pad_before: before, stored: STORED, seen, out };
            let mut found = vec![f32::NAN; IMAGES * out[0] * out[1] * N];
            let place = OutPtr::new(&mut found);
            conv2d(&floats(x), IMAGES, geometry, &weights, Some(bias), Finish::Store, place);
            found
        }
    }

    fn cases() -> Vec<Case> {
        let case = |kernel, stride, padding, seen| Case { kernel, stride, padding, seen };
        vec![
            case(1, 1, [0, 0], None),
            case(3, 1, [1, 1], None),
            case(3, 2, [1, 1], None),
            case(3, 2, [0, 1], None),
            case(3, 1, [1, 1], Some([10, 14])),
            case(3, 1, [1, 1], Some([9, 13])),
            case(1, 1, [0, 0], Some([11, 15])),
        ]
    }

    #[test]
    fn it_is_the_cpus_by_bands_of_any_size() {
        let x = tensor(1, &[IMAGES, STORED[0], STORED[1], CHANNELS]);
        for case in cases() {
            let conv = case.conv(DType::F32);
            let around = Around { enlarged: case.seen, ..Around::default() };
            let [_, bias] = case.weights();
            let expected = case.expected(&x, &[&bias[..], &bias[..]].concat());
            let a_row = IMAGES * 14 * 9 * CHANNELS;
            for max_columns in [MAX_COLUMNS, 2 * a_row, 1] {
                let found = conv.run(&x, around, max_columns).unwrap();
                assert!(found.is_contiguous());
                assert_close(&found, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn shifts_and_residuals_are_added() {
        let x = tensor(1, &[IMAGES, STORED[0], STORED[1], CHANNELS]);
        let case = &cases()[1];
        let (shift, residual) =
            (tensor(4, &[IMAGES, N]), tensor(5, &[IMAGES, STORED[0], STORED[1], N]));
        let [_, bias] = case.weights();
        let bias: Vec<f32> =
            floats(&shift).iter().zip(bias.iter().cycle()).map(|(a, b)| a + b).collect();
        let expected: Vec<f32> =
            case.expected(&x, &bias).iter().zip(floats(&residual)).map(|(a, b)| a + b).collect();
        let around = Around { enlarged: None, shift: Some(&shift), residual: Some(&residual) };
        let found = case.conv(DType::F32).forward(&x, around).unwrap();
        assert_close(&found, &expected, 1e-5);
        let half = case.conv(DType::F16).forward(&x, around).unwrap();
        assert_eq!(half.dtype(), DType::F16);
        assert_close(&half, &expected, 3e-3);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let conv = cases()[1].conv(DType::F32);
        let error = conv.forward(&tensor(1, &[1, 4, 4, 5]), Around::default()).unwrap_err();
        assert!(error.to_string().contains("[.., 6] belongs"), "{error}");
    }
}
