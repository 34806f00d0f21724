//! From a request to an image: encode the text, denoise latents, decode them.

use std::{ops::ControlFlow, time::Instant};

use super::{
    DrawError, Drawn, Family, Step,
    model::{ClipTextEncoder, UNet, VaeDecoder},
    nn::{self, Tensor},
    noise::Generator,
    sampling::{Sampler, noise},
    scheduler::{self, PlanStep, Sampling},
    tokenizer::tokenize,
};
use crate::request::GenerateRequest;

/// Channels of the latents.
pub(super) const LATENT_CHANNELS: usize = 4;
/// Latents are this much smaller than what the autoencoder makes of an image (SD1.x).
const LATENT_SCALE: f64 = 0.18215;

/// The three networks of a checkpoint.
pub(super) struct Models {
    pub text_encoder: ClipTextEncoder,
    pub unet: UNet,
    pub vae: VaeDecoder,
}

/// Draws one image. `on_step` is asked before the first step and after each one.
pub(super) fn draw(
    models: &Models,
    family: Family,
    request: &GenerateRequest,
    on_step: &mut dyn FnMut(Step) -> ControlFlow<()>,
) -> Result<Drawn, DrawError> {
    let scheduler = request.scheduler.unwrap_or(family.default_scheduler());
    let plan = scheduler::plan(&Sampling::of(scheduler, request.steps as usize))?;
    let layers = models.text_encoder.layers();
    if request.clip_skip as usize >= layers {
        return Err(DrawError::ClipSkip { clip_skip: request.clip_skip, layers });
    }
    let mut report = |step: usize| {
        let step = Step { step: step as u32, steps: plan.steps.len() as u32 };
        if on_step(step).is_break() { Err(DrawError::Cancelled) } else { Ok(()) }
    };

    let start = Instant::now();
    let guidance = f64::from(request.guidance_scale);
    let guided = guidance > 1.0;
    let context = encode(models, request, guided)?;
    let encoded = Instant::now();

    report(0)?;
    let mut generators = [Generator::new(request.seed)];
    let [h, w] = [request.size.height, request.size.width].map(|s| s as usize / models.vae.scale());
    let mut latents = noise(&mut generators, [h, w, LATENT_CHANNELS])?.scale(plan.start.noise)?;
    let mut sampler = Sampler::new(&plan);
    for (i, step) in plan.steps.iter().enumerate() {
        let output = predict(&models.unet, &latents, step, &context, guided.then_some(guidance))?;
        latents = sampler.advance(step, &latents, &output, &mut generators)?;
        report(i + 1)?;
    }
    let denoised = Instant::now();

    let rgb = to_rgb(&models.vae.decode(&latents.scale(LATENT_SCALE.recip())?)?)?;
    Ok(Drawn {
        width: request.size.width,
        height: request.size.height,
        rgb,
        scheduler,
        encode: encoded - start,
        denoise: denoised - encoded,
        decode: denoised.elapsed(),
    })
}

/// Text embeddings `[1, 77, c]`; with guidance `[2, 77, c]`, those of the negative prompt first.
/// Layers are skipped for the prompt alone, as the reference does.
fn encode(models: &Models, request: &GenerateRequest, guided: bool) -> nn::Result<Tensor> {
    let encode = |prompt: &str, clip_skip: u32| {
        models.text_encoder.encode(&[tokenize(prompt)], clip_skip as usize)
    };
    let with = encode(&request.prompt, request.clip_skip)?;
    if !guided {
        return Ok(with);
    }
    let without = encode(request.negative_prompt.as_deref().unwrap_or_default(), 0)?;
    Tensor::cat(&[&without, &with], 0)
}

/// The model's answer for the latents, with classifier-free guidance where a scale is given
/// (Ho & Salimans, 2022, arXiv:2207.12598): both halves go through the UNet as one batch.
fn predict(
    unet: &UNet,
    latents: &Tensor,
    step: &PlanStep,
    context: &Tensor,
    guidance: Option<f64>,
) -> nn::Result<Tensor> {
    let input = latents.scale(step.input_scale)?;
    match guidance {
        None => unet.forward(&input, &[step.timestep], context),
        Some(scale) => {
            let both = Tensor::cat(&[&input, &input], 0)?;
            let both = unet.forward(&both, &[step.timestep; 2], context)?;
            let (without, with) = (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?);
            with.scale(scale)?.add(&without.scale(1.0 - scale)?)
        }
    }
}

/// -1 ..= 1 to bytes, rounded as the reference does (half to even).
fn to_rgb(image: &Tensor) -> nn::Result<Vec<u8>> {
    let byte = |x: &f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    Ok(image.to_vec()?.iter().map(byte).collect())
}
