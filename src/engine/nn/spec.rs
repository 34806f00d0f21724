//! What a layer is told besides its input.

use super::Tensor;

/// What a layer does to its output, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    None,
    Silu,
    /// With the exact error function.
    Gelu,
    /// x·sigmoid(1.702·x), as OpenAI's CLIP has it.
    QuickGelu,
    /// x, of negative x a fifth.
    LeakyRelu,
}

/// What becomes of a layer's sums.
#[derive(Clone, Copy)]
pub enum After<'a> {
    Activate(Activation),
    /// A tensor of the same shape is added.
    Add(&'a Tensor),
    /// For all pixels of an image the same vector, `[b, n]`, is added. (Convolutions alone.)
    Shift(&'a Tensor),
    /// One half gates the other. (Linear layers alone.)
    Geglu,
}

impl After<'_> {
    pub const NOTHING: Self = Self::Activate(Activation::None);
}

/// How a convolution goes over its input, and what comes out.
pub struct ConvShape {
    pub kernel: usize,
    pub stride: usize,
    /// Zeros before and after each row and column.
    pub padding: [usize; 2],
    pub out_channels: usize,
    /// The size that it sees; if the input has another one, it is enlarged by nearest neighbour.
    pub seen: [usize; 2],
}

impl ConvShape {
    /// Height and width of the output.
    pub fn out(&self) -> [usize; 2] {
        let [before, behind] = self.padding;
        self.seen.map(|size| (size + before + behind).saturating_sub(self.kernel) / self.stride + 1)
    }
}
