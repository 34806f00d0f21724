//! Euler's method on the probability-flow ODE (Karras et al., 2022, arXiv:2206.00364, algorithm 1
//! without churn; diffusers' `EulerDiscreteScheduler`).

use super::{NoiseSchedule, Plan, init_noise_sigma, sigma_step, sigmas};

pub(super) fn plan(schedule: &NoiseSchedule, steps: usize) -> Plan {
    let sigmas = sigmas(schedule, steps);
    let steps = sigmas.iter().map(|(t, sigma, next)| sigma_step(*t, *sigma, *next, 0.0));
    Plan { init_noise_sigma: init_noise_sigma(&sigmas), steps: steps.collect() }
}
