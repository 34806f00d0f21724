//! Linear multistep (Adams-Bashforth on sigmas; k-diffusion's `sample_lms`; diffusers'
//! `LMSDiscreteScheduler`): integrates the polynomial through the last four slopes.

use super::plan::{Move, Run};

const ORDER: usize = 4;

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    let order = ORDER.min(i + 1);
    let sigmas: Vec<f64> = (0..order).map(|age| run.level(i - age).noise).collect();
    let next = run.level(i + 1).noise;
    // Where the first steps are left out, the polynomial still goes through what they would have
    // been, and their slopes count as 0.
    let known = order.min(i - run.first + 1);
    // The slope at latents x is (x - D)/σ.
    let parts = (0..known).map(|age| integral(&sigmas, age, next) / sigmas[age]);
    let (mut latents, denoised): (Vec<_>, Vec<_>) = parts.map(|part| (part, -part)).unzip();
    latents[0] += 1.0;
    Move::to(latents, denoised)
}

/// What `at` counts in the integral, from the first sigma to `next`, of the polynomial through
/// values at all sigmas: of degree 3 at most, for which two nodes after Gauss are exact.
fn integral(sigmas: &[f64], at: usize, next: f64) -> f64 {
    let (middle, half) = ((sigmas[0] + next) / 2.0, (next - sigmas[0]) / 2.0);
    let value = |x: f64| -> f64 {
        let others = sigmas.iter().enumerate().filter(|(other, _)| *other != at);
        others.map(|(_, sigma)| (x - sigma) / (sigmas[at] - sigma)).product()
    };
    let node = half / 3f64.sqrt();
    half * (value(middle - node) + value(middle + node))
}
