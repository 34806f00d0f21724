//! CLIP's text encoder (Radford et al., 2021, arXiv:2103.00020; transformers' `CLIPTextModel` and
//! `CLIPTextModelWithProjection`), OpenAI's and OpenCLIP's.

use crate::engine::{
    checkpoint::{Error, Weights},
    nn::{self, Activation, Columns, Embedding, LayerNorm, Linear, Tensor},
    tokenizer,
};

/// Every CLIP text encoder in use has heads of this width.
const HEAD_DIM: usize = 64;

pub struct ClipTextEncoder {
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    /// Of the prompt as a whole.
    projection: Option<Linear>,
    activation: Activation,
    width: usize,
}

struct Layer {
    norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl ClipTextEncoder {
    /// `activation`: QuickGELU in OpenAI's models, GELU in OpenCLIP's. `projects`: whether the
    /// projection of the prompt as a whole is needed.
    pub fn load(w: &Weights<'_>, activation: Activation, projects: bool) -> Result<Self, Error> {
        let projection = w.at("text_projection");
        let w = w.at("text_model");
        let (tokens, positions) =
            (w.at("embeddings.token_embedding"), w.at("embeddings.position_embedding"));
        let width = *tokens.dims("weight")?.last().unwrap_or(&0);
        if width == 0 || width % HEAD_DIM != 0 {
            tokens.refuse("weight", "[49408, a multiple of 64]")?;
        }
        let layers = w.at("encoder.layers");
        let count = layers.count().max(1);
        Ok(Self {
            tokens: Embedding::load(&tokens, tokenizer::VOCABULARY, width)?,
            positions: Embedding::load(&positions, tokenizer::LENGTH, width)?,
            layers: (0..count)
                .map(|i| Layer::load(&layers.at(&i.to_string()), width))
                .collect::<Result<_, _>>()?,
            final_norm: LayerNorm::load(&w.at("final_layer_norm"), width)?,
            projection: projects.then(|| Linear::load_unbiased(&projection, width)).transpose()?,
            activation,
            width,
        })
    }

    /// Width of the embeddings.
    pub fn width(&self) -> usize {
        self.width
    }

    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Width of the projection, where there is one.
    pub fn projected_width(&self) -> usize {
        self.projection.as_ref().map_or(0, Linear::out_channels)
    }

    /// The hidden states of the layer `clip_skip` before the last, normalised: `[b, 77, width]`
    /// for `b` prompts of 77 ids.
    pub fn encode(&self, prompts: &[Vec<u32>], clip_skip: usize) -> nn::Result<Tensor> {
        self.final_norm.forward(&self.hidden(prompts, clip_skip)?)
    }

    /// The same, not normalised, which is what SDXL was trained on.
    pub fn hidden(&self, prompts: &[Vec<u32>], clip_skip: usize) -> nn::Result<Tensor> {
        let used = self.layers.len().saturating_sub(clip_skip);
        self.run(self.embed(prompts)?, &self.layers[..used])
    }

    /// The same, and the prompts as a whole, `[b, projected_width]`: what the last layer says of
    /// the token at `ends[i]`, projected.
    pub fn hidden_and_pooled(
        &self,
        prompts: &[Vec<u32>],
        clip_skip: usize,
        ends: &[usize],
    ) -> nn::Result<(Tensor, Tensor)> {
        let (used, rest) = self.layers.split_at(self.layers.len().saturating_sub(clip_skip));
        let hidden = self.run(self.embed(prompts)?, used)?;
        let last = self.run(hidden.clone(), rest)?;
        let ends = ends.iter().enumerate().map(|(i, end)| last.narrow(0, i, 1)?.narrow(1, *end, 1));
        let ends = ends.collect::<nn::Result<Vec<_>>>()?;
        let ends = Tensor::cat(&ends.iter().collect::<Vec<_>>(), 0)?;
        let pooled = self.final_norm.forward(&ends.reshape(&[prompts.len(), self.width])?)?;
        let pooled = match &self.projection {
            Some(projection) => projection.forward(&pooled)?,
            None => pooled,
        };
        Ok((hidden, pooled))
    }

    fn run(&self, mut x: Tensor, layers: &[Layer]) -> nn::Result<Tensor> {
        for layer in layers {
            x = layer.forward(&x, self.width, self.activation)?;
        }
        Ok(x)
    }

    /// `[b, 77, width]`
    fn embed(&self, prompts: &[Vec<u32>]) -> nn::Result<Tensor> {
        let length = prompts.first().map_or(0, Vec::len);
        let places: Vec<_> = prompts.iter().flat_map(|ids| 0..ids.len() as u32).collect();
        let embedded = self.tokens.rows(&prompts.concat())?.add(&self.positions.rows(&places)?)?;
        embedded.reshape(&[prompts.len(), length, self.width])
    }
}

impl Layer {
    fn load(w: &Weights<'_>, width: usize) -> Result<Self, Error> {
        let [q, k, v] =
            ["q_proj", "k_proj", "v_proj"].map(|name| w.at(&format!("self_attn.{name}")));
        let fc1 = w.at("mlp.fc1");
        let inner = fc1.dims("weight")?[0];
        Ok(Self {
            norm1: LayerNorm::load(&w.at("layer_norm1"), width)?,
            qkv: Linear::stack(&[&q, &k, &v], width, width)?,
            out: Linear::load(&w.at("self_attn.out_proj"), width)?,
            norm2: LayerNorm::load(&w.at("layer_norm2"), width)?,
            fc1: Linear::load(&fc1, width)?,
            fc2: Linear::load(&w.at("mlp.fc2"), inner)?,
        })
    }

    fn forward(&self, x: &Tensor, width: usize, activation: Activation) -> nn::Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let heads = [0, width, 2 * width].map(|first| Columns { tensor: &qkv, first });
        let attended = nn::attention(heads, width / HEAD_DIM, HEAD_DIM, true)?;
        let x = self.out.forward_add(&attended, x)?;
        let hidden = self.fc1.forward(&self.norm2.forward(&x)?)?;
        self.fc2.forward_add(&nn::activate(&hidden, activation)?, &x)
    }
}
