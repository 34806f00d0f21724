//! Which of the training's timesteps a sampler visits.

use super::TRAIN_STEPS;
use crate::modes::Spacing;

/// The last timestep of the training.
const LAST: f64 = (TRAIN_STEPS - 1) as f64;

/// That many timesteps, descending (Lin et al., 2023, arXiv:2305.08891, table 2). They fall
/// between the training's own only where they are evenly spaced.
pub(super) fn spaced(spacing: Spacing, steps: usize) -> Vec<f64> {
    match spacing {
        Spacing::Leading => {
            let stride = TRAIN_STEPS / steps;
            (0..steps).rev().map(|i| (i * stride + 1) as f64).collect()
        }
        Spacing::Linspace => {
            let stride = LAST / (steps - 1).max(1) as f64;
            let evenly = |i| if i > 0 && i == steps - 1 { LAST } else { i as f64 * stride };
            (0..steps).rev().map(evenly).collect()
        }
        Spacing::Trailing => {
            let all = TRAIN_STEPS as f64;
            // As `numpy.arange` counts, down to how it rounds.
            let stride = (all - all / steps as f64) - all;
            (0..steps).map(|i| (all + i as f64 * stride).round_ties_even() - 1.0).collect()
        }
    }
}

/// The same, each at the nearest timestep of the training.
pub(super) fn whole(spacing: Spacing, steps: usize) -> Vec<f64> {
    spaced(spacing, steps).into_iter().map(f64::round_ties_even).collect()
}

/// Whole timesteps that are spaced as if there were one more, which the last step leads to.
pub(super) fn before_zero(spacing: Spacing, steps: usize) -> Vec<f64> {
    match spacing {
        Spacing::Trailing => whole(spacing, steps),
        Spacing::Leading | Spacing::Linspace => {
            let mut timesteps = whole(spacing, steps + 1);
            timesteps.truncate(steps);
            timesteps
        }
    }
}

/// Noise to signal from the highest to the lowest (Karras et al., 2022, arXiv:2206.00364, eq. 5
/// with ρ = 7).
pub(super) fn karras(lowest: f64, highest: f64, steps: usize) -> impl Iterator<Item = f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (lowest.powf(RHO.recip()), highest.powf(RHO.recip()));
    (0..steps).map(move |i| {
        let ramp = i as f64 / (steps - 1).max(1) as f64;
        (high + ramp * (low - high)).powf(RHO)
    })
}

/// The timestep whose log-sigma comes nearest, by linear interpolation between neighbours. Their
/// logarithms are f32's, as in the reference, which decides where two are almost as near.
pub(super) fn nearest_timestep(sigmas: &[f64], sigma: f64) -> usize {
    let below = sigmas.partition_point(|other| *other <= sigma).clamp(1, sigmas.len() - 1) - 1;
    let [low, high] = [sigmas[below], sigmas[below + 1]].map(|sigma| sigma.ln() as f32);
    let weight = ((sigma.ln() - f64::from(low)) / f64::from(high - low)).clamp(0.0, 1.0);
    (below as f64 + weight).round_ties_even() as usize
}
