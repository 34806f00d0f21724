//! RRDBNet, the upscaler of ESRGAN (Wang et al., 2018, arXiv:1809.00219), as Real-ESRGAN lays it out
//! (Wang et al., 2021, arXiv:2107.10833): it enlarges four times; to enlarge less, it is shown an image
//! whose pixels were folded into channels before.

use crate::engine::{
    checkpoint::{Error, Weights},
    nn::{self, Activation, Conv2d, Tensor},
};

/// Of what a block says, so much is added to what it was told.
const RESIDUAL_SCALE: f32 = 0.2;
/// How much the network itself enlarges.
const ENLARGED: usize = 4;
const COLOURS: usize = 3;

pub struct RrdbNet {
    /// Pixels along one side that become one, with more channels: 1, 2 or 4.
    folded: usize,
    conv_first: Conv2d,
    body: Vec<[DenseBlock; 3]>,
    conv_body: Conv2d,
    conv_up1: Conv2d,
    conv_up2: Conv2d,
    conv_hr: Conv2d,
    conv_last: Conv2d,
}

/// Convolutions that each see all that those before them have said.
struct DenseBlock([Conv2d; 5]);

impl RrdbNet {
    pub fn load(w: &Weights<'_>) -> Result<Self, Error> {
        let first = w.at("conv_first");
        let dims = first.dims("weight")?;
        let channels = dims.get(1).copied().unwrap_or(0);
        let Some(folded) = [1, 2, 4].into_iter().find(|n| COLOURS * n * n == channels) else {
            return first.refuse("weight", "[.., 3 (for x4), 12 (x2) or 48 (x1), 3, 3]");
        };
        let conv_first = Conv2d::load(&first, channels, 3)?;
        let features = conv_first.out_channels();
        let blocks = w.at("body");
        let body = (0..blocks.count()).map(|i| {
            let block = blocks.at(&i.to_string());
            let dense = |name: &str| DenseBlock::load(&block.at(name), features);
            Ok([dense("rdb1")?, dense("rdb2")?, dense("rdb3")?])
        });
        let body = body.collect::<Result<_, Error>>()?;
        let conv = |name: &str, n: usize| conv(&w.at(name), features, n);
        Ok(Self {
            folded,
            conv_first,
            body,
            conv_body: conv("conv_body", features)?,
            conv_up1: conv("conv_up1", features)?,
            conv_up2: conv("conv_up2", features)?,
            conv_hr: conv("conv_hr", features)?,
            conv_last: conv("conv_last", COLOURS)?,
        })
    }

    /// How many times each side becomes longer: 4, 2 or 1.
    pub fn scale(&self) -> usize {
        ENLARGED / self.folded
    }

    /// What the sides of an image must be multiples of.
    pub fn multiple(&self) -> usize {
        self.folded
    }

    /// RGB in 0 ..= 1, `[b, h, w, 3]`, → the same enlarged, around 0 ..= 1, `[b, scale·h, scale·w, 3]`.
    pub fn forward(&self, image: &Tensor) -> nn::Result<Tensor> {
        let leaky = Activation::LeakyRelu;
        let first = self.conv_first.forward(&image.fold(self.folded)?)?;
        let mut x = first.clone();
        for block in &self.body {
            let mut inner = x.clone();
            for dense in block {
                inner = dense.forward(&inner)?;
            }
            x = x.add_scaled(&inner, RESIDUAL_SCALE)?;
        }
        x = self.conv_body.forward_add(&x, &first)?;
        for conv in [&self.conv_up1, &self.conv_up2] {
            let [_, h, w, _] = x.dims4()?;
            x = conv.forward_enlarged(&x, [2 * h, 2 * w], leaky)?;
        }
        x = self.conv_hr.forward_activated(&x, leaky)?;
        self.conv_last.forward(&x)
    }
}

impl DenseBlock {
    fn load(w: &Weights<'_>, features: usize) -> Result<Self, Error> {
        let growth = w.at("conv1").dims("weight")?[0];
        let grown =
            |i: usize| conv(&w.at(&format!("conv{}", i + 1)), features + i * growth, growth);
        let last = conv(&w.at("conv5"), features + 4 * growth, features)?;
        Ok(Self([grown(0)?, grown(1)?, grown(2)?, grown(3)?, last]))
    }

    fn forward(&self, x: &Tensor) -> nn::Result<Tensor> {
        let Self([grown @ .., last]) = self;
        let mut seen = x.clone();
        for conv in grown {
            let said = conv.forward_activated(&seen, Activation::LeakyRelu)?;
            seen = Tensor::cat(&[&seen, &said], 3)?;
        }
        x.add_scaled(&last.forward(&seen)?, RESIDUAL_SCALE)
    }
}

/// A 3×3 convolution that must have so many outputs.
fn conv(w: &Weights<'_>, channels: usize, n: usize) -> Result<Conv2d, Error> {
    let conv = Conv2d::load(w, channels, 3)?;
    if conv.out_channels() != n {
        w.refuse("weight", &format!("[{n}, {channels}, 3, 3]"))?;
    }
    Ok(conv)
}
