//! The autoencoder (Rombach et al., 2022; diffusers' `AutoencoderKL`): images to latents and back.

use super::resnet::ResnetBlock;
use crate::engine::{
    checkpoint::{Error, Weights},
    nn::{self, Activation, Columns, Conv2d, GroupNorm, Linear, Tensor},
};

const EPSILON: f32 = 1e-6;

pub struct Vae {
    decoder: Decoder,
    /// Some files have none; it is needed only where an image is given.
    encoder: Option<Encoder>,
}

struct Decoder {
    post_quant: Linear,
    conv_in: Conv2d,
    mid: Middle,
    up: Vec<Block>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

struct Encoder {
    conv_in: Conv2d,
    down: Vec<Block>,
    mid: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant: Linear,
    latent_channels: usize,
}

/// Residual blocks, and a convolution that changes the size.
struct Block {
    resnets: Vec<ResnetBlock>,
    resample: Option<Conv2d>,
}

struct Middle {
    first: ResnetBlock,
    attention: Attention,
    last: ResnetBlock,
}

/// Attention of all pixels to all pixels, with one head.
struct Attention {
    norm: GroupNorm,
    qkv: Linear,
    out: Linear,
    channels: usize,
}

/// The distribution of an image's latents, unscaled: `[b, h/scale, w/scale, 4]` each.
pub struct Moments {
    pub mean: Tensor,
    /// Standard deviation.
    pub deviation: Tensor,
}

impl Vae {
    pub fn load(w: &Weights<'_>, latent_channels: usize) -> Result<Self, Error> {
        let decoder = Decoder::load(w, latent_channels)?;
        let encoder =
            w.at("encoder").exists().then(|| Encoder::load(w, latent_channels)).transpose()?;
        Ok(Self { decoder, encoder })
    }

    /// Pixels of the image for each of the latents, along one side.
    pub fn scale(&self) -> usize {
        1 << self.decoder.up.iter().filter(|block| block.resample.is_some()).count()
    }

    /// Unscaled latents `[b, h, w, 4]` → RGB around -1 ..= 1, `[b, scale·h, scale·w, 3]`.
    pub fn decode(&self, latents: &Tensor) -> nn::Result<Tensor> {
        self.decoder.forward(latents)
    }

    /// RGB in -1 ..= 1, `[b, h, w, 3]`, to the distribution of its latents; `None` without an
    /// encoder.
    pub fn encode(&self, image: &Tensor) -> nn::Result<Option<Moments>> {
        self.encoder.as_ref().map(|encoder| encoder.forward(image)).transpose()
    }
}

impl Decoder {
    fn load(w: &Weights<'_>, latent_channels: usize) -> Result<Self, Error> {
        let post_quant =
            Linear::load_to(&w.at("post_quant_conv"), latent_channels, latent_channels)?;
        let w = w.at("decoder");
        let conv_in = Conv2d::load(&w.at("conv_in"), latent_channels, 3)?;
        let mut channels = conv_in.out_channels();
        let mid = Middle::load(&w.at("mid_block"), channels)?;
        let blocks = w.at("up_blocks");
        let mut up = Vec::new();
        let count = blocks.count().max(1);
        for i in 0..count {
            let w = blocks.at(&i.to_string());
            let resnets = load_resnets(&w, &mut channels)?;
            // All blocks but the last enlarge what they hand on.
            let conv = w.at("upsamplers.0.conv");
            let resample = (i + 1 < count).then(|| Conv2d::load(&conv, channels, 3)).transpose()?;
            up.push(Block { resnets, resample });
        }
        let conv_out = Conv2d::load(&w.at("conv_out"), channels, 3)?;
        if conv_out.out_channels() != 3 {
            w.at("conv_out").refuse("weight", &format!("[3, {channels}, 3, 3]"))?;
        }
        let norm_out =
            GroupNorm::load(&w.at("conv_norm_out"), channels, EPSILON, Activation::Silu)?;
        Ok(Self { post_quant, conv_in, mid, up, norm_out, conv_out })
    }

