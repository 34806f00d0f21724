//! The denoising UNet (Rombach et al., 2022, arXiv:2112.10752; diffusers' `UNet2DConditionModel`).

use super::{
    embedder::{Embedder, sinusoids},
    resnet::ResnetBlock,
    transformer::Transformer,
};
use crate::engine::{
    checkpoint::{Error, Heads, Weights},
    nn::{self, Activation, Conv2d, GroupNorm, Linear, Tensor},
};

const EPSILON: f32 = 1e-5;
/// Over how many numbers a guidance scale is spread.
const GUIDANCE_WIDTH: usize = 256;

pub struct UNet {
    time: Embedder,
    /// Tells the guidance scale to a model that was distilled with it.
    guidance: Option<Linear>,
    /// Tells what an image is to be like besides its text (SDXL).
    added: Option<Embedder>,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid_first: Option<ResnetBlock>,
    mid: Vec<(Transformer, ResnetBlock)>,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    in_channels: usize,
    /// Where the device can repeat a step by itself.
    repeated: nn::Repeated,
}

/// What a UNet is told besides noisy latents and a timestep.
pub struct Conditioning {
    /// Text embeddings, `[b, length, context]`.
    pub context: Tensor,
    /// From [`UNet::embed_added`], `[b, time]`, for a UNet that has it.
    pub added: Option<Tensor>,
    /// From [`UNet::embed_guidance`], `[b, base]`, for a UNet that has it.
    pub guidance: Option<Tensor>,
}

/// What is computed once for all steps of an image, see [`UNet::tell`].
pub struct Told {
    /// The timesteps' embeddings, `[steps, time]`.
    times: Tensor,
    added: Option<Tensor>,
    /// Of all transformers' blocks, in the order in which they run.
    keys_values: Vec<Tensor>,
}

/// A residual block and, at most levels, a transformer behind it.
struct Stage {
    resnet: ResnetBlock,
    transformer: Option<Transformer>,
}

struct DownBlock {
    stages: Vec<Stage>,
    downsample: Option<Conv2d>,
}

struct UpBlock {
    stages: Vec<Stage>,
    upsample: Option<Conv2d>,
}

/// What every block is loaded with.
#[derive(Clone, Copy)]
struct Sizes {
    time: usize,
    /// Width of the text embeddings.
    context: usize,
    heads: Heads,
}

impl Sizes {
    fn transformer(self, w: &Weights<'_>, channels: usize) -> Result<Transformer, Error> {
        Transformer::load(w, channels, self.context, self.heads)
    }
}

impl UNet {
    /// `context` is the width of the text embeddings that the caller will give it.
    pub fn load(w: &Weights<'_>, context: usize, heads: Heads) -> Result<Self, Error> {
        let in_channels = w.at("conv_in").dims("weight")?.get(1).copied().unwrap_or(0);
        let conv_in = Conv2d::load(&w.at("conv_in"), in_channels, 3)?;
        let base = conv_in.out_channels();
        let time_embedder = Embedder::load(&w.at("time_embedding"), base)?;
        let time = time_embedder.out_channels();
        let sizes = Sizes { time, context, heads };

        let (mut channels, mut skips) = (base, vec![base]);
        let blocks = w.at("down_blocks");
        let mut down = Vec::new();
        let count = blocks.count();
        for i in 0..count {
            let (block, is_last) = (blocks.at(&i.to_string()), i + 1 == count);
            down.push(DownBlock::load(&block, &mut channels, &mut skips, sizes, is_last)?);
        }

        let mid = w.at("mid_block");
        let resnet = |i: usize| mid.at(&format!("resnets.{i}"));
        let mid_first = mid
            .exists()
            .then(|| ResnetBlock::load(&resnet(0), channels, EPSILON, Some(time)))
            .transpose()?;
        let depth = mid.at("attentions").count().max(usize::from(resnet(1).exists()));
        let mid = (0..depth)
            .map(|i| {
                let transformer =
                    sizes.transformer(&mid.at(&format!("attentions.{i}")), channels)?;
                Ok((transformer, ResnetBlock::load(&resnet(i + 1), channels, EPSILON, Some(time))?))
            })
            .collect::<Result<_, Error>>()?;

        let blocks = w.at("up_blocks");
        let mut up = Vec::new();
        let count = blocks.count();
        for i in 0..count {
            let (block, is_last) = (blocks.at(&i.to_string()), i + 1 == count);
            up.push(UpBlock::load(&block, &mut channels, &mut skips, sizes, is_last)?);
        }
        let guidance = w.at("time_embedding.cond_proj");
        let guidance =
            guidance.exists().then(|| Linear::stack_unbiased(&[&guidance], GUIDANCE_WIDTH, base));
        let added = w.at("add_embedding");
        let added = added.exists().then(|| Embedder::load_any_width(&added, time));
        Ok(Self {
            time: time_embedder,
            guidance: guidance.transpose()?,
            added: added.transpose()?,
            conv_in,
            down,
            mid_first,
            mid,
            up,
            norm_out: GroupNorm::load(&w.at("conv_norm_out"), channels, EPSILON, Activation::Silu)?,
            conv_out: Conv2d::load(&w.at("conv_out"), channels, 3)?,
            in_channels,
            repeated: nn::Repeated::default(),
        })
    }

