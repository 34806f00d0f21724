//! Executes a scheduler's plan on tensors: the one place where its numbers meet latents.
//!
//! Knows no model: between two steps, the caller asks its own for an output. Images of a batch
//! share the plan and nothing else; each draws its noise from a generator of its own, so that it
//! is the same image as alone.

use std::collections::VecDeque;

use super::{
    nn::{self, Tensor},
    noise::Generator,
    scheduler::{Combination, Level, Plan, PlanStep},
};

/// What a plan remembers between its steps.
pub struct Sampler {
    latents: History,
    denoised: History,
}

impl Sampler {
    pub fn new(plan: &Plan) -> Self {
        let combinations =
            || plan.steps.iter().flat_map(|step| step.correct.iter().chain([&step.next]));
        let depth = |len: fn(&Combination) -> usize| combinations().map(len).max().unwrap_or(0);
        Self {
            latents: History::new(depth(|combination| combination.latents.len())),
            denoised: History::new(depth(|combination| combination.denoised.len())),
        }
    }

    /// One step: from latents `[b, h, w, 4]` and the model's output for them to the next latents.
    /// There are `b` generators.
    pub fn advance(
        &mut self,
        step: &PlanStep,
        latents: &Tensor,
        output: &Tensor,
        generators: &mut [Generator],
    ) -> nn::Result<Tensor> {
        let (of_latents, of_output) = step.denoised;
        self.latents.push(latents.clone());
        self.denoised.push(latents.scale(of_latents)?.add(&output.scale(of_output)?)?);
        if let Some(correct) = &step.correct {
            let corrected = self.combine(correct, latents)?;
            self.latents.replace_newest(corrected);
        }
        let next = self.combine(&step.next, latents)?;
        if step.noise == 0.0 {
            return Ok(next);
        }
        let [_, dims @ ..] = next.dims4()?;
        next.add(&noise(generators, dims)?.scale(step.noise)?)
    }

    /// `like` has the sum's shape.
    fn combine(&self, combination: &Combination, like: &Tensor) -> nn::Result<Tensor> {
        let latents = self.latents.newest_first().zip(&combination.latents);
        let denoised = self.denoised.newest_first().zip(&combination.denoised);
        let mut parts = latents.chain(denoised);
        parts.try_fold(like.scale(0.0)?, |sum, (part, weight)| sum.add(&part.scale(*weight)?))
    }
}

/// The last few tensors of a kind.
struct History {
    depth: usize,
    tensors: VecDeque<Tensor>,
}

impl History {
    fn new(depth: usize) -> Self {
        Self { depth, tensors: VecDeque::with_capacity(depth + 1) }
    }

    fn push(&mut self, tensor: Tensor) {
        self.tensors.push_front(tensor);
        self.tensors.truncate(self.depth);
    }

    fn replace_newest(&mut self, tensor: Tensor) {
        self.tensors.pop_front();
        self.tensors.push_front(tensor);
    }

    fn newest_first(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter()
    }
}

/// An image's latents brought to a level with that noise, both `[b, h, w, 4]`: what image to image
/// starts from, and what stays of an image in inpainting after each step.
pub fn noised(image: &Tensor, noise: &Tensor, level: Level) -> nn::Result<Tensor> {
    image.scale(level.signal)?.add(&noise.scale(level.noise)?)
}

/// Noise as the reference draws it, image by image and channel by channel: `[b, h, w, c]` from `b`
/// generators.
pub fn noise(generators: &mut [Generator], [h, w, c]: [usize; 3]) -> nn::Result<Tensor> {
    let images = generators.len();
    let mut noise = Vec::with_capacity(images * h * w * c);
    for generator in generators {
        let planes = generator.randn(c * h * w);
        let pixels = (0..h * w).flat_map(|at| (0..c).map(move |c| c * h * w + at));
        noise.extend(pixels.map(|i| planes[i]));
    }
    Tensor::from_vec(noise, &[images, h, w, c])
}
