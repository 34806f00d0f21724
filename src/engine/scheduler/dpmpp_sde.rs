//! SDE-DPM-Solver++(2S) (Lu et al., 2022, arXiv:2211.01095, algorithm 1 along the SDE; diffusers'
//! `DPMSolverSinglestepScheduler` with `sde-dpmsolver++`, second order, midpoint, and
//! `lower_order_final`, without which it could not end at sigma 0). Steps come in pairs: the
//! first goes to the middle, the second from where the first began, with the change it saw.

use super::{
    leap::Leap,
    plan::{Move, Run},
};

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    let has_begun = i % 2 == 1 && i != run.first;
    if !has_begun || run.is_last(i) {
        let Leap { keep, gain, noise, .. } = Leap::sde(run.level(i), run.level(i + 1));
        return Move::first_order(keep, gain).with_noise(noise);
    }
    let (begin, middle) = (run.level(i - 1), run.level(i));
    let Leap { length, keep, gain, noise } = Leap::sde(begin, run.level(i + 1));
    let ratio = (middle.lambda() - begin.lambda()) / length;
    let change = 0.5 * gain / ratio;
    Move::to(vec![0.0, keep], vec![change, gain - change]).with_noise(noise)
}