    /// Channels of the input: 4 of latents; 9 where a mask and a masked image come along.
    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    /// Width of what [`Self::embed_added`] takes, where it is needed.
    pub fn added_width(&self) -> Option<usize> {
        self.added.as_ref().map(|added| added.width_in)
    }

    /// Whether it is told the guidance scale, so that it needs no second pass without the prompt.
    pub fn takes_guidance(&self) -> bool {
        self.guidance.is_some()
    }

    /// What the image is to be like: the prompt as a whole, `[1, p]`, and some numbers (SDXL's
    /// "time ids"), each spread over an equal part of the width that `p` leaves: `[1, time]`.
    pub fn embed_added(&self, pooled: &Tensor, ids: &[f32]) -> nn::Result<Option<Tensor>> {
        let Some(added) = &self.added else { return Ok(None) };
        let left = added.width_in - pooled.dims().last().copied().unwrap_or(0).min(added.width_in);
        let spread = sinusoids(ids, left / ids.len().max(1));
        let spread = Tensor::from_vec(spread, &[1, left])?;
        added.forward(&Tensor::cat(&[pooled, &spread], 1)?).map(Some)
    }

    /// The guidance scale for a UNet that was distilled with it (Meng et al., 2023,
    /// arXiv:2210.03142; the reference's `get_guidance_scale_embedding`): `[1, base]`.
    pub fn embed_guidance(&self, scale: f64) -> nn::Result<Option<Tensor>> {
        let Some(guidance) = &self.guidance else { return Ok(None) };
        let half = GUIDANCE_WIDTH / 2;
        let frequency = |i: usize| (-(10_000f32.ln()) / (half - 1) as f32 * i as f32).exp();
        let angles = || (0..half).map(|i| ((scale - 1.0) * 1000.0) as f32 * frequency(i));
        let waves = angles().map(f32::sin).chain(angles().map(f32::cos)).collect();
        guidance.forward(&Tensor::from_vec(waves, &[1, GUIDANCE_WIDTH])?).map(Some)
    }

    /// What stays the same over all steps, of these timesteps.
    pub fn tell(&self, conditioning: &Conditioning, timesteps: &[f32]) -> nn::Result<Told> {
        let Conditioning { context, added, guidance } = conditioning;
        let (width, steps) = (self.time.width_in, timesteps.len());
        let mut times = Tensor::from_vec(sinusoids(timesteps, width), &[steps, width])?;
        if let Some(guidance) = guidance {
            times = times.add(&Tensor::cat(&vec![guidance; steps], 0)?)?;
        }
        let keys_values = self.transformers().flat_map(|it| it.keys_values(context));
        Ok(Told {
            times: self.time.forward(&times)?,
            added: added.clone(),
            keys_values: keys_values.collect::<nn::Result<_>>()?,
        })
    }

    /// The model output for noisy latents `[b, h, w, in_channels]` at one of the timesteps that were
    /// told, counted from 0: `[b, h, w, 4]`.
    pub fn step(&self, x: &Tensor, told: &Told, step: usize) -> nn::Result<Tensor> {
        let mut time = told.times.narrow(0, step, 1)?;
        if let Some(added) = &told.added {
            time = Tensor::cat(&vec![&time; added.dims()[0]], 0)?.add(added)?;
        }
        // Every block takes it through a silu first.
        let time = nn::activate(&time, Activation::Silu)?;
        let run = |varying: &[Tensor], fixed: &[Tensor]| self.run(&varying[0], &varying[1], fixed);
        self.repeated.run(&[x, &time], &told.keys_values, &run)
    }