    fn forward(&self, latents: &Tensor) -> nn::Result<Tensor> {
        let mut x = self.conv_in.forward(&self.post_quant.forward(latents)?)?;
        x = self.mid.forward(&x)?;
        for block in &self.up {
            for resnet in &block.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(upsample) = &block.resample {
                let [_, h, w, _] = x.dims4()?;
                x = upsample.forward_enlarged(&x, [2 * h, 2 * w], Activation::None)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x)?)
    }
}

impl Encoder {
    fn load(w: &Weights<'_>, latent_channels: usize) -> Result<Self, Error> {
        let quant = Linear::load_to(&w.at("quant_conv"), 2 * latent_channels, 2 * latent_channels)?;
        let w = w.at("encoder");
        let conv_in = Conv2d::load(&w.at("conv_in"), 3, 3)?;
        let mut channels = conv_in.out_channels();
        let blocks = w.at("down_blocks");
        let mut down = Vec::new();
        let count = blocks.count().max(1);
        for i in 0..count {
            let w = blocks.at(&i.to_string());
            let resnets = load_resnets(&w, &mut channels)?;
            let conv = w.at("downsamplers.0.conv");
            let load = || Conv2d::load_stride2(&conv, channels, [0, 1]);
            let resample = (i + 1 < count).then(load).transpose()?;
            down.push(Block { resnets, resample });
        }
        let mid = Middle::load(&w.at("mid_block"), channels)?;
        let conv_out = Conv2d::load(&w.at("conv_out"), channels, 3)?;
        if conv_out.out_channels() != 2 * latent_channels {
            let expected = format!("[{}, {channels}, 3, 3]", 2 * latent_channels);
            w.at("conv_out").refuse("weight", &expected)?;
        }
        let norm_out =
            GroupNorm::load(&w.at("conv_norm_out"), channels, EPSILON, Activation::Silu)?;
        Ok(Self { conv_in, down, mid, norm_out, conv_out, quant, latent_channels })
    }

    fn forward(&self, image: &Tensor) -> nn::Result<Moments> {
        let mut x = self.conv_in.forward(image)?;
        for block in &self.down {
            for resnet in &block.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(downsample) = &block.resample {
                x = downsample.forward(&x)?;
            }
        }
        x = self.conv_out.forward(&self.norm_out.forward(&self.mid.forward(&x)?)?)?;
        let moments = self.quant.forward(&x)?;
        let mean = moments.narrow(3, 0, self.latent_channels)?;
        let log_variance = moments.narrow(3, self.latent_channels, self.latent_channels)?;
        let log_variance = log_variance.to_vec()?.into_iter();
        let deviation = log_variance.map(|v| (0.5 * v.clamp(-30.0, 20.0)).exp()).collect();
        let deviation = Tensor::from_vec(deviation, mean.dims())?;
        Ok(Moments { mean, deviation })
    }
}

fn load_resnets(w: &Weights<'_>, channels: &mut usize) -> Result<Vec<ResnetBlock>, Error> {
    let mut resnets = Vec::new();
    for i in 0..w.at("resnets").count().max(1) {
        let resnet = w.at(&format!("resnets.{i}"));
        let resnet = ResnetBlock::load(&resnet, *channels, EPSILON, None)?;
        *channels = resnet.out_channels();
        resnets.push(resnet);
    }
    Ok(resnets)
}

impl Middle {
    fn load(w: &Weights<'_>, channels: usize) -> Result<Self, Error> {
        let resnet = |name: &str| ResnetBlock::load(&w.at(name), channels, EPSILON, None);
        Ok(Self {
            first: resnet("resnets.0")?,
            attention: Attention::load(&w.at("attentions.0"), channels)?,
            last: resnet("resnets.1")?,
        })
    }

    fn forward(&self, x: &Tensor) -> nn::Result<Tensor> {
        let x = self.attention.forward(&self.first.forward(x, None)?)?;
        self.last.forward(&x, None)
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
