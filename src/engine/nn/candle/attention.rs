//! Scaled dot-product attention, a block of queries at a time: the score matrix is never whole in memory.

use candle_core::{D, DType, Result, Tensor};

/// Scores of a block of queries, in numbers (256 MiB).
const MAX_SCORES: usize = 64 << 20;

/// The parts of [`attention`]'s inputs that lie in one tensor side by side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// `[b, len, c]`, of which the heads are columns `first .. first + heads·head_dim`.
    pub tensor: &'a Tensor,
    pub first: usize,
}

/// How a row is divided into heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub heads: usize,
    pub head_dim: usize,
    /// Whether a query sees only the keys up to its own place.
    pub causal: bool,
}

/// Multi-head scaled dot-product attention (Vaswani et al., 2017), in the inputs' type:
/// `[b, q_len, heads·head_dim]`.
pub(crate) fn attention(parts: [Columns<'_>; 3], heads: Heads) -> Result<Tensor> {
    blocks(parts, heads, MAX_SCORES)
}

fn blocks([q, k, v]: [Columns<'_>; 3], heads: Heads, max_scores: usize) -> Result<Tensor> {
    let (q, k, v) = (heads.split(q)?, heads.split(k)?, heads.split(v)?);
    // Scores are in f32: of f16's they may be too large, and exp makes much of bf16's roundings.
    let keys = k.to_dtype(DType::F32)?.t()?;
    let (batch, _, q_len, _) = q.dims4()?;
    let a_query = batch * heads.heads * k.dim(2)?;
    let block = (max_scores / a_query.max(1)).max(1);
    let blocks = (0..q_len).step_by(block).map(|first| {
        let queries = q.narrow(2, first, block.min(q_len - first))?.contiguous()?;
        heads.block(&queries, first, &keys, &v)
    });
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    let all = Tensor::cat(&blocks, 2)?;
    all.transpose(1, 2)?.contiguous()?.reshape((batch, q_len, heads.heads * heads.head_dim))
}

impl Heads {
    /// `[b, heads, len, head_dim]`
    fn split(&self, columns: Columns<'_>) -> Result<Tensor> {
        let (batch, len, _) = columns.tensor.dims3()?;
        let part = columns.tensor.narrow(2, columns.first, self.heads * self.head_dim)?;
        let part = part.reshape((batch, len, self.heads, self.head_dim))?;
        part.transpose(1, 2)?.contiguous()
    }

    /// `softmax(queries·keys / √head_dim)·values`, where `first` is the place of the first query.
    fn block(
        &self,
        queries: &Tensor,
        first: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor> {
        let scale = (self.head_dim as f64).sqrt().recip();
        let scores = queries.to_dtype(DType::F32)?.affine(scale, 0.0)?.matmul(keys)?;
        let scores =
            if self.causal { scores.broadcast_add(&unseen(&scores, first)?)? } else { scores };
        let powers = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?;
        weights.to_dtype(values.dtype())?.matmul(values)
    }
}

/// -∞ where a key lies behind the query, else 0: `[queries, keys]`.
fn unseen(scores: &Tensor, first: usize) -> Result<Tensor> {
    let (queries, keys) = (scores.dim(D::Minus2)?, scores.dim(D::Minus1)?);
    let mask = (0..queries * keys)
        .map(|i| if i % keys > first + i / keys { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Tensor::from_vec(mask, (queries, keys), scores.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nn::{
        self,
        candle::tests::{assert_close, floats, tensor},
    };

    /// What the CPU's kernels make of it.
    fn expected(parts: [Columns<'_>; 3], heads: Heads) -> Vec<f32> {
        let tensors = parts.map(|part| {
            let numbers = floats(part.tensor);
            nn::Tensor::from_vec(numbers, part.tensor.dims()).unwrap()
        });
        let columns = [0, 1, 2].map(|i| nn::Columns { tensor: &tensors[i], first: parts[i].first });
        let Heads { heads, head_dim, causal } = heads;
        nn::attention(columns, heads, head_dim, causal).unwrap().to_vec().unwrap()
    }

    #[test]
    fn it_is_the_cpus_by_blocks_of_any_size() {
        for (q_len, k_len, causal) in [(7, 20, false), (9, 9, true), (9, 9, false)] {
            let heads = Heads { heads: 3, head_dim: 10, causal };
            let (q, kv) = (tensor(1, &[2, q_len, 30]), tensor(2, &[2, k_len, 70]));
            let parts = [(&q, 0), (&kv, 5), (&kv, 35)];
            let parts = parts.map(|(tensor, first)| Columns { tensor, first });
            let expected = expected(parts, heads);
            let a_query = 2 * 3 * k_len;
            // All at once, two by two (with an odd one left), one by one, and less than one.
            for max_scores in [MAX_SCORES, 2 * a_query + 1, a_query, 1] {
                let found = blocks(parts, heads, max_scores).unwrap();
                assert_eq!(found.dims(), [2, q_len, 30]);
                assert_close(&found, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn scores_of_halves_do_not_overflow() {
        let heads = Heads { heads: 1, head_dim: 64, causal: false };
        // Products of 64 · 100² are over 65,504, f16's largest.
        let ones = Tensor::full(100f32, (1, 3, 64), &candle_core::Device::Cpu).unwrap();
        let half = ones.to_dtype(DType::F16).unwrap();
        let part = Columns { tensor: &half, first: 0 };
        let found = attention([part; 3], heads).unwrap();
        assert_eq!(found.dtype(), DType::F16);
        assert_close(&found, &[100.0; 3 * 64], 1e-3);
    }
}
