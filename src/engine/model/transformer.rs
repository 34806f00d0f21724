//! The UNet's transformers, through which pixels see each other and the text (Rombach et al., 2022;
//! diffusers' `Transformer2DModel` and `BasicTransformerBlock`).

use crate::engine::{
    checkpoint::{Error, Heads, Weights},
    nn::{self, Activation, Columns, Geglu, GroupNorm, LayerNorm, Linear, Tensor},
};

const EPSILON: f32 = 1e-6;

/// Tokens are pixels, and the text is attended to.
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

struct TransformerBlock {
    norm1: LayerNorm,
    self_qkv: Linear,
    self_out: Linear,
    norm2: LayerNorm,
    cross_q: Linear,
    cross_kv: Linear,
    cross_out: Linear,
    norm3: LayerNorm,
    geglu: Geglu,
    ff_out: Linear,
    heads: usize,
    width: usize,
}

impl Transformer {
    /// `context` is the width of the text embeddings.
    pub fn load(
        w: &Weights<'_>,
        channels: usize,
        context: usize,
        heads: Heads,
    ) -> Result<Self, Error> {
        let proj_in = w.at("proj_in");
        let width = proj_in.dims("weight")?[0];
        let blocks = w.at("transformer_blocks");
        let heads = heads.of(width).or_else(|unit| {
            proj_in.refuse("weight", &format!("a multiple of {unit} (for its heads)"))
        })?;
        Ok(Self {
            norm: GroupNorm::load(&w.at("norm"), channels, EPSILON, Activation::None)?,
            proj_in: Linear::load_to(&proj_in, channels, width)?,
            blocks: (0..blocks.count().max(1))
                .map(|i| TransformerBlock::load(&blocks.at(&i.to_string()), width, heads, context))
                .collect::<Result<_, _>>()?,
            proj_out: Linear::load_to(&w.at("proj_out"), width, channels)?,
        })
    }

    /// What the blocks attend to of text embeddings `[b, length, context]`, which stays the same over
    /// all steps: for each its keys and values side by side, `[b, length, 2·width]`.
    pub fn keys_values(&self, context: &Tensor) -> impl Iterator<Item = nn::Result<Tensor>> {
        self.blocks.iter().map(|block| block.cross_kv.forward(context))
    }

    /// `[b, h, w, channels]`; takes of `keys_values` those of its blocks.
    pub fn forward<'a>(
        &self,
        x: &Tensor,
        keys_values: &mut impl Iterator<Item = &'a Tensor>,
    ) -> nn::Result<Tensor> {
        let [b, h, w, channels] = x.dims4()?;
        let mut tokens = self.norm.forward(x)?.reshape(&[b, h * w, channels])?;
        tokens = self.proj_in.forward(&tokens)?;
        for (block, keys_values) in self.blocks.iter().zip(keys_values) {
            tokens = block.forward(&tokens, keys_values)?;
        }
        let x = x.reshape(&[b, h * w, channels])?;
        self.proj_out.forward_add(&tokens, &x)?.reshape(&[b, h, w, channels])
    }
}

impl TransformerBlock {
    fn load(w: &Weights<'_>, width: usize, heads: usize, context: usize) -> Result<Self, Error> {
        let part = |attention: &str, names: &[&str]| -> Vec<_> {
            names.iter().map(|name| w.at(&format!("{attention}.{name}"))).collect()
        };
        let (qkv, kv) =
            (part("attn1", &["to_q", "to_k", "to_v"]), part("attn2", &["to_k", "to_v"]));
        let geglu = Geglu::load(&w.at("ff.net.0.proj"), width)?;
        let inner = geglu.out_channels();
        Ok(Self {
            norm1: LayerNorm::load(&w.at("norm1"), width)?,
            self_qkv: Linear::stack_unbiased(&[&qkv[0], &qkv[1], &qkv[2]], width, width)?,
            self_out: Linear::load_to(&w.at("attn1.to_out.0"), width, width)?,
            norm2: LayerNorm::load(&w.at("norm2"), width)?,
            cross_q: Linear::stack_unbiased(&[&w.at("attn2.to_q")], width, width)?,
            cross_kv: Linear::stack_unbiased(&[&kv[0], &kv[1]], context, width)?,
            cross_out: Linear::load_to(&w.at("attn2.to_out.0"), width, width)?,
            norm3: LayerNorm::load(&w.at("norm3"), width)?,
            geglu,
            ff_out: Linear::load_to(&w.at("ff.net.2"), inner, width)?,
            heads,
            width,
        })
    }

    fn forward(&self, x: &Tensor, keys_values: &Tensor) -> nn::Result<Tensor> {
        let (heads, head_dim) = (self.heads, self.width / self.heads);
        let qkv = self.self_qkv.forward(&self.norm1.forward(x)?)?;
        let parts = [0, 1, 2].map(|i| Columns { tensor: &qkv, first: i * self.width });
        let x = self.self_out.forward_add(&nn::attention(parts, heads, head_dim, false)?, x)?;

        let q = self.cross_q.forward(&self.norm2.forward(&x)?)?;
        let parts = [(&q, 0), (keys_values, 0), (keys_values, self.width)];
        let parts = parts.map(|(tensor, first)| Columns { tensor, first });
        let x = self.cross_out.forward_add(&nn::attention(parts, heads, head_dim, false)?, &x)?;

        self.ff_out.forward_add(&self.geglu.forward(&self.norm3.forward(&x)?)?, &x)
    }
}
