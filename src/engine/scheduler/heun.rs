//! Heun's method on the probability-flow ODE (Karras et al., 2022, arXiv:2206.00364, algorithm 1
//! without churn; diffusers' `HeunDiscreteScheduler`): every step but the last is made once as
//! Euler does it, and again with the average of the slopes at both of its ends.

use super::{
    euler,
    plan::{Move, Run},
    timesteps::spaced,
};
use crate::modes::Spacing;

/// Each one twice but the first: as a step's end, and as the next one's beginning.
pub(super) fn timesteps(spacing: Spacing, steps: usize) -> Vec<f64> {
    let spaced = spaced(spacing, steps);
    spaced.iter().take(1).chain(spaced.iter().skip(1).flat_map(|t| [t, t])).copied().collect()
}

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    if i.is_multiple_of(2) {
        return euler::step(run, i);
    }
    // The slope at latents x is (x - D)/σ, here where the step ends and before where it begins.
    let (begin, end) = (run.level(i - 1).noise, run.level(i).noise);
    let half = (end - begin) / 2.0;
    let slopes = [half / end, half / begin];
    Move::to(vec![slopes[0], 1.0 + slopes[1]], slopes.map(|slope| -slope).to_vec())
}
