//! The layers' weights and what is computed with them.

use tch::Tensor as Torch;

use super::{
    Array,
    array::{activated, sizes},
    weight::{On, Weight},
};
use crate::engine::{
    backend,
    checkpoint::{self, Held, Home, Weights},
    nn::{Activation, After, ConvShape, Result, Tensor},
};

type Load<T> = std::result::Result<T, checkpoint::Error>;

fn on(torch: backend::Torch, w: &Weights<'_>) -> On {
    On::new(torch, w.component())
}

/// On the device and as the layer's numbers are.
fn input(x: &Tensor, weight: &Torch) -> Result<Torch> {
    let x = x.to_torch(weight.device())?;
    Ok(x.tensor().f_to_kind(weight.kind())?)
}

fn finish(mut sums: Torch, after: After<'_>) -> Result<Torch> {
    Ok(match after {
        After::Activate(activation) => activated(sums, activation, true)?,
        After::Add(residual) => {
            let residual = residual.to_torch(sums.device())?;
            sums.f_add_(residual.tensor())?
        }
        After::Shift(shift) => {
            let shift = shift.to_torch(sums.device())?;
            let [images, n] = [0, 1].map(|dim| shift.dims()[dim] as i64);
            sums.f_add_(&shift.tensor().f_reshape([images, 1, 1, n])?)?
        }
        After::Geglu => {
            let half = sums.size().last().copied().unwrap_or(0) / 2;
            let gate = sums.f_narrow(-1, half, half)?;
            gate.f_gelu("none")?.f_mul_(&sums.f_narrow(-1, 0, half)?)?
        }
    })
}

/// `x·Wᵀ + b` over the last dimension.
pub struct Dense {
    weight: Weight,
    bias: Option<Weight>,
}

impl Held for Dense {
    fn bytes(&self) -> u64 {
        self.weight.bytes() + self.bias.as_ref().map_or(0, Held::bytes)
    }
}

impl Dense {
    pub fn moved(&self, to: Home) -> Load<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.moved(to)).transpose()?;
        Ok(Self { weight: self.weight.moved(to)?, bias })
    }

    pub fn load(
        torch: backend::Torch,
        parts: &[&Weights<'_>],
        [n, k]: [usize; 2],
        has_bias: bool,
    ) -> Load<Self> {
        let on = on(torch, parts[0]);
        let weight = Weight::load(on, parts, "weight", &[n, k])?;
        let bias = has_bias.then(|| Weight::load(on, parts, "bias", &[n])).transpose()?;
        Ok(Self { weight, bias })
    }

    pub fn forward(&self, x: &Tensor, after: After<'_>) -> Result<Array> {
        let weight = self.weight.get()?;
        let bias = self.bias.as_ref().map(Weight::get).transpose()?;
        let sums = input(x, weight)?.f_linear(weight, bias)?;
        Ok(finish(sums, after)?.into())
    }
}

/// The weights of a convolution.
pub struct Conv {
    weight: Weight,
    bias: Weight,
}

impl Held for Conv {
    fn bytes(&self) -> u64 {
        self.weight.bytes() + self.bias.bytes()
    }
}

impl Conv {
    pub fn moved(&self, to: Home) -> Load<Self> {
        Ok(Self { weight: self.weight.moved(to)?, bias: self.bias.moved(to)? })
    }

    pub fn load(torch: backend::Torch, w: &Weights<'_>, dims: [usize; 4]) -> Load<Self> {
        let on = on(torch, w);
        let weight = Weight::load(on, &[w], "weight", &dims)?;
        // torch's `channels_last`.
        let weight = weight.turned(|weight| {
            weight.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])
        })?;
        Ok(Self { weight, bias: Weight::load(on, &[w], "bias", &dims[..1])? })
    }

    /// `[b, h, w, c]` → `[b, h', w', n]`
    pub fn forward(&self, x: &Tensor, shape: &ConvShape, after: After<'_>) -> Result<Array> {
        let ConvShape { stride, padding: [before, behind], seen, .. } = shape;
        let weight = self.weight.get()?;
        let [_, h, w, _] = x.dims4()?;
        let mut x = input(x, weight)?.f_permute([0, 3, 1, 2])?;
        if *seen != [h, w] {
            x = x.f_upsample_nearest2d(sizes(seen), None, None)?;
        }
        let mut padding = *before as i64;
        if before != behind {
            let [before, behind] = [before, behind].map(|zeros| *zeros as i64);
            x = x.f_constant_pad_nd([before, behind, before, behind])?;
            padding = 0;
        }
        let (stride, bias) = (*stride as i64, Some(self.bias.get()?));
        let sums = x.f_conv2d(weight, bias, [stride; 2], [padding; 2], [1, 1], 1)?;
        Ok(finish(sums.f_permute([0, 2, 3, 1])?, after)?.into())
    }
}

