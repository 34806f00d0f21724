//! DDIM (Song, Meng & Ermon, 2020, arXiv:2010.02502, eq. 12 and 16; diffusers' `DDIMScheduler`
//! with `set_alpha_to_one` and `clip_sample` false).

use super::{
    TRAIN_STEPS,
    plan::{Move, Run},
};

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    let stride = (TRAIN_STEPS / run.sampling.steps) as isize;
    let call = run.calls[i];
    let (now, next) = (call.level, run.schedule.level(call.timestep as isize - stride));
    // What is predicted noise now is noise then, but for the part that is drawn anew.
    let variance = (next.noise / now.noise).powi(2) * (1.0 - (now.signal / next.signal).powi(2));
    let fresh = f64::from(run.sampling.eta) * variance.sqrt();
    let keep = (next.noise.powi(2) - fresh.powi(2)).max(0.0).sqrt() / now.noise;
    Move::first_order(keep, next.signal - now.signal * keep).with_noise(fresh)
}
