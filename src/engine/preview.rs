//! What latents look like, without the autoencoder: a pixel of a preview is a sum of a latent's
//! channels. Small and cheap, and blurred; the colours are about right.
//!
//! The factors are least-squares fits of decoded images, as ComfyUI uses them for its previews
//! (`comfy/latent_formats.py`, `latent_rgb_factors`); they go with latents as the UNet has them.

use super::{
    checkpoint::Family,
    model::LATENT_CHANNELS,
    nn::{self, Tensor},
};

/// The longest side of a preview, in pixels.
pub const MAX_SIDE: usize = 128;

/// Rows top to bottom, three bytes a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
}

/// What can be seen of an image that is being drawn, after a step. It costs something only when it
/// is looked at.
pub struct Glimpse<'a> {
    pub(super) family: Family,
    /// Before the step, and what the UNet said of them; each `[1, h, w, 4]`.
    pub(super) latents: &'a Tensor,
    pub(super) output: &'a Tensor,
    /// How much of both makes the image as the model sees it coming.
    pub(super) denoised: (f64, f64),
}

impl Glimpse<'_> {
    pub fn preview(&self) -> nn::Result<Preview> {
        let (of_latents, of_output) = self.denoised;
        let denoised = self.latents.scale(of_latents)?.add(&self.output.scale(of_output)?)?;
        let [_, height, width, _] = denoised.dims4()?;
        Ok(preview(&denoised.to_vec()?, [height, width], LinearMap::of(self.family)))
    }
}

/// From latents to red, green and blue between -1 and 1.
struct LinearMap {
    factors: [[f32; 3]; LATENT_CHANNELS],
    bias: [f32; 3],
}

impl LinearMap {
    /// Families with one autoencoder have one.
    fn of(family: Family) -> Self {
        match family {
            Family::Sd1 | Family::Sd2 => Self {
                factors: [
                    [0.3512, 0.2297, 0.3227],
                    [0.3250, 0.4974, 0.2350],
                    [-0.2829, 0.1762, 0.2721],
                    [-0.2120, -0.2616, -0.7177],
                ],
                bias: [0.0; 3],
            },
            Family::Sdxl | Family::SdxlRefiner => Self {
                factors: [
                    [0.3651, 0.4232, 0.4341],
                    [-0.2533, -0.0042, 0.1068],
                    [0.1076, 0.1111, -0.0362],
                    [-0.3165, -0.2492, -0.2188],
                ],
                bias: [0.1084, -0.0175, -0.0011],
            },
        }
    }

    fn rgb(&self, latent: [f32; LATENT_CHANNELS]) -> [u8; 3] {
        std::array::from_fn(|colour| {
            let parts = latent.iter().zip(&self.factors).map(|(x, factors)| x * factors[colour]);
            let value = parts.sum::<f32>() + self.bias[colour];
            ((value + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0) as u8
        })
    }
}

/// Of latents `[h, w, 4]`; where they are larger than a preview, of the means of squares.
fn preview(latents: &[f32], [height, width]: [usize; 2], map: LinearMap) -> Preview {
    let side = height.max(width).div_ceil(MAX_SIDE).max(1);
    let (rows, columns) = (height.div_ceil(side), width.div_ceil(side));
    let mean = |row: usize, column: usize| {
        let (mut sum, mut count) = ([0.0; LATENT_CHANNELS], 0.0);
        for y in row * side..((row + 1) * side).min(height) {
            for x in column * side..((column + 1) * side).min(width) {
                let at = (y * width + x) * LATENT_CHANNELS;
                sum.iter_mut().zip(&latents[at..]).for_each(|(sum, x)| *sum += x);
                count += 1.0;
            }
        }
        sum.map(|sum| sum / count)
    };
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let rgb = places.flat_map(|(row, column)| map.rgb(mean(row, column))).collect();
    Preview { width: columns as u32, height: rows as u32, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENTS: [f32; 12] = [0.5, -1.0, 0.25, 0.75, -0.3, 0.6, 1.2, -0.9, -3.0, -2.0, 1.0, 0.5];

    /// Made with torch by the formula of ComfyUI's previewer: `linear(x, factors.T, bias)`, then
    /// `((x + 1) / 2).clamp(0, 1).mul(0xFF)` to bytes.
    #[test]
    fn colours_are_those_of_the_reference() {
        for (family, rgb) in [
            (Family::Sd1, GOLDEN_SD),
            (Family::Sd2, GOLDEN_SD),
            (Family::Sdxl, GOLDEN_SDXL),
            (Family::SdxlRefiner, GOLDEN_SDXL),
        ] {
            let preview = preview(&LATENTS, [1, 3], LinearMap::of(family));
            assert_eq!((preview.width, preview.height), (3, 1));
            assert_eq!(preview.rgb, rgb, "{family:?}");
        }
    }

    const GOLDEN_SD: [u8; 9] = [79, 59, 58, 119, 213, 255, 0, 0, 0];
    const GOLDEN_SDXL: [u8; 9] = [170, 132, 119, 160, 154, 138, 59, 0, 0];

    #[test]
    fn previews_are_small_and_have_the_images_shape() {
        for (size, expected) in [
            ([1, 1], (1, 1)),
            ([64, 64], (64, 64)),
            ([128, 96], (96, 128)),
            ([129, 64], (32, 65)),
            ([256, 512], (128, 64)),
            ([8, 2048], (128, 1)),
        ] {
            let latents: Vec<f32> = vec![0.0; size[0] * size[1] * LATENT_CHANNELS];
            let preview = preview(&latents, size, LinearMap::of(Family::Sd1));
            assert_eq!((preview.width, preview.height), expected, "{size:?}");
            assert_eq!(preview.rgb.len() as u32, 3 * preview.width * preview.height);
            assert!(preview.rgb.iter().all(|byte| *byte == 127), "grey");
        }
    }

    #[test]
    fn a_pixel_of_a_large_image_is_the_mean_of_a_square() {
        // Columns in turns of 1 and -1 in every channel.
        let latents: Vec<f32> = (0..256 * 256 * LATENT_CHANNELS)
            .map(|i| if (i / LATENT_CHANNELS).is_multiple_of(2) { 1.0 } else { -1.0 })
            .collect();
        let preview = preview(&latents, [256, 256], LinearMap::of(Family::Sd1));
        assert!(preview.rgb.iter().all(|byte| *byte == 127), "grey");
    }

    #[test]
    fn numbers_out_of_range_are_black_and_no_panic() {
        let preview =
            preview(&[f32::NAN, 0.0, f32::INFINITY, 0.0], [1, 1], LinearMap::of(Family::Sd1));
        assert_eq!(preview.rgb, [0; 3]);
    }
}