    /// The transformers, in the order in which they run.
    fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        let down = self.down.iter().flat_map(|block| &block.stages);
        let up = self.up.iter().flat_map(|block| &block.stages);
        let mid = self.mid.iter().map(|(transformer, _)| transformer);
        let down = down.filter_map(|stage| stage.transformer.as_ref());
        down.chain(mid).chain(up.filter_map(|stage| stage.transformer.as_ref()))
    }

    /// `time`: silu of the embedded timestep, `[1, time]` or `[b, time]`.
    fn run(&self, x: &Tensor, time: &Tensor, keys_values: &[Tensor]) -> nn::Result<Tensor> {
        let mut attended = keys_values.iter();
        let mut x = self.conv_in.forward(x)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            for stage in &block.stages {
                x = stage.forward(&x, time, &mut attended)?;
                skips.push(x.clone());
            }
            if let Some(downsample) = &block.downsample {
                x = downsample.forward(&x)?;
                skips.push(x.clone());
            }
        }
        if let Some(resnet) = &self.mid_first {
            x = resnet.forward(&x, Some(time))?;
        }
        for (transformer, resnet) in &self.mid {
            x = resnet.forward(&transformer.forward(&x, &mut attended)?, Some(time))?;
        }
        for block in &self.up {
            for stage in &block.stages {
                if let Some(skip) = skips.pop() {
                    x = Tensor::cat(&[&x, &skip], 3)?;
                }
                x = stage.forward(&x, time, &mut attended)?;
            }
            if let (Some(upsample), Some(skip)) = (&block.upsample, skips.last()) {
                // To the skip's size, which for odd sizes is not the double.
                let [_, h, w, _] = skip.dims4()?;
                x = upsample.forward_enlarged(&x, [h, w], Activation::None)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x)?)
    }
}

impl Stage {
    fn load(w: &Weights<'_>, i: usize, channels: usize, sizes: Sizes) -> Result<Self, Error> {
        let resnet = w.at(&format!("resnets.{i}"));
        let resnet = ResnetBlock::load(&resnet, channels, EPSILON, Some(sizes.time))?;
        let transformer = w.at(&format!("attentions.{i}"));
        let load = || sizes.transformer(&transformer, resnet.out_channels());
        let transformer = transformer.exists().then(load).transpose()?;
        Ok(Self { resnet, transformer })
    }

    fn forward<'a>(
        &self,
        x: &Tensor,
        time: &Tensor,
        attended: &mut impl Iterator<Item = &'a Tensor>,
    ) -> nn::Result<Tensor> {
        let x = self.resnet.forward(x, Some(time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&x, attended),
            None => Ok(x),
        }
    }
}

impl DownBlock {
    /// Notes in `skips` the channels of every feature map that an up block will take. All blocks
    /// but the last make what they hand on smaller.
    fn load(
        w: &Weights<'_>,
        channels: &mut usize,
        skips: &mut Vec<usize>,
        sizes: Sizes,
        is_last: bool,
    ) -> Result<Self, Error> {
        let mut stages = Vec::new();
        for i in 0..w.at("resnets").count().max(1) {
            let stage = Stage::load(w, i, *channels, sizes)?;
            *channels = stage.resnet.out_channels();
            skips.push(*channels);
            stages.push(stage);
        }
        let conv = w.at("downsamplers.0.conv");
        let load = || Conv2d::load_stride2(&conv, *channels, [1, 1]);
        let downsample = (!is_last).then(load).transpose()?;
        if downsample.is_some() {
            skips.push(*channels);
        }
        Ok(Self { stages, downsample })
    }
}

impl UpBlock {
    /// All blocks but the last enlarge what they hand on.
    fn load(
        w: &Weights<'_>,
        channels: &mut usize,
        skips: &mut Vec<usize>,
        sizes: Sizes,
        is_last: bool,
    ) -> Result<Self, Error> {
        let mut stages = Vec::new();
        for i in 0..w.at("resnets").count().max(1) {
            let stage = Stage::load(w, i, *channels + skips.pop().unwrap_or(0), sizes)?;
            *channels = stage.resnet.out_channels();
            stages.push(stage);
        }
        let conv = w.at("upsamplers.0.conv");
        let upsample = (!is_last).then(|| Conv2d::load(&conv, *channels, 3)).transpose()?;
        Ok(Self { stages, upsample })
    }
}