/// The learned part of a normalisation.
pub struct Norm {
    weight: Weight,
    bias: Weight,
    channels: usize,
}

impl Held for Norm {
    fn bytes(&self) -> u64 {
        self.weight.bytes() + self.bias.bytes()
    }
}

impl Norm {
    pub fn moved(&self, to: Home) -> Load<Self> {
        Ok(Self { weight: self.weight.moved(to)?, bias: self.bias.moved(to)?, ..*self })
    }

    /// With fewer numbers in a group than this, `channels_last` is not asked for: libtorch takes a
    /// variance for the difference of two means then, which may be nearly equal where there are few.
    const FEW: i64 = 256;

    pub fn load(torch: backend::Torch, w: &Weights<'_>, channels: usize) -> Load<Self> {
        let on = on(torch, w);
        let [weight, bias] =
            ["weight", "bias"].map(|name| Weight::load(on, &[w], name, &[channels]));
        Ok(Self { weight: weight?, bias: bias?, channels })
    }

    /// `[b, .., c]`
    pub fn group(
        &self,
        x: &Tensor,
        groups: usize,
        epsilon: f32,
        activation: Activation,
    ) -> Result<Array> {
        let (weight, bias) = (self.weight.get()?, self.bias.get()?);
        let dims = sizes(x.dims());
        let x = input(x, weight)?;
        let [images, channels] = [dims[0], self.channels as i64];
        let normal = |x: Torch| {
            x.f_group_norm(groups as i64, Some(weight), Some(bias), epsilon.into(), true)
        };
        let numbers = x.numel() as i64 / (images * groups as i64).max(1);
        let normal = if numbers < Self::FEW {
            let x = x.f_reshape([images, -1, channels])?.f_transpose(1, 2)?.f_contiguous()?;
            normal(x)?.f_transpose(1, 2)?
        } else {
            let x = x.f_reshape([images, dims[1], -1, channels])?.f_permute([0, 3, 1, 2])?;
            normal(x)?.f_permute([0, 2, 3, 1])?
        };
        Ok(activated(normal, activation, true)?.f_reshape(dims)?.into())
    }

    /// Over the last dimension.
    pub fn layer(&self, x: &Tensor, epsilon: f32) -> Result<Array> {
        let (weight, bias) = (self.weight.get()?, self.bias.get()?);
        let (channels, epsilon) = (self.channels as i64, f64::from(epsilon));
        let x = input(x, weight)?;
        Ok(x.f_layer_norm([channels], Some(weight), Some(bias), epsilon, true)?.into())
    }
}

/// A table of vectors.
pub struct Rows(Weight);

impl Held for Rows {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}

impl Rows {
    pub fn moved(&self, to: Home) -> Load<Self> {
        Ok(Self(self.0.moved(to)?))
    }

    pub fn load(torch: backend::Torch, w: &Weights<'_>, dims: [usize; 2]) -> Load<Self> {
        Ok(Self(Weight::load(on(torch, w), &[w], "weight", &dims)?))
    }

    /// `[len, width]`
    pub fn at(&self, indices: &[u32]) -> Result<Array> {
        let weight = self.0.get()?;
        let indices: Vec<_> = indices.iter().map(|index| i64::from(*index)).collect();
        let indices = Torch::f_from_slice(&indices)?.f_to(weight.device())?;
        Ok(weight.f_index_select(0, &indices)?.into())
    }
}
