//! Layers and verbs by candle's own operations, for the devices that candle has kernels for.
//!
//! They mean what the kernels in `cpu` mean: feature maps are channels last, matrices `[n, k]`. Weights
//! are put on the device once, in the type that is computed in; inputs are cast to it. Sums that must be
//! exact (normalisation, softmax) are in f32 whatever that type is. `layers` loads them from a checkpoint.

mod array;
pub(crate) mod attention;
pub(crate) mod conv;
mod layers;
pub(crate) mod norm;
mod open;

pub(super) use array::{Array, attention as attend};
pub(super) use layers::{Conv, Loaded, Norm, Table, held_bytes};
pub(super) use open::open;

use candle_core::{D, DType, Device, Result, Tensor};

use super::Activation;

/// Where it is computed, and in which type: f32, bf16 or f16.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub device: Device,
    pub dtype: DType,
}

impl Place {
    /// Numbers that stay there: weights.
    pub fn put(&self, numbers: Vec<f32>, dims: &[usize]) -> Result<Tensor> {
        // Cast here: half as much has to travel.
        Tensor::from_vec(numbers, dims, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)
    }
}

/// `x·Wᵀ + b` over the last dimension.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    /// `[n, k]`
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Dense {
    /// `weight` is `[n, k]`, `bias` `[n]`.
    pub fn new(place: &Place, weight: Vec<f32>, bias: Option<Vec<f32>>, k: usize) -> Result<Self> {
        let n = weight.len() / k.max(1);
        let bias = bias.map(|bias| place.put(bias, &[n])).transpose()?;
        Ok(Self { weight: place.put(weight, &[n, k])?, bias })
    }

    /// `[.., k]` → `[.., n]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, k) = self.weight.dims2()?;
        let mut dims = x.dims().to_vec();
        if dims.pop() != Some(k) {
            candle_core::bail!("a tensor {:?} where [.., {k}] belongs", x.dims());
        }
        // One product of two matrices, whatever the dimensions before.
        let rows = x.to_dtype(self.weight.dtype())?.contiguous()?.reshape(((), k))?;
        let product = rows.matmul(&self.weight.t()?)?;
        dims.push(n);
        let product = product.reshape(dims)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    /// `forward(x) + residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward(x)? + residual.to_dtype(self.weight.dtype())?
    }

    /// The first half of `forward(x)`, times GELU of the second (Shazeer, 2020): `[.., k]` → `[.., n/2]`
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.forward(x)?;
        let half = both.dim(D::Minus1)? / 2;
        let gate = both.narrow(D::Minus1, half, half)?.contiguous()?.gelu_erf()?;
        both.narrow(D::Minus1, 0, half)? * gate
    }
}

/// A table of vectors that are looked up by index.
#[derive(Debug, Clone)]
pub(crate) struct Embedding(Tensor);

impl Embedding {
    /// `rows` is `[count, width]`.
    pub fn new(place: &Place, rows: Vec<f32>, width: usize) -> Result<Self> {
        let count = rows.len() / width.max(1);
        Ok(Self(place.put(rows, &[count, width])?))
    }

    /// `[indices, width]`
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        self.0.index_select(&Tensor::new(indices, self.0.device())?, 0)
    }
}

