//! The autoencoder, the same in all families.

use super::{BRANCH, Module, PLAIN};

pub struct Vae {
    pub image_channels: usize,
    pub latent_channels: usize,
    pub channels: [usize; 4],
    pub layers: usize,
}

impl Vae {
    pub fn build(&self, m: &mut Module) {
        // Mean and variance of each latent channel.
        let moments = 2 * self.latent_channels;
        self.encoder(&mut m.sub("encoder"), moments);
        self.decoder(&mut m.sub("decoder"));
        m.conv("quant_conv", moments, moments, 1, PLAIN);
        m.conv("post_quant_conv", self.latent_channels, self.latent_channels, 1, PLAIN);
    }

    fn encoder(&self, m: &mut Module, moments: usize) {
        let [first, .., last] = self.channels;
        m.conv("conv_in", self.image_channels, first, 3, PLAIN);
        let mut input = first;
        for (level, &channels) in self.channels.iter().enumerate() {
            let down = &mut m.sub(&format!("down.{level}"));
            for layer in 0..self.layers {
                vae_resnet(&mut down.sub(&format!("block.{layer}")), input, channels);
                input = channels;
            }
            if level + 1 < self.channels.len() {
                down.conv("downsample.conv", channels, channels, 3, PLAIN);
            }
        }
        vae_middle(&mut m.sub("mid"), last);
        m.norm("norm_out", last);
        m.conv("conv_out", last, moments, 3, PLAIN);
    }

    fn decoder(&self, m: &mut Module) {
        let [first, .., last] = self.channels;
        m.conv("conv_in", self.latent_channels, last, 3, PLAIN);
        vae_middle(&mut m.sub("mid"), last);
        let mut input = last;
        for (level, &channels) in self.channels.iter().enumerate().rev() {
            let up = &mut m.sub(&format!("up.{level}"));
            for layer in 0..=self.layers {
                vae_resnet(&mut up.sub(&format!("block.{layer}")), input, channels);
                input = channels;
            }
            if level > 0 {
                up.conv("upsample.conv", channels, channels, 3, PLAIN);
            }
        }
        m.norm("norm_out", first);
        m.conv("conv_out", first, self.image_channels, 3, PLAIN);
    }
}

fn vae_resnet(m: &mut Module, input: usize, output: usize) {
    m.norm("norm1", input);
    m.conv("conv1", input, output, 3, PLAIN);
    m.norm("norm2", output);
    m.conv("conv2", output, output, 3, BRANCH);
    if input != output {
        m.conv("nin_shortcut", input, output, 1, PLAIN);
    }
}

fn vae_middle(m: &mut Module, channels: usize) {
    vae_resnet(&mut m.sub("block_1"), channels, channels);
    let attention = &mut m.sub("attn_1");
    attention.norm("norm", channels);
    for name in ["q", "k", "v"] {
        attention.conv(name, channels, channels, 1, PLAIN);
    }
    attention.conv("proj_out", channels, channels, 1, BRANCH);
    vae_resnet(&mut m.sub("block_2"), channels, channels);
}
