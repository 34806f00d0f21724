//! Each scheduler's plan: its timesteps and sigmas, and where it leads around a model that is a formula.

use std::collections::{BTreeMap, VecDeque};

use diffused::{
    engine::{
        diffusion::advance,
        nn::Tensor,
        noise::Generator,
        scheduler::{Plan, plan},
    },
    modes::SchedulerId,
};
use serde::Deserialize;

use crate::golden::{assert_close, json};

#[derive(Deserialize)]
struct Golden {
    seed: u64,
    shape: [usize; 4],
    schedulers: BTreeMap<SchedulerId, Scheduler>,
}

#[derive(Deserialize)]
struct Scheduler {
    plans: Vec<GoldenPlan>,
    walks: Vec<Walk>,
}

#[derive(Deserialize)]
struct GoldenPlan {
    steps: usize,
    timesteps: Vec<f32>,
    init_noise_sigma: f32,
    sigmas: Option<Vec<f32>>,
}

#[derive(Deserialize)]
struct Walk {
    steps: usize,
    start: Vec<f32>,
    latents: Vec<Vec<f32>>,
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
            let plan = plan(id, golden.steps).unwrap();
            let what = format!("{id} in {} steps", golden.steps);
            let timesteps: Vec<f32> = plan.steps.iter().map(|step| step.timestep).collect();
            assert_eq!(timesteps, golden.timesteps, "{what}");
            let sigma = [plan.init_noise_sigma as f32];
            assert_close(&what, &sigma, &[golden.init_noise_sigma], 1e-5);
            if let Some(sigmas) = golden.sigmas {
                assert_close(&what, &sigmas_of(&plan), &sigmas, 1e-5);
            }
        }
    }
}

/// Noise to signal at each step, read off what a step makes of the model's output.
fn sigmas_of(plan: &Plan) -> Vec<f32> {
    let sigmas = plan.steps.iter().map(|step| -step.denoised.1 as f32);
    sigmas.chain([0.0]).collect()
}

#[test]
fn plans_lead_where_the_reference_goes() {
    let golden = golden();
    let [_, channels, h, w] = golden.shape;
    for (id, scheduler) in golden.schedulers {
        for walk in scheduler.walks {
            let plan = plan(id, walk.steps).unwrap();
            let mut generator = Generator::new(golden.seed);
            let noise = generator.randn(walk.start.len());
            let start: Vec<f32> = noise.iter().map(|x| x * plan.init_noise_sigma as f32).collect();
            assert_close("start", &start, &walk.start, 1e-6);
            // Our latents are channels last; the walk's elements are numbered channels first.
            let place = |i: usize| i % (h * w) * channels + i / (h * w);
            let turn = |x: &[f32]| {
                let mut turned = vec![0.0; x.len()];
                x.iter().enumerate().for_each(|(i, x)| turned[place(i)] = *x);
                Tensor::from_vec(turned, &[1, h, w, channels]).unwrap()
            };
            let (mut latents, mut history) = (turn(&start), VecDeque::new());
            for (i, (step, expected)) in plan.steps.iter().zip(&walk.latents).enumerate() {
                let waves: Vec<f32> =
                    (0..start.len()).map(|k| 0.3 * ((i + k) as f32).sin()).collect();
                let seen = latents.scale(step.input_scale).unwrap();
                let output = seen.scale(0.1).unwrap().add(&turn(&waves)).unwrap();
                latents = advance(latents, &output, step, &mut history, &mut generator).unwrap();
                let what = format!("{id}, step {} of {}", i + 1, walk.steps);
                let expected = turn(expected).to_vec().unwrap();
                assert_close(&what, &latents.to_vec().unwrap(), &expected, 2e-5);
            }
            assert_eq!(plan.steps.len(), walk.latents.len());
        }
    }
}
