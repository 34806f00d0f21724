//! From a request to images: encode the text, denoise latents, decode them.

use std::{
    ops::ControlFlow,
    slice,
    time::{Duration, Instant},
};

use super::{
    DrawError, Drawn, Models, Step,
    checkpoint::{Facts, Family},
    conditioning::{Conditioned, Remembered, condition},
    model::{Told, UNet},
    nn::{self, Pace, Tensor},
    noise::Generator,
    preview::Glimpse,
    sampling::Sampler,
    scheduler::{self, Level, Plan, Sampling},
    source::{self, Prepared},
};
use crate::{modes::Size, request::GenerateRequest};

/// The smallest that networks of three halvings, behind an autoencoder of three, are made for.
const PROBE_SIZE: Size = Size { width: 64, height: 64 };
/// Amidst those that models are trained with.
const PROBE_TIMESTEP: f32 = 500.0;

/// How a UNet is asked.
struct Asked<'a> {
    unet: &'a UNet,
    family: Family,
    told: &'a Told,
    /// With classifier-free guidance, and how much of its contrast is taken back.
    guidance: Option<(f64, f64)>,
}

/// Draws the request's images. `watch` is asked before the first step and after each one.
pub(super) fn draw(
    (models, facts, remembered): (&Models, &Facts, &Remembered),
    request: &GenerateRequest,
    watch: &mut dyn FnMut(Step, Option<&Glimpse<'_>>) -> ControlFlow<()>,
) -> Result<Drawn, DrawError> {
    let scheduler = request.scheduler.unwrap_or(facts.default_scheduler());
    let plan = scheduler::plan(&Sampling {
        id: scheduler,
        steps: request.steps as usize,
        spacing: request.timestep_spacing.unwrap_or(facts.default_spacing()),
        prediction: facts.prediction,
        zero_terminal_snr: facts.zero_terminal_snr,
        eta: request.eta,
        strength: source::strength(request),
    })?;

    let start = Instant::now();
    let scale = f64::from(request.guidance_scale);
    let guided = scale > 1.0 && !models.unet.takes_guidance();
    let conditioned = remembered.condition(models, facts, request, guided)?;
    let Conditioned { conditioning, truncated } = &*conditioned;
    let prepared = Prepared::of(models, facts.latent_scale, request)?;
    let encode = start.elapsed();

    let steps = (plan.steps.len() * request.n as usize) as u32;
    let mut done = 0;
    let mut report = |glimpse: Option<&Glimpse<'_>>| {
        let step = Step { step: done, steps };
        done += 1;
        if watch(step, glimpse).is_break() { Err(DrawError::Cancelled) } else { Ok(()) }
    };
    report(None)?;
    let rescale = f64::from(request.guidance_rescale);
    let guidance = guided.then_some((scale, rescale));
    let (unet, family) = (&models.unet, facts.family);
    let timesteps: Vec<f32> = plan.steps.iter().map(|step| step.timestep).collect();
    let told = unet.tell(conditioning, &timesteps)?;
    let asked = Asked { unet, family, told: &told, guidance };
    let mut drawn = Drawn {
        size: request.size,
        images: Vec::new(),
        scheduler,
        prompt_truncated: truncated.clone(),
        encode,
        denoise: Duration::ZERO,
        decode: Duration::ZERO,
    };
    for i in 0..request.n {
        let start = Instant::now();
        let generator = Generator::new(request.seed.wrapping_add(i.into()));
        let mut report = |glimpse: &Glimpse<'_>| report((i == 0).then_some(glimpse));
        let latents = denoise(&asked, &plan, &prepared, request, generator, &mut report)?;
        drawn.denoise += start.elapsed();
        let start = Instant::now();
        let latents = latents.scale(facts.latent_scale.recip())?;
        drawn.images.push(to_rgb(&models.vae.decode(&latents)?)?);
        drawn.decode += start.elapsed();
    }
    Ok(drawn)
}

