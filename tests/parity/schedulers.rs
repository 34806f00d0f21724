//! Each scheduler's plan: its timesteps and sigmas, and where it leads around a model that is a formula.

use std::collections::BTreeMap;

use diffused::{
    engine::{
        nn::Tensor,
        noise::Generator,
        sampling::{Sampler, noise, noised},
        scheduler::{Error, Plan, Sampling, plan},
    },
    modes::{Prediction, SchedulerId, Spacing},
};
use serde::Deserialize;

use crate::golden::{assert_close, json};

#[derive(Deserialize)]
struct Golden {
    seeds: Vec<u64>,
    shape: [usize; 4],
    schedulers: BTreeMap<SchedulerId, Scheduler>,
}

#[derive(Deserialize)]
struct Scheduler {
    can_rescale: bool,
    plans: Vec<GoldenPlan>,
    walks: Vec<Walk>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Settings {
    steps: usize,
    spacing: Option<Spacing>,
    prediction: Option<Prediction>,
    #[serde(default)]
    zero_terminal_snr: bool,
    #[serde(default)]
    eta: f32,
    strength: Option<f32>,
}

impl Settings {
    fn of(self, id: SchedulerId) -> Sampling {
        Sampling {
            spacing: self.spacing.unwrap_or(Spacing::Leading),
            prediction: self.prediction.unwrap_or(Prediction::Epsilon),
            zero_terminal_snr: self.zero_terminal_snr,
            eta: self.eta,
            strength: self.strength,
            ..Sampling::of(id, self.steps)
        }
    }
}

#[derive(Deserialize)]
struct GoldenPlan {
    #[serde(flatten)]
    settings: Settings,
    timesteps: Vec<f32>,
    init_noise_sigma: f32,
    sigmas: Option<Vec<f32>>,
}

#[derive(Deserialize)]
struct Walk {
    #[serde(flatten)]
    settings: Settings,
    start: Vec<f32>,
    latents: Vec<(usize, Vec<f32>)>,
    after: Option<Vec<(f32, f32)>>,
}

fn golden() -> Golden {
    let golden: Golden = json("schedulers.json");
    assert_eq!(golden.schedulers.len(), SchedulerId::NAMES.len());
    golden
}

#[test]
fn plans_have_the_references_timesteps_and_sigmas() {
    for (id, golden) in golden().schedulers {
        for golden in golden.plans {
            let plan = plan(&golden.settings.of(id)).unwrap();
            let what = format!("{id}, {:?}", golden.settings);
            let timesteps: Vec<f32> = plan.steps.iter().map(|step| step.timestep).collect();
            assert_eq!(timesteps, golden.timesteps, "{what}");
            let sigma = [plan.start.noise as f32];
            assert_close(&what, &sigma, &[golden.init_noise_sigma], 1e-5);
            let Some(sigmas) = golden.sigmas else { continue };
            let found = sigmas_of(&plan);
            assert_eq!(found.len(), sigmas.len(), "{what}");
            for (found, expected) in found.into_iter().zip(sigmas) {
                // Each by itself: the last of them are 100,000 times smaller than the first.
                assert_close(&what, &[found], &[expected], 1e-5);
            }
        }
    }
}

/// Noise to signal before the first step and after each one, as far as the plan says it: read off
/// what the first makes of the model's output, and off where each leads.
fn sigmas_of(plan: &Plan) -> Vec<f32> {
    let first = plan.steps[0].input_scale;
    let (of_latents, of_output) = plan.steps[0].denoised;
    // Of v: cos φ·input_scale and -sin φ; of ε: 1/signal and -noise/signal.
    let sigma = if of_latents < first { of_output / of_latents * first } else { of_output };
    let rest = plan.steps.iter().map(|step| step.after.noise / step.after.signal);
    [-sigma].into_iter().chain(rest).map(|sigma| sigma as f32).collect()
}

#[test]
fn plans_lead_where_the_reference_goes() {
    let golden = golden();
    for (id, scheduler) in &golden.schedulers {
        for walk in &scheduler.walks {
            golden.walk(*id, walk);
        }
    }
}

impl Golden {
    fn walk(&self, id: SchedulerId, walk: &Walk) {
        let plan = plan(&walk.settings.of(id)).unwrap();
        let what = format!("{id}, {:?}", walk.settings);
        let [_, channels, h, w] = self.shape;
        let count = self.shape.iter().product();
        let mut generators: Vec<_> = self.seeds.iter().map(|seed| Generator::new(*seed)).collect();
        let noise = noise(&mut generators, [h, w, channels]).unwrap();
        let image = self.turned((0..count).map(|k| 2.0 * (k as f32).cos()));
        let mut latents = noised(&image, &noise, plan.start).unwrap();
        let close = |at: &str, latents: &Tensor, expected: &[f32], tolerance| {
            let expected = self.turned(expected.iter().copied()).to_vec().unwrap();
            assert_close(
                &format!("{what}, {at}"),
                &latents.to_vec().unwrap(),
                &expected,
                tolerance,
            );
        };
        close("start", &latents, &walk.start, 1e-6);
        let mut sampler = Sampler::new(&plan);
        let mut expected = walk.latents.iter().peekable();
        for (i, step) in plan.steps.iter().enumerate() {
            let waves = self.turned((0..count).map(|k| 0.3 * ((i + k) as f32).sin()));
            let seen = latents.scale(step.input_scale).unwrap();
            let output = seen.scale(0.1).unwrap().add(&waves).unwrap();
            latents = sampler.advance(step, &latents, &output, &mut generators).unwrap();
            if let Some((_, expected)) = expected.next_if(|(at, _)| *at == i) {
                close(&format!("step {i}"), &latents, expected, 2e-5);
            }
        }
        assert!(expected.next().is_none(), "{what}: {} steps", plan.steps.len());
        assert_eq!(walk.latents.last().unwrap().0 + 1, plan.steps.len(), "{what}");
        if let Some(after) = &walk.after {
            let levels = plan.steps.iter().map(|step| step.after);
            let found: Vec<f32> = levels
                .take(plan.steps.len() - 1)
                .flat_map(|level| [level.signal as f32, level.noise as f32])
                .collect();
            let expected: Vec<f32> =
                after.iter().flat_map(|(signal, noise)| [*signal, *noise]).collect();
            assert_close(&format!("{what}, after"), &found, &expected, 1e-6);
        }
    }

    /// The walk's elements are numbered channels first; ours are channels last.
    fn turned(&self, elements: impl Iterator<Item = f32>) -> Tensor {
        let [images, channels, h, w] = self.shape;
        let mut turned = vec![0.0; images * channels * h * w];
        for (i, x) in elements.enumerate() {
            let (image, channel, pixel) =
                (i / (channels * h * w), i / (h * w) % channels, i % (h * w));
            turned[(image * h * w + pixel) * channels + channel] = x;
        }
        Tensor::from_vec(turned, &[images, h, w, channels]).unwrap()
    }
}

#[test]
fn noise_ends_in_nothing_else_where_the_reference_can_do_it() {
    for (id, golden) in golden().schedulers {
        let sampling =
            Sampling { zero_terminal_snr: true, prediction: Prediction::V, ..Sampling::of(id, 4) };
        match plan(&sampling) {
            Ok(_) => assert!(golden.can_rescale, "{id}"),
            Err(error) => {
                assert_eq!(error, Error::NoZeroTerminalSnr { id });
                assert!(!golden.can_rescale, "{id}");
            }
        }
    }
}
