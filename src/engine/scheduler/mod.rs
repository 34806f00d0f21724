//! Schedulers: the denoising algorithms, each as a [`Plan`] of plain numbers.
//!
//! Every one of them is linear in the latents, in the denoised images that the model has predicted
//! so far and in fresh noise. So a scheduler only says the coefficients, and one loop (in
//! `diffusion.rs`) executes all of them. All stand on the noise schedule of Stable Diffusion:
//! 1,000 training steps, "scaled linear" betas from 0.00085 to 0.012, timestep spacing "leading"
//! with offset 1, as diffusers' classes of the same names are set up for SD1.x.

mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod lcm;

use crate::modes::SchedulerId;

/// Steps that the models were trained with.
const TRAIN_STEPS: usize = 1000;

/// How to get from noise to latents.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What the initial noise is multiplied by.
    pub init_noise_sigma: f64,
    pub steps: Vec<PlanStep>,
}

/// One call of the model and what follows from it. With latents x, the model sees
/// `input_scale·x`; the denoised latents are `D = denoised.0·x + denoised.1·output`; the next
/// latents are `keep·x + Σ history[j]·D[j steps ago] + noise·(fresh noise)`.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanStep {
    pub timestep: f32,
    pub input_scale: f64,
    pub denoised: (f64, f64),
    pub keep: f64,
    /// The newest first.
    pub history: Vec<f64>,
    /// Noise is drawn for this step only where this is not zero.
    pub noise: f64,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the scheduler '{id}' takes at most {max} steps, not {steps}")]
pub struct TooManySteps {
    pub id: SchedulerId,
    pub max: usize,
    pub steps: usize,
}

/// The most steps that a scheduler can take.
pub fn max_steps(id: SchedulerId) -> usize {
    match id {
        SchedulerId::Lcm => lcm::ORIGINAL_STEPS,
        SchedulerId::Ddim | SchedulerId::Euler | SchedulerId::EulerA => TRAIN_STEPS - 1,
        SchedulerId::Dpmpp2m | SchedulerId::Dpmpp2mKarras => TRAIN_STEPS - 1,
    }
}

/// The plan of a scheduler for that many steps (at least one).
pub fn plan(id: SchedulerId, steps: usize) -> Result<Plan, TooManySteps> {
    let max = max_steps(id);
    if steps > max {
        return Err(TooManySteps { id, max, steps });
    }
    let schedule = NoiseSchedule::stable_diffusion();
    let steps = steps.max(1);
    Ok(match id {
        SchedulerId::Ddim => ddim::plan(&schedule, steps),
        SchedulerId::Euler => euler::plan(&schedule, steps),
        SchedulerId::EulerA => euler_ancestral::plan(&schedule, steps),
        SchedulerId::Dpmpp2m => dpmpp_2m::plan(&schedule, steps),
        SchedulerId::Dpmpp2mKarras => dpmpp_2m::plan_karras(&schedule, steps),
        SchedulerId::Lcm => lcm::plan(&schedule, steps),
    })
}

/// How much of the image is left at each training step: ᾱ, falling from almost 1 to almost 0.
struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// Rounded to f32 where the reference is.
    fn stable_diffusion() -> Self {
        let (start, end) = (0.00085f64.sqrt() as f32, 0.012f64.sqrt() as f32);
        let step = (end - start) / (TRAIN_STEPS - 1) as f32;
        let mut product = 1.0f64;
        let alphas_cumprod = (0..TRAIN_STEPS).map(|i| {
            let root = if i < TRAIN_STEPS / 2 {
                start + step * i as f32
            } else {
                end - step * (TRAIN_STEPS - 1 - i) as f32
            };
            product *= f64::from(1.0 - root * root);
            f64::from(product as f32)
        });
        Self { alphas_cumprod: alphas_cumprod.collect() }
    }

    /// Before the first training step there is hardly any noise, but not none.
    fn alpha(&self, timestep: isize) -> f64 {
        self.alphas_cumprod[timestep.max(0) as usize]
    }

    /// Noise to signal, √((1 - ᾱ)/ᾱ).
    fn sigma(&self, timestep: usize) -> f64 {
        let alpha = self.alphas_cumprod[timestep];
        f64::from(((1.0 - alpha) / alpha).sqrt() as f32)
    }

    /// Descending timesteps in even strides that lead up to the last one, moved by 1
    /// ("leading" spacing with offset 1; Lin et al., 2023, table 2).
    fn leading(strides: usize, steps: usize) -> impl Iterator<Item = usize> {
        let stride = TRAIN_STEPS / strides;
        let skip = strides - steps;
        (skip..strides).rev().map(move |i| (i * stride + 1).min(TRAIN_STEPS - 1))
    }
}

/// A step of the samplers that think in sigmas: latents are image + σ·noise, the model sees them
/// at unit variance and answers with the noise.
fn sigma_step(timestep: usize, sigma: f64, next: f64, noise: f64) -> PlanStep {
    PlanStep {
        timestep: timestep as f32,
        input_scale: (sigma * sigma + 1.0).sqrt().recip(),
        denoised: (1.0, -sigma),
        keep: next / sigma,
        history: vec![1.0 - next / sigma],
        noise,
    }
}

/// Each timestep with its sigma and the next one's, 0 after the last.
fn sigmas(schedule: &NoiseSchedule, steps: usize) -> Vec<(usize, f64, f64)> {
    let timesteps: Vec<_> = NoiseSchedule::leading(steps, steps).collect();
    let next = timesteps.iter().skip(1).map(|t| schedule.sigma(*t)).chain([0.0]);
    timesteps.iter().zip(next).map(|(t, next)| (*t, schedule.sigma(*t), next)).collect()
}

/// What initial noise is scaled to for "leading" timesteps.
fn init_noise_sigma(steps: &[(usize, f64, f64)]) -> f64 {
    steps.first().map_or(1.0, |(_, sigma, _)| (sigma * sigma + 1.0).sqrt())
}
