//! UniPC (Zhao et al., 2023, arXiv:2302.04867, algorithms 1 and 2 with B₂(h); diffusers'
//! `UniPCMultistepScheduler` as it is by default, second order): each call first corrects the
//! step that led to it (UniC), with the order that the step had, then makes the next (UniP).

use super::{
    Combination, dpmpp_2m,
    leap::Leap,
    plan::{Move, Run},
};

pub(super) fn step(run: &Run<'_>, i: usize) -> Move {
    let correct = (i > run.first).then(|| corrector(run, i));
    // In second order, UniP is DPM-Solver++(2M).
    Move { correct, ..dpmpp_2m::step(run, i) }
}

/// The step to the latents of call `i` anew, now that their denoised image is known too.
fn corrector(run: &Run<'_>, i: usize) -> Combination {
    let Leap { length, keep, gain, .. } = Leap::ode(run.level(i - 1), run.level(i));
    let denoised = if i - 1 == run.first {
        vec![0.5 * gain, 0.5 * gain]
    } else {
        // Where the call before the last stands, if the step goes from 0 to 1.
        let before = (run.level(i - 2).lambda() - run.level(i - 1).lambda()) / length;
        let lost = (-length).exp_m1();
        let phi_2 = -lost / length - 1.0;
        let phi_3 = -phi_2 / length - 0.5;
        // Two conditions of order for the weights of the changes until then and from there.
        let (first, second) = (phi_2 / lost, 2.0 * phi_3 / lost);
        let earlier = (first - second) / (1.0 - before);
        let now = first - earlier;
        let earlier = earlier / before;
        [now, 1.0 - earlier - now, earlier].map(|part| gain * part).to_vec()
    };
    Combination { latents: vec![0.0, keep], denoised }
}
