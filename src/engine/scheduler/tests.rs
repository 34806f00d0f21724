use std::collections::VecDeque;

use super::*;

const STEPS: std::ops::RangeInclusive<usize> = 1..=60;

fn ids() -> impl Iterator<Item = SchedulerId> {
    SchedulerId::NAMES.iter().map(|name| name.parse().unwrap())
}

/// All that can be asked of a scheduler, in as many steps as it can.
fn samplings() -> impl Iterator<Item = Sampling> {
    let spacings = [Spacing::Leading, Spacing::Linspace, Spacing::Trailing];
    let ends = [(Prediction::Epsilon, false), (Prediction::V, false), (Prediction::V, true)];
    let strengths = [None, Some(1.0), Some(0.7), Some(0.05)];
    ids().flat_map(move |id| {
        STEPS.filter(move |steps| *steps <= max_steps(id)).flat_map(move |steps| {
            spacings.into_iter().flat_map(move |spacing| {
                ends.into_iter().flat_map(move |(prediction, zero_terminal_snr)| {
                    strengths.map(|strength| Sampling {
                        id,
                        steps,
                        spacing,
                        prediction,
                        zero_terminal_snr,
                        eta: 0.5,
                        strength,
                    })
                })
            })
        })
    })
}

#[test]
fn every_plan_is_sound() {
    let mut planned = 0;
    for sampling in samplings() {
        let Ok(plan) = plan(&sampling) else {
            let left = sampling
                .strength
                .is_none_or(|strength| sampling.steps as f64 * f64::from(strength) >= 1.0 - 1e-6);
            let ends = !sampling.zero_terminal_snr || has_zero_terminal_snr(sampling.id);
            assert!(!left || !ends, "{sampling:?}");
            continue;
        };
        planned += 1;
        let numbers = plan.steps.iter().flat_map(numbers);
        assert!(
            numbers.chain([plan.start.signal, plan.start.noise]).all(f64::is_finite),
            "{sampling:?}"
        );
        let timesteps = plan.steps.iter().map(|step| step.timestep);
        assert!(timesteps.clone().is_sorted_by(|a, b| a >= b), "{sampling:?}");
        assert!(timesteps.clone().all(|t| (0.0..=999.0).contains(&t)), "{sampling:?}");
        let last = plan.steps.last().unwrap();
        assert_eq!(last.after, Level::CLEAN, "{sampling:?}");
    }
    assert!(planned > 20_000, "{planned}");
}

fn numbers(step: &PlanStep) -> Vec<f64> {
    let combinations = step.correct.iter().chain([&step.next]);
    let weights = combinations.flat_map(|sum| sum.latents.iter().chain(&sum.denoised)).copied();
    let PlanStep { input_scale, denoised, noise, after, .. } = step;
    weights
        .chain([*input_scale, denoised.0, denoised.1, *noise, after.signal, after.noise])
        .collect()
}

/// A sum of an image and of independent noises.
type Sum = Vec<f64>;

fn weighted(sums: &VecDeque<Sum>, weights: &[f64], total: &mut Sum) {
    for (sum, weight) in sums.iter().zip(weights) {
        total.resize(total.len().max(sum.len()), 0.0);
        sum.iter().zip(total.iter_mut()).for_each(|(part, total)| *total += weight * part);
    }
}

/// A model that always sees the same image in the noise leads every sampler straight to it: the
/// latents have at each step as much of it, and as much noise, as they should.
#[test]
fn a_model_that_knows_the_image_is_followed_to_it() {
    for id in ids() {
        for steps in STEPS.filter(|steps| *steps <= max_steps(id)) {
            follow(&Sampling { eta: 0.5, strength: Some(1.0), ..Sampling::of(id, steps) });
        }
    }
}

fn follow(sampling: &Sampling) {
    let plan = plan(sampling).unwrap();
    // LCM's students keep a little of the latents; the others are exact.
    let tolerance = if sampling.id == SchedulerId::Lcm { 1e-4 } else { 1e-9 };
    let mut next = vec![plan.start.signal, plan.start.noise];
    let (mut latents, mut denoised) = (VecDeque::new(), VecDeque::new());
    for (i, step) in plan.steps.iter().enumerate() {
        latents.push_front(next);
        denoised.push_front(vec![1.0]);
        if let Some(correct) = &step.correct {
            let mut corrected = Sum::new();
            weighted(&latents, &correct.latents, &mut corrected);
            weighted(&denoised, &correct.denoised, &mut corrected);
            latents[0] = corrected;
        }
        next = Sum::new();
        weighted(&latents, &step.next.latents, &mut next);
        weighted(&denoised, &step.next.denoised, &mut next);
        next.push(step.noise);
        let noise = next[1..].iter().map(|part| part * part).sum::<f64>().sqrt();
        let expected = match sampling.id {
            // They end at the training's first timestep, which has a little noise.
            SchedulerId::Ddim | SchedulerId::Pndm if i + 1 == plan.steps.len() => {
                NoiseSchedule::stable_diffusion(false).level(0)
            }
            _ => step.after,
        };
        let off = (next[0] - expected.signal).abs() + (noise - expected.noise).abs();
        assert!(
            off < tolerance,
            "{sampling:?}, step {i}: {} and {noise}, not {expected:?}",
            next[0]
        );
    }
}

#[test]
fn what_cannot_be_planned_is_said() {
    let of = |id, steps| Sampling::of(id, steps);
    let rescaled = |id, prediction| Sampling {
        zero_terminal_snr: true,
        prediction,
        spacing: Spacing::Trailing,
        ..of(id, 4)
    };
    let table = [
        (of(SchedulerId::Lcm, 51), "the scheduler 'lcm' takes at most 50 steps, not 51"),
        (of(SchedulerId::Unipc, 999), "the scheduler 'unipc' takes at most 998 steps, not 999"),
        (
            Sampling { strength: Some(0.05), ..of(SchedulerId::Euler, 10) },
            "a denoise strength of 0.05 leaves none of 10 steps; ask for more of either",
        ),
        (
            rescaled(SchedulerId::Heun, Prediction::V),
            "the scheduler 'heun' cannot end in zero signal-to-noise ratio, as this checkpoint was \
             trained to; use one of ddim, euler, euler_a, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, \
             dpmpp_2m_sde_karras, unipc, lcm",
        ),
        (
            rescaled(SchedulerId::Ddim, Prediction::Epsilon),
            "the scheduler 'ddim' begins at pure noise here, which tells a model nothing that \
             predicts noise; this checkpoint needs 'prediction: v' or another scheduler",
        ),
    ];
    for (sampling, expected) in table {
        assert_eq!(plan(&sampling).unwrap_err().to_string(), expected);
    }
}

#[test]
fn strengths_count_as_they_are_written() {
    // 0.7 is a little less in f32, and 0.29·100 in f64.
    for (steps, strength, made) in [(10, 0.7, 7), (100, 0.29, 28), (4, 1.0, 4), (3, 0.34, 1)] {
        let sampling =
            Sampling { strength: Some(strength), ..Sampling::of(SchedulerId::Ddim, steps) };
        assert_eq!(plan(&sampling).unwrap().steps.len(), made, "{steps} steps, {strength}");
    }
}
