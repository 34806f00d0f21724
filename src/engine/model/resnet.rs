//! The residual block that UNet and VAE share (He et al., 2015; diffusers' `ResnetBlock2D`).

use crate::engine::{
    checkpoint::{Error, Weights},
    nn::{self, Activation, Conv2d, GroupNorm, Linear, Tensor},
};

pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    /// The UNet's: shifts the features by the timestep.
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Linear>,
}

impl ResnetBlock {
    /// `time_width` is the width of the time embedding, where there is one.
    pub fn load(
        w: &Weights<'_>,
        channels: usize,
        epsilon: f32,
        time_width: Option<usize>,
    ) -> Result<Self, Error> {
        let conv1 = Conv2d::load(&w.at("conv1"), channels, 3)?;
        let out = conv1.out_channels();
        let conv2 = Conv2d::load(&w.at("conv2"), out, 3)?;
        let time_emb_proj = time_width
            .map(|width| Linear::load_to(&w.at("time_emb_proj"), width, out))
            .transpose()?;
        let shortcut = w.at("conv_shortcut");
        let has_shortcut = out != channels || shortcut.exists();
        Ok(Self {
            norm1: GroupNorm::load(&w.at("norm1"), channels, epsilon, Activation::Silu)?,
            conv1,
            time_emb_proj,
            norm2: GroupNorm::load(&w.at("norm2"), out, epsilon, Activation::Silu)?,
            conv2,
            conv_shortcut: has_shortcut
                .then(|| Linear::load_to(&shortcut, channels, out))
                .transpose()?,
        })
    }

    pub fn out_channels(&self) -> usize {
        self.conv2.out_channels()
    }

    /// `[b, h, w, channels]` → `[b, h, w, out]`; `time` is silu(time embedding), `[b, time_width]`.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> nn::Result<Tensor> {
        let hidden = self.norm1.forward(x)?;
        let hidden = match (&self.time_emb_proj, time) {
            (Some(proj), Some(time)) => self.conv1.forward_shift(&hidden, &proj.forward(time)?)?,
            _ => self.conv1.forward(&hidden)?,
        };
        let hidden = self.norm2.forward(&hidden)?;
        match &self.conv_shortcut {
            Some(shortcut) => self.conv2.forward_add(&hidden, &shortcut.forward(x)?),
            None => self.conv2.forward_add(&hidden, x),
        }
    }
}
