//! Multistep latent-consistency sampling (Luo et al., 2023, arXiv:2310.04378, algorithm 3;
//! diffusers' `LCMScheduler`).

use super::{
    TRAIN_STEPS,
    plan::{Move, Run},
};

/// Steps of the teacher that the student was distilled from; its timesteps are among theirs.
pub(super) const ORIGINAL_STEPS: usize = 50;
/// The boundary condition's width and the timesteps' scale in it.
const SIGMA_DATA: f64 = 0.5;
const TIMESTEP_SCALING: f64 = 10.0;

pub(super) fn timesteps(steps: usize) -> Vec<f64> {
    let stride = TRAIN_STEPS / ORIGINAL_STEPS;
    let timestep = |i| ((ORIGINAL_STEPS - i * ORIGINAL_STEPS / steps) * stride - 1) as f64;
    (0..steps).map(timestep).collect()
}

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    let scaled = f64::from(run.calls[i].timestep) * TIMESTEP_SCALING;
    let norm = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
    let (skip, out) = (SIGMA_DATA * SIGMA_DATA / norm, scaled / norm.sqrt());
    // All the way to an image, and from there back into the noise of the next timestep.
    let next = run.level(i + 1);
    Move::first_order(next.signal * skip, next.signal * out).with_noise(next.noise)
}
