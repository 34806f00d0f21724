//! PNG, JPEG and WebP files → pixels, as the reference's `load_image` and `VaeImageProcessor`
//! make them of a file: turned as its EXIF says, RGB with any transparency dropped, then resized.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};

use super::resize::resize;
use crate::modes::Size;

/// A file may describe far more than it holds; beyond this nothing is unpacked. A photograph of
/// 50 million pixels fits.
const MAX_PIXELS: u64 = 64 << 20;
const MAX_SIDE: u32 = 16 << 10;
/// [`MAX_PIXELS`] of the deepest kind: four channels of 16 bits.
const MAX_BYTES: u64 = 8 * MAX_PIXELS;

/// Why a file is not a usable image. Says so without a subject: "is not …".
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("is not a PNG, JPEG or WebP file")]
    Unknown,
    #[error(
        "is an image of {width}x{height} pixels; {MAX_SIDE} on a side and {MAX_PIXELS} together are the most"
    )]
    TooLarge { width: u32, height: u32 },
    #[error("is a damaged image: {0}")]
    Damaged(#[source] ImageError),
}

/// Width and height of an image in pixels. Reads it to its end: what this accepts can be decoded.
pub fn dimensions(file: &[u8]) -> Result<(u32, u32), DecodeError> {
    decode(file).map(|image| (image.width(), image.height()))
}

/// An image: rows top to bottom, three bytes a pixel.
pub struct Decoded {
    pub width: u32,
    pub height: u32,
    pub bytes: Vec<u8>,
}

/// The image in the size that it has.
pub fn decode_as_it_is(file: &[u8]) -> Result<Decoded, DecodeError> {
    let image = decode(file)?.into_rgb8();
    let (width, height) = image.dimensions();
    Ok(Decoded { width, height, bytes: image.into_raw() })
}

/// The image in that size: rows top to bottom, three bytes a pixel.
pub fn decode_rgb(file: &[u8], size: Size) -> Result<Vec<u8>, DecodeError> {
    let image = decode(file)?.into_rgb8();
    let from = image.dimensions();
    Ok(resize::<3>(image.into_raw(), from, (size.width, size.height)))
}

/// The mask in that size: rows top to bottom, one byte a pixel, its lightness (ITU-R 601-2) in
/// PIL's integers. Resized before it is made grey, as the reference does.
pub fn decode_mask(file: &[u8], size: Size) -> Result<Vec<u8>, DecodeError> {
    let rgb = decode_rgb(file, size)?;
    let lightness = |pixel: &[u8]| {
        let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
        ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
    };
    Ok(rgb.chunks_exact(3).map(lightness).collect())
}

fn decode(file: &[u8]) -> Result<DynamicImage, DecodeError> {
    let mut reader = ImageReader::new(Cursor::new(file))
        .with_guessed_format()
        .map_err(|error| DecodeError::Damaged(error.into()))?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| match error {
        ImageError::Unsupported(_) => DecodeError::Unknown,
        other => DecodeError::Damaged(other),
    })?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if width > MAX_SIDE || height > MAX_SIDE || pixels > MAX_PIXELS {
        return Err(DecodeError::TooLarge { width, height });
    }
    let orientation = decoder.orientation().map_err(DecodeError::Damaged)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(DecodeError::Damaged)?;
    image.apply_orientation(orientation);
    Ok(image)
}

#[cfg(test)]
mod tests;
