//! Multistep latent-consistency sampling (Luo et al., 2023, arXiv:2310.04378, algorithm 3;
//! diffusers' `LCMScheduler`).

use super::{NoiseSchedule, Plan, PlanStep, TRAIN_STEPS};

/// Steps of the teacher that the student was distilled from; its timesteps are among theirs.
pub(super) const ORIGINAL_STEPS: usize = 50;
/// The boundary condition's width and the timesteps' scale in it.
const SIGMA_DATA: f64 = 0.5;
const TIMESTEP_SCALING: f64 = 10.0;

pub(super) fn plan(schedule: &NoiseSchedule, steps: usize) -> Plan {
    let stride = TRAIN_STEPS / ORIGINAL_STEPS;
    let timesteps: Vec<usize> =
        (0..steps).map(|i| (ORIGINAL_STEPS - i * ORIGINAL_STEPS / steps) * stride - 1).collect();
    let step = |i: usize| {
        let t = timesteps[i];
        let alpha = schedule.alpha(t as isize);
        let scaled = t as f64 * TIMESTEP_SCALING;
        let norm = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / norm, scaled / norm.sqrt());
        // All the way to an image, and from there back into the noise of the next timestep.
        let next = timesteps.get(i + 1).map(|next| schedule.alpha(*next as isize));
        let (signal, noise) = next.map_or((1.0, 0.0), |next| (next.sqrt(), (1.0 - next).sqrt()));
        PlanStep {
            timestep: t as f32,
            input_scale: 1.0,
            denoised: (alpha.sqrt().recip(), -((1.0 - alpha) / alpha).sqrt()),
            keep: signal * skip,
            history: vec![signal * out],
            noise,
        }
    };
    Plan { init_noise_sigma: 1.0, steps: (0..steps).map(step).collect() }
}
