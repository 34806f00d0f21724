//! Euler's method on the probability-flow ODE (Karras et al., 2022, arXiv:2206.00364, algorithm 1
//! without churn; diffusers' `EulerDiscreteScheduler`).

use super::plan::{Move, Run};

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    to(run.level(i).noise, run.level(i + 1).noise)
}

/// From one sigma to another along the line to the denoised image.
pub(super) fn to(sigma: f64, next: f64) -> Move {
    let keep = next / sigma;
    Move::first_order(keep, 1.0 - keep)
}
