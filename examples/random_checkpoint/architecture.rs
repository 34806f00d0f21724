//! Which tensors an original Stable Diffusion 1.5 file holds, and how wide their numbers spread.
//!
//! Knows nothing of files or random numbers. Names and shapes follow from the few numbers of
//! [`stable_diffusion_1_5`], by the rules that the original code builds its modules by.

/// A tensor by its name in the file.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub fill: Fill,
}

/// What a tensor holds.
#[derive(Clone, Copy)]
pub enum Fill {
    /// Float16.
    Normal { mean: f32, std: f32 },
    /// 0, 1, 2 … as 64-bit integers.
    Positions,
}

/// Keeps outputs as wide as inputs.
const PLAIN: f32 = 1.0;
/// For the last layer of a branch that is added to its own input: keeps sums from growing.
const BRANCH: f32 = 0.3;

/// All tensors of the original file, those of training apart: 1,131.
pub fn stable_diffusion_1_5() -> Vec<Tensor> {
    let mut tensors = Vec::new();
    let mut file = Module { prefix: String::new(), tensors: &mut tensors };
    UNet {
        latent_channels: 4,
        channels: [320, 640, 1280, 1280],
        transformers: [true, true, true, false],
        layers: 2,
        context: 768,
    }
    .build(&mut file.sub("model.diffusion_model"));
    Vae { image_channels: 3, latent_channels: 4, channels: [128, 256, 512, 512], layers: 2 }
        .build(&mut file.sub("first_stage_model"));
    TextEncoder { vocabulary: 49_408, positions: 77, width: 768, layers: 12 }
        .build(&mut file.sub("cond_stage_model.transformer.text_model"));
    tensors
}

struct UNet {
    latent_channels: usize,
    channels: [usize; 4],
    transformers: [bool; 4],
    layers: usize,
    context: usize,
}

impl UNet {
    fn build(&self, m: &mut Module) {
        let [first, .., last] = self.channels;
        let time = 4 * first;
        m.linear("time_embed.0", first, time, PLAIN);
        m.linear("time_embed.2", time, time, PLAIN);
        m.conv("input_blocks.0.0", self.latent_channels, first, 3, PLAIN);
        let skips = self.down(m, time);
        unet_resnet(&mut m.sub("middle_block.0"), last, last, time);
        transformer(&mut m.sub("middle_block.1"), last, self.context);
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
                if self.transformers[level] {
                    transformer(&mut block.sub("1"), channels, self.context);
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
        let [.., mut input] = self.channels;
        let mut number = 0;
        for (level, &channels) in self.channels.iter().enumerate().rev() {
            for layer in 0..=self.layers {
                let block = &mut m.sub(&format!("output_blocks.{number}"));
                let skip = skips.pop().expect("one block more goes up on each level than down");
                unet_resnet(&mut block.sub("0"), input + skip, channels, time);
                if self.transformers[level] {
                    transformer(&mut block.sub("1"), channels, self.context);
                }
                if layer == self.layers && level > 0 {
                    let place = 1 + usize::from(self.transformers[level]);
                    block.conv(&format!("{place}.conv"), channels, channels, 3, PLAIN);
                }
                input = channels;
                number += 1;
            }
        }
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

fn transformer(m: &mut Module, channels: usize, context: usize) {
    m.norm("norm", channels);
    m.conv("proj_in", channels, channels, 1, PLAIN);
    m.conv("proj_out", channels, channels, 1, BRANCH);
    let block = &mut m.sub("transformer_blocks.0");
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

struct Vae {
    image_channels: usize,
    latent_channels: usize,
    channels: [usize; 4],
    layers: usize,
}

impl Vae {
    fn build(&self, m: &mut Module) {
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

struct TextEncoder {
    vocabulary: usize,
    positions: usize,
    width: usize,
    layers: usize,
}

impl TextEncoder {
    fn build(&self, m: &mut Module) {
        let width = self.width;
        let embeddings = &mut m.sub("embeddings");
        let mut embedding = |name, rows, std| {
            embeddings.push(name, vec![rows, width], Fill::Normal { mean: 0.0, std });
        };
        embedding("token_embedding.weight", self.vocabulary, 0.5);
        embedding("position_embedding.weight", self.positions, 0.1);
        embeddings.push("position_ids", vec![1, self.positions], Fill::Positions);
        for layer in 0..self.layers {
            let layer = &mut m.sub(&format!("encoder.layers.{layer}"));
            layer.norm("layer_norm1", width);
            for name in ["q_proj", "k_proj", "v_proj"] {
                layer.sub("self_attn").linear(name, width, width, PLAIN);
            }
            layer.sub("self_attn").linear("out_proj", width, width, BRANCH);
            layer.norm("layer_norm2", width);
            layer.linear("mlp.fc1", width, 4 * width, PLAIN);
            layer.linear("mlp.fc2", 4 * width, width, BRANCH);
        }
        m.norm("final_layer_norm", width);
    }
}

/// Where in the tree of modules tensors are being named.
struct Module<'a> {
    /// Ends in a dot, but for the root's.
    prefix: String,
    tensors: &'a mut Vec<Tensor>,
}

impl Module<'_> {
    fn sub(&mut self, name: &str) -> Module<'_> {
        Module { prefix: format!("{}{name}.", self.prefix), tensors: self.tensors }
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, fill: Fill) {
        self.tensors.push(Tensor { name: format!("{}{name}", self.prefix), shape, fill });
    }

    /// `gain`: how wide the output spreads for an input of deviation 1.
    fn weight(&mut self, name: &str, shape: Vec<usize>, gain: f32) {
        let fan_in: usize = shape[1..].iter().product();
        let fill = Fill::Normal { mean: 0.0, std: gain / (fan_in as f32).sqrt() };
        self.push(&format!("{name}.weight"), shape, fill);
    }

    fn bias(&mut self, name: &str, channels: usize) {
        self.push(&format!("{name}.bias"), vec![channels], Fill::Normal { mean: 0.0, std: 0.05 });
    }

    fn conv(&mut self, name: &str, input: usize, output: usize, kernel: usize, gain: f32) {
        self.weight(name, vec![output, input, kernel, kernel], gain);
        self.bias(name, output);
    }

    fn linear(&mut self, name: &str, input: usize, output: usize, gain: f32) {
        self.weight(name, vec![output, input], gain);
        self.bias(name, output);
    }

    fn linear_without_bias(&mut self, name: &str, input: usize, output: usize) {
        self.weight(name, vec![output, input], PLAIN);
    }

    fn norm(&mut self, name: &str, channels: usize) {
        let scale = Fill::Normal { mean: 1.0, std: 0.05 };
        self.push(&format!("{name}.weight"), vec![channels], scale);
        self.bias(name, channels);
    }
}
