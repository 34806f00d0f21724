//! The seam to the backends: tensors, layers and the few verbs that models are written in.
//!
//! The only room that names candle and tch. Each backend has the same layers and verbs: `host` is the
//! CPU by the kernels in `cpu`, `candle` are candle's own operations on whatever it has kernels for, and
//! `torch` is libtorch. Models know none of them: they are written over
//! [`Tensor`] and the layers, which pass on what they are asked. Feature maps are channels last,
//! `[b, h, w, c]`, so that the tokens of a transformer block, `[b, h·w, c]`, are the same memory. A layer
//! takes its weights once, packs them as its backend likes them, and then only runs.

mod candle;
mod cpu;
mod device;
mod host;
mod layers;
mod open;
mod repeated;
mod spec;
mod tensor;
#[cfg(feature = "libtorch")]
mod torch;

pub use device::{Pace, give_back, name, reset_peak, set_limit, set_threads, usage};
pub use layers::{Conv2d, Embedding, Geglu, GroupNorm, LayerNorm, Linear};
pub use open::{Opened, Unavailable, open};
pub use repeated::Repeated;
pub use spec::Activation;
pub use tensor::{Error, Result, Tensor};

use cpu::{
    OutPtr,
    attention::{Attention, Heads},
    gemm::{Dense, Finish, Product},
    norm,
    packed::PackedWeights,
};
use spec::{After, ConvShape};

/// The activation of every element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    #[cfg(feature = "libtorch")]
    if let Some(x) = x.on_torch() {
        return Ok(torch::activate(x, activation)?.into());
    }
    if let Some(x) = x.on_candle() {
        return Ok(x.activate(activation)?.into());
    }
    let data = x.data()?;
    Tensor::build(x.dims(), |out| norm::activate(&data, activation, out))
}

/// The parts of [`attention`]'s inputs that lie in one tensor side by side.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// `[b, len, c]`, of which the heads are columns `first .. first + heads·head_dim`.
    pub tensor: &'a Tensor,
    pub first: usize,
}

/// Multi-head scaled dot-product attention (Vaswani et al., 2017): `[b, q_len, heads·head_dim]`.
pub fn attention(
    [q, k, v]: [Columns<'_>; 3],
    heads: usize,
    head_dim: usize,
    causal: bool,
) -> Result<Tensor> {
    #[cfg(feature = "libtorch")]
    if let Some(there) = q.tensor.on_torch() {
        let device = there.device();
        let [q, k, v] =
            [q, k, v].map(|part| Ok::<_, Error>((part.tensor.to_torch(device)?, part.first)));
        let parts = [q?, k?, v?];
        let parts = parts.each_ref().map(|(array, first)| torch::Part { array, first: *first });
        return Ok(torch::attention(parts, heads, head_dim, causal)?.into());
    }
    if let Some(there) = q.tensor.on_candle() {
        let [q, k, v] = [q, k, v]
            .map(|part| Ok::<_, Error>((part.tensor.to_candle(there.device())?, part.first)));
        let parts = [q?, k?, v?];
        let parts = parts.each_ref().map(|(array, first)| (array, *first));
        let heads = candle::attention::Heads { heads, head_dim, causal };
        return Ok(candle::attend(parts, heads)?.into());
    }
    let (q_data, k_data, v_data) = (q.tensor.data()?, k.tensor.data()?, v.tensor.data()?);
    let part = |columns: &Columns<'_>, data| {
        let [batch, len, stride] = columns.tensor.dims3()?;
        Ok::<_, Error>((batch, Heads { data, stride, offset: columns.first, len }))
    };
    let (batch, q) = part(&q, &q_data)?;
    let (k, v) = (part(&k, &k_data)?.1, part(&v, &v_data)?.1);
    let dims = [batch, q.len, heads * head_dim];
    let attention = Attention { q, k, v, batch, heads, head_dim, causal };
    Tensor::build_beside(attention.scratch(), &dims, |out| attention.run(out))
}

/// `out += scale · a·b`, of plain matrices `a` `[n, rank]`, `b` `[rank, k]` and `out` `[n, k]`,
/// which must be as large as that.
pub fn add_product(out: &mut [f32], scale: f32, a: &[f32], b: &[f32], rank: usize) {
    let (n, k) = (a.len() / rank.max(1), b.len() / rank.max(1));
    assert!(a.len() == n * rank && b.len() == rank * k && out.len() == n * k, "the sizes agree");
    let scaled: Vec<f32> = a.iter().map(|x| scale * x).collect();
    let mut weights = PackedWeights::default();
    weights.repack_rows(b, k, rank, k);
    let product = Product {
        rows: Dense::new(&scaled, rank, n, rank),
        images: 1,
        rows_per_image: n,
        weights: &weights,
        bias: None,
        finish: Finish::Accumulate,
        columns: k,
        out_stride: k,
    };
    product.run(OutPtr::new(out));
}
