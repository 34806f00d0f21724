//! Normalisations. Their sums are in f32.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{Place, activate};
use crate::engine::nn::Activation;

/// The learned part of a normalisation: a factor and a shift for each channel, in f32.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    weight: Tensor,
    bias: Tensor,
    /// Of what comes out.
    dtype: DType,
}

impl Norm {
    /// `weight` and `bias` are a number for each channel.
    pub fn new(place: &Place, [weight, bias]: [Vec<f32>; 2]) -> Result<Self> {
        let exact = Place { device: place.device.clone(), dtype: DType::F32 };
        let channels = weight.len();
        let (weight, bias) = (exact.put(weight, &[channels])?, exact.put(bias, &[channels])?);
        Ok(Self { weight, bias, dtype: place.dtype })
    }

    pub fn device(&self) -> &Device {
        self.weight.device()
    }

    fn channels(&self) -> usize {
        self.weight.elem_count()
    }

    fn expect(&self, x: &Tensor) -> Result<()> {
        if x.dim(D::Minus1)? != self.channels() {
            candle_core::bail!("a tensor {:?} where [.., {}] belongs", x.dims(), self.channels());
        }
        Ok(())
    }

    /// Group normalisation with an activation: `[b, .., c]`, where c is a multiple of `groups`.
    pub fn group(
        &self,
        x: &Tensor,
        groups: usize,
        epsilon: f32,
        activation: Activation,
    ) -> Result<Tensor> {
        self.expect(x)?;
        let size = self.channels() / groups;
        let grouped = (x.dim(0)?, (), groups, size);
        let grouped = x.to_dtype(DType::F32)?.contiguous()?.reshape(grouped)?;
        // (The mean is subtracted before anything is squared: it may be far from zero.)
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim((1, 3))?)?;
        let variance = centred.sqr()?.mean_keepdim((1, 3))?;
        let scale = (variance + f64::from(epsilon))?.sqrt()?.recip()?;
        let scale = scale.broadcast_mul(&self.weight.reshape((1, 1, groups, size))?)?;
        let normal = centred.broadcast_mul(&scale)?.reshape(x.shape())?;
        let normal = normal.broadcast_add(&self.bias)?;
        activate(&normal.to_dtype(self.dtype)?, activation)
    }

    /// Layer normalisation over the last dimension.
    pub fn layer(&self, x: &Tensor, epsilon: f32) -> Result<Tensor> {
        self.expect(x)?;
        let x = x.to_dtype(DType::F32)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let scale = (variance + f64::from(epsilon))?.sqrt()?.recip()?;
        let normal = centred.broadcast_mul(&scale)?.broadcast_mul(&self.weight)?;
        normal.broadcast_add(&self.bias)?.to_dtype(self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::{
        candle::tests::{assert_close, floats, numbers, place, tensor},
        cpu::{OutPtr, norm},
    };

    #[test]
    fn group_norm_is_the_cpus_even_far_from_zero() {
        for (dims, offset, activation) in
            [(&[2, 7, 5, 64][..], 0.0, Activation::Silu), (&[2, 35, 96], 10.0, Activation::None)]
        {
            let channels = *dims.last().unwrap();
            let x = tensor(1, dims).affine(1.0, offset).unwrap();
            let (weight, bias) = (numbers(channels, 2), numbers(channels, 3));
            let affine = norm::Affine { weight: &weight, bias: &bias, epsilon: 1e-5 };
            let mut expected = vec![f32::NAN; x.elem_count()];
            let out = OutPtr::new(&mut expected);
            norm::group_norm(&floats(&x), dims[0], 32, &affine, activation, out);
            let norm = Norm::new(&place(DType::F32), [weight, bias]).unwrap();
            let found = norm.group(&x, 32, 1e-5, activation).unwrap();
            assert_eq!(found.dims(), dims);
            assert_close(&found, &expected, 1e-5);
        }
    }

    #[test]
    fn layer_norm_is_the_cpus() {
        let x = tensor(1, &[2, 9, 77]);
        let (weight, bias) = (numbers(77, 2), numbers(77, 3));
        let affine = norm::Affine { weight: &weight, bias: &bias, epsilon: 1e-5 };
        let mut expected = vec![f32::NAN; x.elem_count()];
        norm::layer_norm(&floats(&x), &affine, OutPtr::new(&mut expected));
        let norm = Norm::new(&place(DType::F32), [weight, bias]).unwrap();
        assert_close(&norm.layer(&x, 1e-5).unwrap(), &expected, 1e-5);
        let error = norm.layer(&tensor(1, &[2, 76]), 1e-5).unwrap_err().to_string();
        assert!(error.contains("[.., 77] belongs"), "{error}");
    }

    #[test]
    fn halves_are_summed_in_f32() {
        // 600² is more than f16 holds: summed in f16, all of this were zero.
        let x = tensor(1, &[1, 4, 4, 64]).affine(600.0, 0.0).unwrap();
        let learned = [vec![1.0; 64], vec![0.0; 64]];
        let norm = |dtype| {
            let norm = Norm::new(&place(dtype), learned.clone()).unwrap();
            norm.group(&x, 32, 1e-5, Activation::None).unwrap()
        };
        assert_eq!(norm(DType::F16).dtype(), DType::F16);
        assert_close(&norm(DType::F16), &floats(&norm(DType::F32)), 1e-3);
    }
}
