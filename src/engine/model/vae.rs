//! The decoder of the autoencoder (Rombach et al., 2022; diffusers' `AutoencoderKL`).

use super::resnet::ResnetBlock;
use crate::engine::{
    checkpoint::{Error, Weights},
    nn::{self, Activation, Columns, Conv2d, GroupNorm, Linear, Tensor},
};

const EPSILON: f32 = 1e-6;

pub struct VaeDecoder {
    post_quant: Linear,
    conv_in: Conv2d,
    mid_first: ResnetBlock,
    mid_attention: Attention,
    mid_last: ResnetBlock,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsample: Option<Conv2d>,
}

/// Attention of all pixels to all pixels, with one head.
struct Attention {
    norm: GroupNorm,
    qkv: Linear,
    out: Linear,
    channels: usize,
}

impl VaeDecoder {
    pub fn load(w: &Weights<'_>, latent_channels: usize) -> Result<Self, Error> {
        let post_quant =
            Linear::load_to(&w.at("post_quant_conv"), latent_channels, latent_channels)?;
        let w = w.at("decoder");
        let conv_in = Conv2d::load(&w.at("conv_in"), latent_channels, 3)?;
        let mut channels = conv_in.out_channels();
        let resnet = |name: &str, channels| ResnetBlock::load(&w.at(name), channels, EPSILON, None);
        let mid_first = resnet("mid_block.resnets.0", channels)?;
        let mid_attention = Attention::load(&w.at("mid_block.attentions.0"), channels)?;
        let mid_last = resnet("mid_block.resnets.1", channels)?;
        let blocks = w.at("up_blocks");
        let mut up = Vec::new();
        let count = blocks.count().max(1);
        for i in 0..count {
            up.push(UpBlock::load(&blocks.at(&i.to_string()), &mut channels, i + 1 == count)?);
        }
        let conv_out = Conv2d::load(&w.at("conv_out"), channels, 3)?;
        if conv_out.out_channels() != 3 {
            w.at("conv_out").refuse("weight", &format!("[3, {channels}, 3, 3]"))?;
        }
        Ok(Self {
            post_quant,
            conv_in,
            mid_first,
            mid_attention,
            mid_last,
            up,
            norm_out: GroupNorm::load(&w.at("conv_norm_out"), channels, EPSILON, Activation::Silu)?,
            conv_out,
        })
    }

    /// Pixels of the image for each of the latents, along one side.
    pub fn scale(&self) -> usize {
        1 << self.up.iter().filter(|block| block.upsample.is_some()).count()
    }

    /// Unscaled latents `[b, h, w, 4]` → RGB around -1 ..= 1, `[b, scale·h, scale·w, 3]`.
    pub fn decode(&self, latents: &Tensor) -> nn::Result<Tensor> {
        let mut x = self.conv_in.forward(&self.post_quant.forward(latents)?)?;
        x = self.mid_first.forward(&x, None)?;
        x = self.mid_attention.forward(&x)?;
        x = self.mid_last.forward(&x, None)?;
        for block in &self.up {
            for resnet in &block.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(upsample) = &block.upsample {
                let [_, h, w, _] = x.dims4()?;
                x = upsample.forward_enlarged(&x, [2 * h, 2 * w])?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x)?)
    }

    pub fn bytes(&self) -> usize {
        let up = self.up.iter().map(|block| {
            let resnets: usize = block.resnets.iter().map(ResnetBlock::bytes).sum();
            resnets + block.upsample.as_ref().map_or(0, Conv2d::bytes)
        });
        let mid = self.mid_first.bytes() + self.mid_last.bytes();
        let attention = self.mid_attention.qkv.bytes() + self.mid_attention.out.bytes();
        let ends = self.post_quant.bytes() + self.conv_in.bytes() + self.conv_out.bytes();
        ends + mid + attention + up.sum::<usize>()
    }
}

impl UpBlock {
    /// All blocks but the last enlarge what they hand on.
    fn load(w: &Weights<'_>, channels: &mut usize, is_last: bool) -> Result<Self, Error> {
        let mut resnets = Vec::new();
        for i in 0..w.at("resnets").count().max(1) {
            let resnet = w.at(&format!("resnets.{i}"));
            let resnet = ResnetBlock::load(&resnet, *channels, EPSILON, None)?;
            *channels = resnet.out_channels();
            resnets.push(resnet);
        }
        let conv = w.at("upsamplers.0.conv");
        let upsample = (!is_last).then(|| Conv2d::load(&conv, *channels, 3)).transpose()?;
        Ok(Self { resnets, upsample })
    }
}

impl Attention {
    fn load(w: &Weights<'_>, channels: usize) -> Result<Self, Error> {
        let [q, k, v] = ["to_q", "to_k", "to_v"].map(|name| w.at(name));
        Ok(Self {
            norm: GroupNorm::load(&w.at("group_norm"), channels, EPSILON, Activation::None)?,
            qkv: Linear::stack(&[&q, &k, &v], channels, channels)?,
            out: Linear::load_to(&w.at("to_out.0"), channels, channels)?,
            channels,
        })
    }

    fn forward(&self, x: &Tensor) -> nn::Result<Tensor> {
        let [b, h, w, c] = x.dims4()?;
        let tokens = self.norm.forward(x)?.reshape(&[b, h * w, c])?;
        let qkv = self.qkv.forward(&tokens)?;
        let parts = [0, 1, 2].map(|i| Columns { tensor: &qkv, first: i * self.channels });
        let attended = nn::attention(parts, 1, self.channels, false)?;
        self.out.forward_add(&attended, &x.reshape(&[b, h * w, c])?)?.reshape(&[b, h, w, c])
    }
}
