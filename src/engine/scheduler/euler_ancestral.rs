//! Ancestral sampling with Euler steps (k-diffusion's `sample_euler_ancestral`; diffusers'
//! `EulerAncestralDiscreteScheduler`): each step goes a little too far down and adds noise.

use super::{
    euler,
    plan::{Move, Run},
};

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    let (sigma, next) = (run.level(i).noise, run.level(i + 1).noise);
    let (variance, next_variance) = (sigma * sigma, next * next);
    let up = (next_variance * (variance - next_variance) / variance).sqrt();
    let down = (next_variance - up * up).max(0.0).sqrt();
    euler::to(sigma, down).with_noise(up)
}