/// The activation of every element.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(x.clone()),
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        // x·sigmoid(a·x) is silu(a·x)/a.
        Activation::QuickGelu => x.affine(1.702, 0.0)?.silu()?.affine(1.0 / 1.702, 0.0),
        Activation::LeakyRelu => x.maximum(&x.affine(0.2, 0.0)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::{
        self,
        cpu::{
            OutPtr,
            gemm::{self, Finish, Product},
            packed::PackedWeights,
        },
    };

    /// Numbers in -1 .. 1 that look random and are the same every time.
    pub(super) fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mix = |i: u32| (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        let mixed = (0..len as u32).map(|i| mix(mix(i) ^ (mix(i) >> 13)) >> 8);
        mixed.map(|x| x as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    pub(super) fn place(dtype: DType) -> Place {
        Place { device: Device::Cpu, dtype }
    }

    pub(super) fn tensor(seed: u32, dims: &[usize]) -> Tensor {
        let numbers = numbers(dims.iter().product(), seed);
        Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap()
    }

    pub(super) fn floats(x: &Tensor) -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Within `tolerance` of the largest number.
    pub(super) fn assert_close(found: &Tensor, expected: &[f32], tolerance: f32) {
        let found = floats(found);
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let wrong = (found - expected).abs();
            assert!(wrong <= tolerance * largest, "{i}: {found} is not {expected}");
        }
    }

    /// What the CPU's kernels make of it, `columns` wide.
    fn product(
        x: &[f32],
        weights: &PackedWeights,
        bias: Option<&[f32]>,
        finish: Finish<'_>,
        columns: usize,
    ) -> Vec<f32> {
        let (k, count) = (weights.k, x.len() / weights.k);
        let mut out = vec![f32::NAN; count * columns];
        let rows = gemm::Dense::new(x, k, count, k);
        let (images, rows_per_image, out_stride) = (1, count, columns);
        Product { rows, images, rows_per_image, weights, bias, finish, columns, out_stride }
            .run(OutPtr::new(&mut out));
        out
    }

    #[test]
    fn a_dense_layer_is_the_cpus() {
        let (k, n) = (37, 22);
        let (x, residual) = (tensor(1, &[2, 5, k]), tensor(2, &[2, 5, n]));
        let (weight, bias) = (numbers(n * k, 3), numbers(n, 4));
        let packed = PackedWeights::pack(1, k, n, |n, _, d| weight[n * k + d]);
        let place = place(DType::F32);
        let plain = Dense::new(&place, weight.clone(), None, k).unwrap();
        let expected = product(&floats(&x), &packed, None, Finish::Store, n);
        assert_close(&plain.forward(&x).unwrap(), &expected, 1e-5);
        let dense = Dense::new(&place, weight, Some(bias.clone()), k).unwrap();
        let expected =
            product(&floats(&x), &packed, Some(&bias), Finish::Add(&floats(&residual)), n);
        let found = dense.forward_add(&x, &residual).unwrap();
        assert_eq!(found.dims(), [2, 5, n]);
        assert_close(&found, &expected, 1e-5);
        let error = dense.forward(&tensor(1, &[2, n])).unwrap_err().to_string();
        assert!(error.contains("[.., 37] belongs"), "{error}");
    }

    #[test]
    fn geglu_is_the_cpus() {
        let (k, half) = (20, 13);
        let x = tensor(1, &[2, 3, k]).affine(4.0, 0.0).unwrap();
        let (weight, bias) = (numbers(2 * half * k, 2), numbers(2 * half, 3));
        let (packed, packed_bias) = PackedWeights::pack_geglu(k, half, &weight, &bias);
        let expected = product(&floats(&x), &packed, Some(&packed_bias), Finish::Geglu, half);
        let dense = Dense::new(&place(DType::F32), weight, Some(bias), k).unwrap();
        let found = dense.forward_geglu(&x).unwrap();
        assert_eq!(found.dims(), [2, 3, half]);
        assert_close(&found, &expected, 1e-5);
    }

    #[test]
    fn inputs_are_cast_to_the_weights_type() {
        for (dtype, tolerance) in [(DType::BF16, 1e-2), (DType::F16, 2e-3)] {
            let (x, weight, bias) = (tensor(1, &[4, 16]), numbers(8 * 16, 2), numbers(8, 3));
            let exact =
                Dense::new(&place(DType::F32), weight.clone(), Some(bias.clone()), 16).unwrap();
            let exact = floats(&exact.forward(&x).unwrap());
            let dense = Dense::new(&place(dtype), weight, Some(bias), 16).unwrap();
            let found = dense.forward(&x).unwrap();
            assert_eq!(found.dtype(), dtype);
            assert_close(&found, &exact, tolerance);
            assert_ne!(floats(&found), exact, "it was computed in f32");
        }
    }

    #[test]
    fn activations_are_the_cpus() {
        let x = tensor(1, &[3, 1000]).affine(8.0, 0.0).unwrap();
        let ours = nn::Tensor::from_vec(floats(&x), &[3, 1000]).unwrap();
        use Activation::{Gelu, LeakyRelu, None, QuickGelu, Silu};
        for activation in [None, Silu, Gelu, QuickGelu, LeakyRelu] {
            let expected = nn::activate(&ours, activation).unwrap().to_vec().unwrap();
            assert_close(&activate(&x, activation).unwrap(), &expected, 1e-6);
        }
    }

    #[test]
    fn rows_are_looked_up() {
        let table = numbers(10 * 4, 1);
        let embedding = Embedding::new(&place(DType::F32), table.clone(), 4).unwrap();
        let found = embedding.rows(&[7, 0, 7]).unwrap();
        assert_eq!(found.dims(), [3, 4]);
        assert_eq!(floats(&found), [&table[28..32], &table[..4], &table[28..32]].concat());
    }
}
