//! DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095, algorithm 2; diffusers'
//! `DPMSolverMultistepScheduler`, second order, midpoint), with the schedule's sigmas or Karras's.

use super::{NoiseSchedule, Plan, PlanStep, TRAIN_STEPS};

pub(super) fn plan(schedule: &NoiseSchedule, steps: usize) -> Plan {
    // The reference strides as if there were one step more, and leaves the last one out.
    let timesteps = NoiseSchedule::leading(steps + 1, steps);
    solve(timesteps.map(|t| (t, schedule.sigma(t))).collect())
}

/// Sigmas spaced as in Karras et al., 2022, eq. 5 with ρ = 7, each at its nearest timestep.
pub(super) fn plan_karras(schedule: &NoiseSchedule, steps: usize) -> Plan {
    const RHO: f64 = 7.0;
    let all: Vec<f64> = (0..TRAIN_STEPS).map(|t| schedule.sigma(t)).collect();
    let (low, high) = (all[0].powf(RHO.recip()), all[TRAIN_STEPS - 1].powf(RHO.recip()));
    let spaced = (0..steps).map(|i| {
        let ramp = if steps == 1 { 0.0 } else { i as f64 / (steps - 1) as f64 };
        let sigma = (high + ramp * (low - high)).powf(RHO);
        (nearest_timestep(&all, sigma), sigma)
    });
    solve(spaced.collect())
}

/// The timestep whose log-sigma comes nearest, by linear interpolation between neighbours.
fn nearest_timestep(all: &[f64], sigma: f64) -> usize {
    let below = all.partition_point(|other| *other <= sigma).clamp(1, all.len() - 1) - 1;
    let (low, high) = (all[below].ln(), all[below + 1].ln());
    let weight = ((sigma.ln() - low) / (high - low)).clamp(0.0, 1.0);
    (below as f64 + weight).round_ties_even() as usize
}

/// One plan for given timesteps and their sigmas; after the last comes sigma 0.
fn solve(points: Vec<(usize, f64)>) -> Plan {
    let alpha_sigma = |sigma: f64| {
        let alpha = (sigma * sigma + 1.0).sqrt().recip();
        (alpha, sigma * alpha)
    };
    // λ = log(alpha/sigma) = -log(noise to signal)
    let lambda = |i: usize| -points[i].1.ln();
    let step = |i: usize| {
        let (alpha, sigma) = alpha_sigma(points[i].1);
        let (next_alpha, next_sigma) = points.get(i + 1).map_or((1.0, 0.0), |p| alpha_sigma(p.1));
        let is_last = i + 1 == points.len();
        // 1 - e^-h for the step h in λ, which is infinite at the end.
        let gain = if is_last { 1.0 } else { -(lambda(i) - lambda(i + 1)).exp_m1() };
        let history = if is_last || i == 0 {
            vec![next_alpha * gain]
        } else {
            // The last step's length in terms of this one's.
            let ratio = (lambda(i) - lambda(i - 1)) / (lambda(i + 1) - lambda(i));
            let correction = 0.5 * next_alpha * gain / ratio;
            vec![next_alpha * gain + correction, -correction]
        };
        PlanStep {
            timestep: points[i].0 as f32,
            input_scale: 1.0,
            denoised: (alpha.recip(), -sigma / alpha),
            keep: next_sigma / sigma,
            history,
            noise: 0.0,
        }
    };
    Plan { init_noise_sigma: 1.0, steps: (0..points.len()).map(step).collect() }
}
