//! Schedulers: the denoising algorithms, each as a [`Plan`] of plain numbers.
//!
//! Every one of them is linear in the latents so far, in the denoised images that the model has
//! predicted so far and in fresh noise. So a scheduler only says the coefficients, and one
//! function (in `sampling.rs`) executes all of them. A plan is made in three steps:
//!
//! 1. which timesteps the model is called at (`timesteps.rs`), and how noisy latents are at each
//!    ([`Level`], from the training's noise in `schedule.rs`);
//! 2. what follows from each call: moves, one file an algorithm, named after its paper;
//! 3. both together, from the first call or, for image to image, from a later one.
//!
//! All is as diffusers' classes of the same names do it with SD's own schedule: 1,000 training
//! steps, "scaled linear" betas from 0.00085 to 0.012, timestep offset 1. Nothing here knows a
//! model, a tensor or a generator.

mod ddim;
mod dpmpp_2m;
mod dpmpp_sde;
mod euler;
mod euler_ancestral;
mod heun;
mod lcm;
mod leap;
mod lms;
mod plan;
mod pndm;
mod schedule;
#[cfg(test)]
mod tests;
mod timesteps;
mod unipc;

pub use plan::{Combination, Level, Plan, PlanStep};

use crate::modes::{Prediction, SchedulerId, Spacing};
use plan::{Call, Run};
use schedule::NoiseSchedule;

/// Steps that the models were trained with.
const TRAIN_STEPS: usize = 1000;

/// All that a plan depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    pub id: SchedulerId,
    pub steps: usize,
    /// `lcm`, `dpmpp_sde` and the Karras ones have a spacing of their own.
    pub spacing: Spacing,
    /// What the model's output is.
    pub prediction: Prediction,
    /// Whether training ended in noise alone (Lin et al., 2023, arXiv:2305.08891, algorithm 1).
    pub zero_terminal_snr: bool,
    /// How much fresh noise `ddim` adds, 0 to 1; the others have no use for it.
    pub eta: f32,
    /// How much of an image is noised to start from: the plan then has the last of the steps.
    /// `None` starts from noise alone, with all steps.
    pub strength: Option<f32>,
}

impl Sampling {
    /// From noise to an image, as Stable Diffusion 1.5 does it.
    pub fn of(id: SchedulerId, steps: usize) -> Self {
        Self {
            id,
            steps,
            spacing: Spacing::Leading,
            prediction: Prediction::Epsilon,
            zero_terminal_snr: false,
            eta: 0.0,
            strength: None,
        }
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the scheduler '{id}' takes at most {max} steps, not {steps}")]
    TooManySteps { id: SchedulerId, max: usize, steps: usize },
    #[error(
        "a denoise strength of {strength} leaves none of {steps} steps; ask for more of either"
    )]
    NoStepLeft { strength: f32, steps: usize },
    #[error(
        "the scheduler '{id}' cannot end in zero signal-to-noise ratio, as this checkpoint was \
         trained to; use one of {}",
        names(has_zero_terminal_snr)
    )]
    NoZeroTerminalSnr { id: SchedulerId },
    #[error(
        "the scheduler '{id}' begins at pure noise here, which tells a model nothing that predicts \
         noise; this checkpoint needs 'prediction: v' or another scheduler"
    )]
    NothingToPredict { id: SchedulerId },
}

/// The most steps that a scheduler can take.
pub fn max_steps(id: SchedulerId) -> usize {
    use SchedulerId as Id;
    match id {
        Id::Lcm => lcm::ORIGINAL_STEPS,
        // They space as if there were one step more.
        Id::Dpmpp2m | Id::Dpmpp2mSde | Id::Unipc => TRAIN_STEPS - 2,
        Id::Ddim | Id::Pndm | Id::Euler | Id::EulerA | Id::Heun | Id::Lms => TRAIN_STEPS - 1,
        Id::Dpmpp2mKarras | Id::Dpmpp2mSdeKarras => TRAIN_STEPS - 1,
        Id::DpmppSde | Id::DpmppSdeKarras => TRAIN_STEPS - 1,
    }
}

/// Whether the reference's class can rescale its noise to end in nothing else.
fn has_zero_terminal_snr(id: SchedulerId) -> bool {
    use SchedulerId as Id;
    match id {
        Id::Ddim | Id::Euler | Id::EulerA | Id::Unipc | Id::Lcm => true,
        Id::Dpmpp2m | Id::Dpmpp2mKarras | Id::Dpmpp2mSde | Id::Dpmpp2mSdeKarras => true,
        Id::Pndm | Id::Heun | Id::Lms | Id::DpmppSde | Id::DpmppSdeKarras => false,
    }
}

fn names(which: fn(SchedulerId) -> bool) -> String {
    let names = SchedulerId::NAMES.iter();
    let all = names.filter(|name| name.parse().is_ok_and(which)).copied();
    all.collect::<Vec<_>>().join(", ")
}

/// The plan for at least one step.
pub fn plan(sampling: &Sampling) -> Result<Plan, Error> {
    use SchedulerId as Id;
    let &Sampling { id, steps, .. } = sampling;
    let max = max_steps(id);
    if steps > max {
        return Err(Error::TooManySteps { id, max, steps });
    }
    if sampling.zero_terminal_snr && !has_zero_terminal_snr(id) {
        return Err(Error::NoZeroTerminalSnr { id });
    }
    let run = Run::new(sampling)?;
    let moves = run.indices().map(|i| match id {
        Id::Ddim => ddim::step(&run, i),
        Id::Pndm => pndm::step(&run, i),
        Id::Euler => euler::step(&run, i),
        Id::EulerA => euler_ancestral::step(&run, i),
        Id::Heun => heun::step(&run, i),
        Id::Lms => lms::step(&run, i),
        Id::Dpmpp2m | Id::Dpmpp2mKarras => dpmpp_2m::step(&run, i),
        Id::Dpmpp2mSde | Id::Dpmpp2mSdeKarras => dpmpp_2m::step_sde(&run, i),
        Id::DpmppSde | Id::DpmppSdeKarras => dpmpp_sde::step(&run, i),
        Id::Unipc => unipc::step(&run, i),
        Id::Lcm => lcm::step(&run, i),
    });
    Ok(run.plan(moves))
}

/// When a sampler calls the model, and how noisy its latents are then.
fn calls(sampling: &Sampling, schedule: &NoiseSchedule) -> Vec<Call> {
    use SchedulerId as Id;
    let &Sampling { id, spacing, steps, .. } = sampling;
    match id {
        Id::Ddim => schedule.calls(timesteps::whole(spacing, steps)),
        Id::Pndm => schedule.calls(pndm::timesteps(spacing, steps)),
        Id::Lcm => schedule.calls(lcm::timesteps(steps)),
        Id::Euler | Id::EulerA | Id::Lms => {
            schedule.exploding_calls(timesteps::spaced(spacing, steps))
        }
        Id::Heun => schedule.exploding_calls(heun::timesteps(spacing, steps)),
        Id::Dpmpp2m | Id::Dpmpp2mSde | Id::Unipc => {
            schedule.preserving_calls(timesteps::before_zero(spacing, steps))
        }
        Id::DpmppSde => schedule.preserving_calls(timesteps::before_zero(Spacing::Linspace, steps)),
        Id::Dpmpp2mKarras | Id::Dpmpp2mSdeKarras | Id::DpmppSdeKarras => {
            schedule.karras_calls(steps)
        }
    }
}
