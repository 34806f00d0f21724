//! Pseudo linear multistep, "PLMS" (Liu et al., 2022, arXiv:2202.09778, eq. 9 and 12; diffusers'
//! `PNDMScheduler` with `skip_prk_steps`, `set_alpha_to_one` false): Adams-Bashforth on the
//! model's outputs, of order 4 once there are enough of them. The second step is made twice, as
//! the average of the outputs at both of its ends.

use super::{
    TRAIN_STEPS,
    plan::{Move, Run},
    timesteps::whole,
};
use crate::modes::{Prediction, Spacing};

/// The second one twice.
pub(super) fn timesteps(spacing: Spacing, steps: usize) -> Vec<f64> {
    let mut timesteps = whole(spacing, steps);
    if let Some(second) = timesteps.get(1).copied() {
        timesteps.insert(1, second);
    }
    timesteps
}

/// Weights of the outputs at the calls since the first one made, the newest first. The output of
/// the second call serves the average alone.
fn weights(made: usize) -> Vec<f64> {
    let (sum, weights): (f64, &[f64]) = match made {
        0 => (1.0, &[1.0]),
        1 => (2.0, &[1.0, 1.0]),
        2 => (2.0, &[3.0, 0.0, -1.0]),
        3 => (12.0, &[23.0, -16.0, 0.0, 5.0]),
        4 => (24.0, &[55.0, -59.0, 37.0, 0.0, -9.0]),
        _ => (24.0, &[55.0, -59.0, 37.0, -9.0]),
    };
    weights.iter().map(|weight| weight / sum).collect()
}

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    let stride = (TRAIN_STEPS / run.sampling.steps) as isize;
    let (timestep, made) = (run.calls[i].timestep as isize, i - run.first);
    // The second call corrects the first one's step, from where that began.
    let (from, to, begin) =
        if made == 1 { (timestep + stride, timestep, 1) } else { (timestep, timestep - stride, 0) };
    let (from, to) = (run.schedule.level(from), run.schedule.level(to));

    // The step of DDIM: the next latents' parts of these and of the noise that is predicted.
    let of_latents = to.signal / from.signal;
    let of_noise = to.noise - of_latents * from.noise;
    // A v is averaged as it is, and taken for noise with the latents that the step begins at.
    let prediction = run.sampling.prediction;
    let (of_latents, of_output) = match prediction {
        Prediction::Epsilon => (of_latents, of_noise),
        Prediction::V => (of_latents + of_noise * from.noise, of_noise * from.signal),
    };
    let weights = weights(made);
    let (mut latents, mut denoised) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
    latents[begin] = of_latents;
    for (age, weight) in weights.iter().enumerate() {
        // Outputs are not kept, but what they are parts of is.
        let (latents_in_denoised, output_in_denoised) = run.level(i - age).denoised(prediction);
        denoised[age] = of_output * weight / output_in_denoised;
        latents[age] -= denoised[age] * latents_in_denoised;
    }
    Move::to(latents, denoised)
}
