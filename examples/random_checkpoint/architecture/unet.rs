//! The UNet.

use super::{BRANCH, Module, PLAIN};

#[derive(Clone, Copy)]
pub struct UNet {
    pub latent_channels: usize,
    /// Of each level, from the finest.
    pub channels: &'static [usize],
    /// Transformer blocks behind each resnet of a level.
    pub depths: &'static [usize],
    pub middle_depth: usize,
    /// Resnets of a level on the way down.
    pub layers: usize,
    /// Features of a token of text.
    pub context: usize,
    pub projection: Projection,
    /// Features of what is known of the whole image, added to the timestep.
    pub label: Option<usize>,
}

/// What leads into a transformer and out of it.
#[derive(Clone, Copy)]
pub enum Projection {
    /// Of 1×1.
    Convolution,
    Linear,
}

impl UNet {
    pub fn build(&self, m: &mut Module) {
        let (first, last) = (self.channels[0], self.last_channels());
        let time = 4 * first;
        m.linear("time_embed.0", first, time, PLAIN);
        m.linear("time_embed.2", time, time, PLAIN);
        if let Some(label) = self.label {
            m.linear("label_emb.0.0", label, time, PLAIN);
            m.linear("label_emb.0.2", time, time, PLAIN);
        }
        m.conv("input_blocks.0.0", self.latent_channels, first, 3, PLAIN);
        let skips = self.down(m, time);
        unet_resnet(&mut m.sub("middle_block.0"), last, last, time);
        self.transformer(&mut m.sub("middle_block.1"), last, self.middle_depth);
        unet_resnet(&mut m.sub("middle_block.2"), last, last, time);
        self.up(m, time, skips);
        m.norm("out.0", first);
        m.conv("out.2", first, self.latent_channels, 3, PLAIN);
    }

    /// Returns the channels of each block's output, which the way up takes again from the end.
    fn down(&self, m: &mut Module, time: usize) -> Vec<usize> {
        let mut skips = vec![self.channels[0]];
        let mut input = self.channels[0];
        for (level, &channels) in self.channels.iter().enumerate() {
            for _ in 0..self.layers {
                let block = &mut m.sub(&format!("input_blocks.{}", skips.len()));
                unet_resnet(&mut block.sub("0"), input, channels, time);
                if self.depths[level] > 0 {
                    self.transformer(&mut block.sub("1"), channels, self.depths[level]);
                }
                input = channels;
                skips.push(channels);
            }
            if level + 1 < self.channels.len() {
                let name = format!("input_blocks.{}.0.op", skips.len());
                m.conv(&name, channels, channels, 3, PLAIN);
                skips.push(channels);
            }
        }
        skips
    }

    fn up(&self, m: &mut Module, time: usize, mut skips: Vec<usize>) {
        let mut input = self.last_channels();
        let mut number = 0;
        for (level, &channels) in self.channels.iter().enumerate().rev() {
            for layer in 0..=self.layers {
                let block = &mut m.sub(&format!("output_blocks.{number}"));
                let skip = skips.pop().expect("one block more goes up on each level than down");
                unet_resnet(&mut block.sub("0"), input + skip, channels, time);
                if self.depths[level] > 0 {
                    self.transformer(&mut block.sub("1"), channels, self.depths[level]);
                }
                if layer == self.layers && level > 0 {
                    let place = 1 + usize::from(self.depths[level] > 0);
                    block.conv(&format!("{place}.conv"), channels, channels, 3, PLAIN);
                }
                input = channels;
                number += 1;
            }
        }
    }

    fn transformer(&self, m: &mut Module, channels: usize, depth: usize) {
        m.norm("norm", channels);
        let projection = |m: &mut Module, name, gain| match self.projection {
            Projection::Convolution => m.conv(name, channels, channels, 1, gain),
            Projection::Linear => m.linear(name, channels, channels, gain),
        };
        projection(m, "proj_in", PLAIN);
        projection(m, "proj_out", BRANCH);
        for number in 0..depth {
            let block = &mut m.sub(&format!("transformer_blocks.{number}"));
            transformer_block(block, channels, self.context);
        }
    }

    fn last_channels(&self) -> usize {
        self.channels[self.channels.len() - 1]
    }
}

fn unet_resnet(m: &mut Module, input: usize, output: usize, time: usize) {
    m.norm("in_layers.0", input);
    m.conv("in_layers.2", input, output, 3, PLAIN);
    m.linear("emb_layers.1", time, output, PLAIN);
    m.norm("out_layers.0", output);
    m.conv("out_layers.3", output, output, 3, BRANCH);
    if input != output {
        m.conv("skip_connection", input, output, 1, PLAIN);
    }
}

fn transformer_block(block: &mut Module, channels: usize, context: usize) {
    for (number, (name, context)) in [("attn1", channels), ("attn2", context)].iter().enumerate() {
        block.norm(&format!("norm{}", number + 1), channels);
        let attention = &mut block.sub(name);
        attention.linear_without_bias("to_q", channels, channels);
        attention.linear_without_bias("to_k", *context, channels);
        attention.linear_without_bias("to_v", *context, channels);
        attention.linear("to_out.0", channels, channels, BRANCH);
    }
    block.norm("norm3", channels);
    // GEGLU: one half of the inner features is the gate of the other.
    block.linear("ff.net.0.proj", channels, 2 * 4 * channels, PLAIN);
    block.linear("ff.net.2", 4 * channels, channels, BRANCH);
}
