//! Text encoders.

use super::{BRANCH, Fill, Module, PLAIN};

/// Ids of the vocabulary, and how many of them are read at a time.
const VOCABULARY: usize = 49_408;
const POSITIONS: usize = 77;

const TOKEN: Fill = Fill::Normal { mean: 0.0, std: 0.5 };
const POSITION: Fill = Fill::Normal { mean: 0.0, std: 0.1 };

/// A text encoder under the names of transformers.
pub struct Clip {
    pub width: usize,
    pub layers: usize,
}

impl Clip {
    pub fn build(&self, m: &mut Module) {
        let width = self.width;
        let embeddings = &mut m.sub("embeddings");
        embeddings.push("token_embedding.weight", vec![VOCABULARY, width], TOKEN);
        embeddings.push("position_embedding.weight", vec![POSITIONS, width], POSITION);
        embeddings.push("position_ids", vec![1, POSITIONS], Fill::Positions);
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

/// A text encoder under the names of OpenCLIP.
pub struct OpenClip {
    pub width: usize,
    pub layers: usize,
}

impl OpenClip {
    pub fn build(&self, m: &mut Module) {
        let width = self.width;
        m.push("token_embedding.weight", vec![VOCABULARY, width], TOKEN);
        m.push("positional_embedding", vec![POSITIONS, width], POSITION);
        for layer in 0..self.layers {
            let layer = &mut m.sub(&format!("transformer.resblocks.{layer}"));
            layer.norm("ln_1", width);
            let attention = &mut layer.sub("attn");
            // Queries, keys and values in one.
            let std = PLAIN / (width as f32).sqrt();
            attention.push(
                "in_proj_weight",
                vec![3 * width, width],
                Fill::Normal { mean: 0.0, std },
            );
            attention.push("in_proj_bias", vec![3 * width], Fill::Normal { mean: 0.0, std: 0.05 });
            attention.linear("out_proj", width, width, BRANCH);
            layer.norm("ln_2", width);
            layer.linear("mlp.c_fc", width, 4 * width, PLAIN);
            layer.linear("mlp.c_proj", 4 * width, width, BRANCH);
        }
        m.norm("ln_final", width);
        // Multiplied from the right, so rows are its inputs.
        let std = 1.0 / (width as f32).sqrt();
        m.push("text_projection", vec![width, width], Fill::Normal { mean: 0.0, std });
        m.push("logit_scale", vec![], Fill::Normal { mean: 4.6, std: 0.0 });
    }
}
