//! Ancestral sampling with Euler steps (k-diffusion's `sample_euler_ancestral`; diffusers'
//! `EulerAncestralDiscreteScheduler`): each step goes a little too far down and adds noise.

use super::{NoiseSchedule, Plan, init_noise_sigma, sigma_step, sigmas};

pub(super) fn plan(schedule: &NoiseSchedule, steps: usize) -> Plan {
    let sigmas = sigmas(schedule, steps);
    let steps = sigmas.iter().map(|(t, sigma, next)| {
        let (variance, next_variance) = (sigma * sigma, next * next);
        let up = (next_variance * (variance - next_variance) / variance).sqrt();
        let down = (next_variance - up * up).max(0.0).sqrt();
        sigma_step(*t, *sigma, down, up)
    });
    Plan { init_noise_sigma: init_noise_sigma(&sigmas), steps: steps.collect() }
}
