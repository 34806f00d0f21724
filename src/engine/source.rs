//! Images that are drawn over: from a request's files to latents, masks and the first noise.
//!
//! Numbers are drawn in the order in which the reference's pipelines draw them
//! (`StableDiffusionImg2ImgPipeline`, `StableDiffusionInpaintPipeline`).

use std::slice;

use super::{
    DrawError, Models,
    model::{LATENT_CHANNELS, Moments},
    nn::{self, Tensor},
    noise::Generator,
    sampling,
    scheduler::Level,
};
use crate::{
    image,
    request::{GenerateRequest, RequestField, Source},
};

/// A mask's values from here on are drawn anew.
const WHITE: u8 = 128;

/// The request's source, decoded and encoded: the same for all of its images.
pub(super) struct Prepared {
    /// Of the image that is drawn over.
    image: Option<Moments>,
    mask: Option<Mask>,
    /// Whether the UNet itself is told what is masked.
    inpaints: bool,
    latent_scale: f64,
    /// Height and width of the latents.
    size: [usize; 2],
}

struct Mask {
    /// 1 where it is drawn anew, `[1, h, w, 1]`.
    mask: Tensor,
    /// Of the image with a hole where it is drawn anew.
    rest: Moments,
}

/// Where the denoising of one image begins, and what stays of its source.
pub(super) struct Start {
    pub latents: Tensor,
    /// For a UNet that is told what is masked: the mask and the rest's latents, `[1, h, w, 5]`.
    pub told: Option<Tensor>,
    known: Option<Known>,
}

/// What a UNet that knows nothing of masks must be reminded of after each step.
struct Known {
    mask: Tensor,
    latents: Tensor,
    noise: Tensor,
}

/// Whether noise is all that the denoising begins with.
fn is_from_noise(request: &GenerateRequest) -> bool {
    request
        .source
        .as_ref()
        .is_none_or(|source| source.mask.is_some() && source.denoise_strength >= 1.0)
}

/// How much of the schedule is run: `None` is all of it, from noise.
pub(super) fn strength(request: &GenerateRequest) -> Option<f32> {
    let source = request.source.as_ref().filter(|_| !is_from_noise(request))?;
    Some(source.denoise_strength)
}

impl Prepared {
    pub fn of(
        models: &Models,
        latent_scale: f64,
        request: &GenerateRequest,
    ) -> Result<Self, DrawError> {
        let inpaints = models.unet.in_channels() != LATENT_CHANNELS;
        let [h, w] = [request.size.height, request.size.width].map(|side| side as usize);
        let scale = models.vae.scale();
        let source = request.source.as_ref();
        let pixels =
            source.map(|source| image::decode_rgb(&source.image.0, request.size)).transpose();
        let pixels =
            pixels.map_err(|error| DrawError::Source { field: RequestField::InitImage, error })?;
        let mask = source.and_then(|source: &Source| source.mask.as_ref());
        let mask = mask.map(|mask| image::decode_mask(&mask.0, request.size)).transpose();
        let mask =
            mask.map_err(|error| DrawError::Source { field: RequestField::MaskImage, error })?;
        // A UNet that is told what is masked is told so always: without a mask, it is everything.
        let mask = mask.or_else(|| inpaints.then(|| vec![u8::MAX; h * w]));
        let image = match &pixels {
            Some(pixels) => {
                Some(encode(models, pixels.iter().map(|byte| colour(*byte)).collect(), [h, w])?)
            }
            None => None,
        };
        let mask = match mask {
            Some(mask) => {
                let pixels = pixels.unwrap_or_else(|| vec![0; 3 * h * w]);
                let at =
                    |(i, byte): (usize, &u8)| if mask[i / 3] < WHITE { colour(*byte) } else { 0.0 };
                let rest = pixels.iter().enumerate().map(at).collect();
                Some(Mask {
                    mask: shrink(&mask, [h, w], scale)?,
                    rest: encode(models, rest, [h, w])?,
                })
            }
            None => None,
        };
        Ok(Self { image, mask, inpaints, latent_scale, size: [h / scale, w / scale] })
    }

    /// Draws what one image needs of random numbers and begins it at that level of noise.
    pub fn start(
        &self,
        request: &GenerateRequest,
        level: Level,
        generator: &mut Generator,
    ) -> nn::Result<Start> {
        let [h, w] = self.size;
        let from_noise = is_from_noise(request);
        let image = match &self.image {
            // It is not needed, and no number is drawn for it.
            Some(_) if self.inpaints && from_noise => None,
            Some(image) => Some(self.sample(image, generator)?),
            None => None,
        };
        let noise = sampling::noise(slice::from_mut(generator), [h, w, LATENT_CHANNELS])?;
        let latents = match &image {
            Some(image) if !from_noise => sampling::noised(image, &noise, level)?,
            _ => noise.scale(level.noise)?,
        };
        let (mut told, mut known) = (None, None);
        if let Some(Mask { mask, rest }) = &self.mask {
            // Drawn for a UNet without use for it, too.
            let rest = self.sample(rest, generator)?;
            match image {
                _ if self.inpaints => told = Some(Tensor::cat(&[mask, &rest], 3)?),
                Some(latents) => known = Some(Known { mask: mask.clone(), latents, noise }),
                None => {}
            }
        }
        Ok(Start { latents, told, known })
    }

    fn sample(&self, moments: &Moments, generator: &mut Generator) -> nn::Result<Tensor> {
        let [h, w] = self.size;
        let noise = sampling::noise(slice::from_mut(generator), [h, w, LATENT_CHANNELS])?;
        moments.mean.add(&noise.mul(&moments.deviation)?)?.scale(self.latent_scale)
    }
}

impl Start {
    /// Puts back what is not to be drawn anew, at that level of noise.
    pub fn keep_known(&self, latents: Tensor, level: Level) -> nn::Result<Tensor> {
        let Some(Known { mask, latents: known, noise }) = &self.known else { return Ok(latents) };
        let known = sampling::noised(known, noise, level)?;
        // (1 - mask)·known + mask·latents
        let mask = Tensor::cat(&[mask; LATENT_CHANNELS], 3)?;
        known.add(&mask.mul(&latents.add(&known.scale(-1.0)?)?)?)
    }
}

fn encode(models: &Models, pixels: Vec<f32>, [h, w]: [usize; 2]) -> Result<Moments, DrawError> {
    models.vae.encode(&Tensor::from_vec(pixels, &[1, h, w, 3])?)?.ok_or(DrawError::NoEncoder)
}

fn colour(byte: u8) -> f32 {
    f32::from(byte) / 255.0 * 2.0 - 1.0
}

/// A mask in the latents' size: of each square its upper left pixel.
fn shrink(mask: &[u8], [h, w]: [usize; 2], scale: usize) -> nn::Result<Tensor> {
    let rows = (0..h / scale).flat_map(|y| (0..w / scale).map(move |x| (y * w + x) * scale));
    let mask = rows.map(|at| f32::from(u8::from(mask[at] >= WHITE))).collect();
    Tensor::from_vec(mask, &[1, h / scale, w / scale, 1])
}
