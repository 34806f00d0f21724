//! From a request to images: encode the text, denoise latents, decode them.

use std::{
    ops::ControlFlow,
    slice,
    time::{Duration, Instant},
};

use super::{
    DrawError, Drawn, Models, Step,
    checkpoint::Facts,
    conditioning::{Conditioned, condition},
    model::{Conditioning, UNet},
    nn::{self, Tensor},
    noise::Generator,
    sampling::Sampler,
    scheduler::{self, Plan, PlanStep, Sampling},
    source::{self, Prepared},
};
use crate::request::GenerateRequest;

/// How a UNet is asked.
struct Asked<'a> {
    unet: &'a UNet,
    conditioning: &'a Conditioning,
    /// With classifier-free guidance, and how much of its contrast is taken back.
    guidance: Option<(f64, f64)>,
}

/// Draws the request's images. `on_step` is asked before the first step and after each one.
pub(super) fn draw(
    models: &Models,
    facts: &Facts,
    request: &GenerateRequest,
    on_step: &mut dyn FnMut(Step) -> ControlFlow<()>,
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
    let Conditioned { conditioning, truncated } = condition(models, facts, request, guided)?;
    let prepared = Prepared::of(models, facts.latent_scale, request)?;
    let encode = start.elapsed();

    let steps = (plan.steps.len() * request.n as usize) as u32;
    let mut done = 0;
    let mut report = || {
        let step = Step { step: done, steps };
        done += 1;
        if on_step(step).is_break() { Err(DrawError::Cancelled) } else { Ok(()) }
    };
    report()?;
    let rescale = f64::from(request.guidance_rescale);
    let guidance = guided.then_some((scale, rescale));
    let asked = Asked { unet: &models.unet, conditioning: &conditioning, guidance };
    let mut drawn = Drawn {
        size: request.size,
        images: Vec::new(),
        scheduler,
        prompt_truncated: truncated,
        encode,
        denoise: Duration::ZERO,
        decode: Duration::ZERO,
    };
    for i in 0..request.n {
        let start = Instant::now();
        let generator = Generator::new(request.seed.wrapping_add(i.into()));
        let latents = denoise(&asked, &plan, &prepared, request, generator, &mut report)?;
        drawn.denoise += start.elapsed();
        let start = Instant::now();
        let latents = latents.scale(facts.latent_scale.recip())?;
        drawn.images.push(to_rgb(&models.vae.decode(&latents)?)?);
        drawn.decode += start.elapsed();
    }
    Ok(drawn)
}

/// One image's latents, from its first noise to its last step.
fn denoise(
    asked: &Asked<'_>,
    plan: &Plan,
    prepared: &Prepared,
    request: &GenerateRequest,
    mut generator: Generator,
    report: &mut dyn FnMut() -> Result<(), DrawError>,
) -> Result<Tensor, DrawError> {
    let start = prepared.start(request, plan.start, &mut generator)?;
    let mut latents = start.latents.clone();
    let mut sampler = Sampler::new(plan);
    for step in &plan.steps {
        let output = asked.predict(&latents, start.told.as_ref(), step)?;
        latents = sampler.advance(step, &latents, &output, slice::from_mut(&mut generator))?;
        latents = start.keep_known(latents, step.after)?;
        report()?;
    }
    Ok(latents)
}

impl Asked<'_> {
    /// The model's answer for the latents, with classifier-free guidance where it is asked for
    /// (Ho & Salimans, 2022, arXiv:2207.12598): both halves go through the UNet as one batch.
    fn predict(
        &self,
        latents: &Tensor,
        told: Option<&Tensor>,
        step: &PlanStep,
    ) -> nn::Result<Tensor> {
        let mut input = latents.scale(step.input_scale)?;
        if let Some(told) = told {
            input = Tensor::cat(&[&input, told], 3)?;
        }
        let Some((scale, rescale)) = self.guidance else {
            return self.unet.forward(&input, &[step.timestep], self.conditioning);
        };
        let both = Tensor::cat(&[&input, &input], 0)?;
        let both = self.unet.forward(&both, &[step.timestep; 2], self.conditioning)?;
        let (without, with) = (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?);
        let guided = with.scale(scale)?.add(&without.scale(1.0 - scale)?)?;
        if rescale == 0.0 {
            return Ok(guided);
        }
        let contrast = deviation(&with)? / deviation(&guided)?;
        guided.scale(rescale * contrast + 1.0 - rescale)
    }
}

/// The standard deviation of all elements, as torch's `std` has it.
fn deviation(x: &Tensor) -> nn::Result<f64> {
    let numbers = x.to_vec()?;
    let count = numbers.len() as f64;
    let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let squares: f64 = numbers.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    Ok((squares / (count - 1.0)).sqrt())
}

/// -1 ..= 1 to bytes, rounded as the reference does (half to even).
fn to_rgb(image: &Tensor) -> Result<Vec<u8>, DrawError> {
    let byte = |x: &f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let numbers = image.to_vec()?;
    // As a byte it would be black, and nobody would know why.
    if numbers.iter().any(|x| !x.is_finite()) {
        return Err(DrawError::NotFinite);
    }
    Ok(numbers.iter().map(byte).collect())
}
