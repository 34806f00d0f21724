//! CLIP's text encoder (Radford et al., 2021, arXiv:2103.00020; transformers' `CLIPTextModel`).

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
    pub fn load(w: &Weights<'_>) -> Result<Self, Error> {
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

    /// The hidden states of the layer `clip_skip` before the last, normalised: `[b, 77, width]`.
    pub fn encode(&self, prompts: &[Vec<u32>], clip_skip: usize) -> nn::Result<Tensor> {
        let length = prompts.first().map_or(0, Vec::len);
        let embedded = prompts.iter().flat_map(|ids| {
            ids.iter().enumerate().flat_map(|(at, id)| {
                let (token, position) = (self.tokens.row(*id as usize), self.positions.row(at));
                token.iter().zip(position).map(|(token, position)| token + position)
            })
        });
        let mut x = Tensor::from_vec(embedded.collect(), &[prompts.len(), length, self.width])?;
        let used = self.layers.len().saturating_sub(clip_skip);
        for layer in &self.layers[..used] {
            x = layer.forward(&x, self.width)?;
        }
        self.final_norm.forward(&x)
    }

    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            [&layer.qkv, &layer.out, &layer.fc1, &layer.fc2]
                .iter()
                .map(|l| l.bytes())
                .sum::<usize>()
        });
        self.tokens.bytes() + self.positions.bytes() + layers.sum::<usize>()
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

    fn forward(&self, x: &Tensor, width: usize) -> nn::Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let heads = [0, width, 2 * width].map(|first| Columns { tensor: &qkv, first });
        let attended = nn::attention(heads, width / HEAD_DIM, HEAD_DIM, true)?;
        let x = self.out.forward_add(&attended, x)?;
        let hidden = self.fc1.forward(&self.norm2.forward(&x)?)?;
        self.fc2.forward_add(&nn::activate(&hidden, Activation::QuickGelu)?, &x)
    }
}