/// Goes once through all that draws, at a size that costs next to nothing. Asks no scheduler: how
/// noise becomes an image is not a matter of the weights.
pub(super) fn probe(models: &Models, facts: &Facts) -> Result<(), DrawError> {
    let request = GenerateRequest { size: PROBE_SIZE, ..GenerateRequest::of("", "") };
    let Conditioned { conditioning, .. } = condition(models, facts, &request, false)?;
    let prepared = Prepared::of(models, facts.latent_scale, &request)?;
    let noise = Level { signal: 0.0, noise: 1.0 };
    let start = prepared.start(&request, noise, &mut Generator::new(0))?;
    let input = beside(start.latents.clone(), start.told.as_ref())?;
    let told = models.unet.tell(&conditioning, &[PROBE_TIMESTEP])?;
    let output = models.unet.step(&input, &told, 0)?;
    expect_finite(&output.to_vec()?)?;
    let latents = start.latents.scale(facts.latent_scale.recip())?;
    expect_finite(&models.vae.decode(&latents)?.to_vec()?)
}

/// One image's latents, from its first noise to its last step.
fn denoise(
    asked: &Asked<'_>,
    plan: &Plan,
    prepared: &Prepared,
    request: &GenerateRequest,
    mut generator: Generator,
    report: &mut dyn FnMut(&Glimpse<'_>) -> Result<(), DrawError>,
) -> Result<Tensor, DrawError> {
    let start = prepared.start(request, plan.start, &mut generator)?;
    let mut latents = start.latents.clone();
    let (mut sampler, mut pace) = (Sampler::new(plan), Pace::default());
    for (i, step) in plan.steps.iter().enumerate() {
        let input = beside(latents.scale(step.input_scale)?, start.told.as_ref())?;
        let output = asked.predict(&input, i)?;
        let next = sampler.advance(step, &latents, &output, slice::from_mut(&mut generator))?;
        pace.step(&next)?;
        report(&Glimpse {
            family: asked.family,
            latents: &latents,
            output: &output,
            denoised: step.denoised,
        })?;
        latents = start.keep_known(next, step.after)?;
    }
    Ok(latents)
}

impl Asked<'_> {
    /// The model's answer for its input at that step, with classifier-free guidance where it is asked for
    /// (Ho & Salimans, 2022, arXiv:2207.12598): both halves go through the UNet as one batch.
    fn predict(&self, input: &Tensor, step: usize) -> nn::Result<Tensor> {
        let Some((scale, rescale)) = self.guidance else {
            return self.unet.step(input, self.told, step);
        };
        let both = Tensor::cat(&[input, input], 0)?;
        let both = self.unet.step(&both, self.told, step)?;
        let (without, with) = (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?);
        let guided = with.scale(scale)?.add(&without.scale(1.0 - scale)?)?;
        if rescale == 0.0 {
            return Ok(guided);
        }
        // Part of the way to the contrast that it had without guidance (Lin et al., 2023, §3.4).
        guided.with_deviation_of(&with, rescale)
    }
}

/// Latents, and what a UNet is told beside them.
fn beside(latents: Tensor, told: Option<&Tensor>) -> nn::Result<Tensor> {
    told.map_or(Ok(latents.clone()), |told| Tensor::cat(&[&latents, told], 3))
}

/// As a byte it would be black, and nobody would know why.
fn expect_finite(numbers: &[f32]) -> Result<(), DrawError> {
    if numbers.iter().all(|x| x.is_finite()) { Ok(()) } else { Err(DrawError::NotFinite) }
}

/// -1 ..= 1 to bytes, rounded as the reference does (half to even).
fn to_rgb(image: &Tensor) -> Result<Vec<u8>, DrawError> {
    let byte = |x: &f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let numbers = image.to_vec()?;
    expect_finite(&numbers)?;
    Ok(numbers.iter().map(byte).collect())
}
