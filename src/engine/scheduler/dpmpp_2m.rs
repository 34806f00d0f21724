//! DPM-Solver++(2M) and SDE-DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095, algorithm 2 and
//! eq. 19; diffusers' `DPMSolverMultistepScheduler` with `dpmsolver++` and `sde-dpmsolver++`,
//! second order, midpoint): the denoised image changes as it did in the step before.

use super::{
    leap::Leap,
    plan::{Move, Run},
};

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    second_order(run, i, Leap::ode(run.level(i), run.level(i + 1)))
}

pub(super) fn step_sde(run: &Run<'_>, i: usize) -> Move {
    second_order(run, i, Leap::sde(run.level(i), run.level(i + 1)))
}

/// The first step knows no change, and the last one is infinitely long.
fn second_order(run: &Run<'_>, i: usize, leap: Leap) -> Move {
    let Leap { length, keep, gain, noise } = leap;
    if i == run.first || run.is_last(i) {
        return Move::first_order(keep, gain).with_noise(noise);
    }
    // The last step's length in terms of this one's.
    let ratio = (run.level(i).lambda() - run.level(i - 1).lambda()) / length;
    let change = 0.5 * gain / ratio;
    Move::to(vec![keep], vec![gain + change, -change]).with_noise(noise)
}
