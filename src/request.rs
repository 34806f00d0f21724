//! What a caller asks for: the mode's defaults under the caller's own values, validated.

use serde::{Deserialize, Serialize};

use crate::modes::{SchedulerId, Size};

/// An image to draw, fully resolved: whoever has the files draws the same image from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    pub mode: String,
    pub prompt: String,
    /// `None` is the family's own idea of "nothing": `""` for SD1.x.
    pub negative_prompt: Option<String>,
    pub size: Size,
    /// Denoising steps, 1 ..= 1000.
    pub steps: u32,
    /// Classifier-free guidance; at 1 and below there is none, and a step costs half as much.
    pub guidance_scale: f32,
    /// As `torch.Generator("cpu").manual_seed(seed)`, which takes the low 32 bits.
    pub seed: u64,
    /// `None`: the checkpoint family's own.
    pub scheduler: Option<SchedulerId>,
    /// See [`crate::modes::Defaults::clip_skip`].
    pub clip_skip: u32,
}
