//! What a plan is made of, and how it is put together.

use std::ops::Range;

use super::{Error, NoiseSchedule, Sampling, calls};
use crate::modes::{Prediction, SchedulerId, Spacing};

/// How to get from noise to latents.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What to begin with: of an image's latents and of fresh noise.
    pub start: Level,
    pub steps: Vec<PlanStep>,
}

/// Latents as a sum: `signal` times an image's latents and `noise` times normal noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    pub signal: f64,
    pub noise: f64,
}

/// One call of the model and what follows from it. With latents x, the model sees
/// `input_scale·x`; the denoised latents are `D = denoised.0·x + denoised.1·output`. Then x is
/// replaced by `correct`, where there is such, and the next latents are `next` + `noise`·(fresh
/// noise).
#[derive(Debug, Clone, PartialEq)]
pub struct PlanStep {
    pub timestep: f32,
    pub input_scale: f64,
    pub denoised: (f64, f64),
    pub correct: Option<Combination>,
    pub next: Combination,
    /// Noise is drawn for this step only where this is not zero.
    pub noise: f64,
    /// How noisy the next latents are: what inpainting brings an image's latents to, to put them
    /// where the image shall stay. After the last step that is the image itself.
    pub after: Level,
}

/// A sum of latents x and of denoised latents D, with the weights of this step's first, then
/// those of the step before, and so on. An x counts as it was corrected.
#[derive(Debug, Clone, PartialEq)]
pub struct Combination {
    pub latents: Vec<f64>,
    pub denoised: Vec<f64>,
}

impl Level {
    pub const CLEAN: Self = Self { signal: 1.0, noise: 0.0 };

    /// Of the samplers that think in noise to signal σ: image + σ·noise.
    pub(super) fn exploding(sigma: f64) -> Self {
        Self { signal: 1.0, noise: sigma }
    }

    /// The same noise to signal at unit variance.
    pub(super) fn preserving(sigma: f64) -> Self {
        let signal = (sigma * sigma + 1.0).sqrt().recip();
        Self { signal, noise: sigma * signal }
    }

    /// λ, half the logarithm of the signal-to-noise ratio; infinite where there is no noise.
    pub(super) fn lambda(self) -> f64 {
        (self.signal / self.noise).ln()
    }

    /// The denoised latents' parts of latents at this level and of the model's output for them.
    /// With the angle φ whose tangent is noise to signal, the input at unit variance is
    /// cos φ·image + sin φ·ε, and v is cos φ·ε - sin φ·image.
    pub(super) fn denoised(self, prediction: Prediction) -> (f64, f64) {
        match prediction {
            Prediction::Epsilon => (self.signal.recip(), -self.noise / self.signal),
            Prediction::V => {
                let length = self.signal.hypot(self.noise);
                (self.signal / (length * length), -self.noise / length)
            }
        }
    }
}

/// A call of the model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub timestep: f32,
    pub level: Level,
}

/// What an algorithm makes of a call: the part of a [`PlanStep`] that is its own.
pub(super) struct Move {
    pub correct: Option<Combination>,
    pub next: Combination,
    pub noise: f64,
}

impl Move {
    /// `keep` of the latents and `gain` of what was just denoised.
    pub fn first_order(keep: f64, gain: f64) -> Self {
        Self::to(vec![keep], vec![gain])
    }

    pub fn to(latents: Vec<f64>, denoised: Vec<f64>) -> Self {
        Self { correct: None, next: Combination { latents, denoised }, noise: 0.0 }
    }

    pub fn with_noise(self, noise: f64) -> Self {
        Self { noise, ..self }
    }
}

/// The calls that lead from noise to an image, and the first of them that is made.
pub(super) struct Run<'a> {
    pub sampling: &'a Sampling,
    pub schedule: NoiseSchedule,
    pub calls: Vec<Call>,
    pub first: usize,
}

impl<'a> Run<'a> {
    pub fn new(sampling: &'a Sampling) -> Result<Self, Error> {
        let schedule = NoiseSchedule::stable_diffusion(sampling.zero_terminal_snr);
        let first = first_call(sampling)?;
        let calls = calls(sampling, &schedule);
        let no_signal = calls[first..].iter().any(|call| call.level.signal == 0.0);
        if no_signal && sampling.prediction == Prediction::Epsilon {
            return Err(Error::NothingToPredict { id: sampling.id });
        }
        Ok(Self { sampling, schedule, calls, first })
    }

    /// The calls that are made.
    pub fn indices(&self) -> Range<usize> {
        self.first..self.calls.len()
    }

    /// How noisy the latents of a call are; there is no noise after the last one.
    pub fn level(&self, i: usize) -> Level {
        self.calls.get(i).map_or(Level::CLEAN, |call| call.level)
    }

    pub fn is_last(&self, i: usize) -> bool {
        i + 1 == self.calls.len()
    }

    pub fn plan(&self, moves: impl Iterator<Item = Move>) -> Plan {
        let steps = self.indices().zip(moves).map(|(i, Move { correct, next, noise })| {
            let Call { timestep, level } = self.calls[i];
            PlanStep {
                timestep,
                input_scale: level.signal.hypot(level.noise).recip(),
                denoised: level.denoised(self.sampling.prediction),
                correct,
                next,
                noise,
                after: self.level(i + 1),
            }
        });
        Plan { start: self.start(), steps: steps.collect() }
    }

    fn start(&self) -> Level {
        use SchedulerId as Id;
        let Level { signal, noise } = self.level(self.first);
        if self.sampling.strength.is_some() {
            return Level { signal, noise };
        }
        let leaves_out_signal = match self.sampling.id {
            Id::Euler | Id::EulerA | Id::Heun | Id::Lms => {
                self.sampling.spacing != Spacing::Leading
            }
            Id::Ddim | Id::Pndm | Id::Unipc | Id::Lcm => false,
            Id::Dpmpp2m | Id::Dpmpp2mKarras | Id::Dpmpp2mSde | Id::Dpmpp2mSdeKarras => false,
            Id::DpmppSde | Id::DpmppSdeKarras => false,
        };
        let noise = if leaves_out_signal { noise } else { signal.hypot(noise) };
        Level { signal: 0.0, noise }
    }
}

/// The call that a strength begins with (`StableDiffusionImg2ImgPipeline.get_timesteps`).
fn first_call(sampling: &Sampling) -> Result<usize, Error> {
    let &Sampling { steps, strength, .. } = sampling;
    let Some(strength) = strength else { return Ok(0) };
    // Rounded down from the number as it was written, which f32 may have made a little smaller.
    let written: f64 = strength.to_string().parse().unwrap_or(f64::from(strength));
    let made = ((steps as f64 * written) as usize).min(steps);
    if made == 0 {
        return Err(Error::NoStepLeft { strength, steps });
    }
    let calls_of_a_step = if sampling.id == SchedulerId::Heun { 2 } else { 1 };
    Ok((steps - made) * calls_of_a_step)
}
