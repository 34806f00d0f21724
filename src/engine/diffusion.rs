//! From a request to an image: encode the text, denoise latents, decode them.

use std::{collections::VecDeque, ops::ControlFlow, time::Instant};

use super::{
    DrawError, Drawn, Family, Step,
    model::{ClipTextEncoder, UNet, VaeDecoder},
    nn::{self, Tensor},
    noise::Generator,
    scheduler::{self, PlanStep},
    tokenizer::tokenize,
};
use crate::request::GenerateRequest;

/// Channels of the latents.
pub(super) const LATENT_CHANNELS: usize = 4;
/// Latents are this much smaller than what the autoencoder makes of an image (SD1.x).
const LATENT_SCALE: f64 = 0.18215;

/// Denoised latents that the most far-sighted scheduler looks back on, the newest included.
const MAX_HISTORY: usize = 2;

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
    let plan = scheduler::plan(scheduler, request.steps as usize)?;
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
    let mut generator = Generator::new(request.seed);
    let [h, w] = [request.size.height, request.size.width].map(|s| s as usize / models.vae.scale());
    let mut latents = noise(&mut generator, h, w)?.scale(plan.init_noise_sigma)?;
    let mut history = VecDeque::new();
    for (i, step) in plan.steps.iter().enumerate() {
        let output = predict(&models.unet, &latents, step, &context, guided.then_some(guidance))?;
        latents = advance(latents, &output, step, &mut history, &mut generator)?;
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

/// Executes one step of any scheduler's plan: from latents and the model's output for them to the
/// next latents. `history` is the caller's to keep between steps, empty at first.
pub fn advance(
    latents: Tensor,
    output: &Tensor,
    step: &PlanStep,
    history: &mut VecDeque<Tensor>,
    generator: &mut Generator,
) -> nn::Result<Tensor> {
    let (of_latents, of_output) = step.denoised;
    history.push_front(latents.scale(of_latents)?.add(&output.scale(of_output)?)?);
    let mut next = latents.scale(step.keep)?;
    for (denoised, weight) in history.iter().zip(&step.history) {
        next = next.add(&denoised.scale(*weight)?)?;
    }
    history.truncate(MAX_HISTORY);
    if step.noise != 0.0 {
        let [_, h, w, _] = next.dims4()?;
        next = next.add(&noise(generator, h, w)?.scale(step.noise)?)?;
    }
    Ok(next)
}

/// Noise as the reference draws it, channel by channel: `[1, h, w, 4]`.
fn noise(generator: &mut Generator, h: usize, w: usize) -> nn::Result<Tensor> {
    let planes = generator.randn(LATENT_CHANNELS * h * w);
    let pixels = (0..h * w).flat_map(|at| (0..LATENT_CHANNELS).map(move |c| c * h * w + at));
    Tensor::from_vec(pixels.map(|i| planes[i]).collect(), &[1, h, w, LATENT_CHANNELS])
}

/// -1 ..= 1 to bytes, rounded as the reference does (half to even).
fn to_rgb(image: &Tensor) -> nn::Result<Vec<u8>> {
    let byte = |x: &f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    Ok(image.to_vec()?.iter().map(byte).collect())
}
