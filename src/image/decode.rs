//! PNG, JPEG and WebP files → pixels, as the reference's `load_image` and `VaeImageProcessor`
//! make them of a file: turned as its EXIF says, RGB with any transparency dropped, then resized.
//!
//! [`Header`] says what decoding will take before anything is decoded, for those who must find
//! room for it first.

use std::io::{BufRead, Cursor, Seek};

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, RgbImage,
    codecs::{jpeg::JpegDecoder, webp::WebPDecoder},
    error::DecodingError,
    metadata::Orientation,
};

use super::resize::resize;
use crate::modes::Size;

mod jpeg;
mod png_rows;
mod webp;

/// A file may describe far more than it holds; beyond this nothing is unpacked. A photograph of
/// 50 million pixels fits.
const MAX_PIXELS: u64 = 64 << 20;
const MAX_SIDE: u32 = 16 << 10;

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
    #[error("is a damaged image: the file ends before the image does")]
    CutShort,
    #[error("is a damaged image: a frame has another size than the file says")]
    FrameSize,
}

/// Facts from a file's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// In pixels, once turned as EXIF says.
    pub width: u32,
    pub height: u32,
    /// The memory that [`check`] takes at its peak, beside the file.
    pub checking_bytes: u64,
}

/// Reads no pixels.
pub fn header(file: &[u8]) -> Result<Header, DecodeError> {
    let opened = Opened::new(file)?;
    let (width, height) = opened.turned_dimensions();
    Ok(Header { width, height, checking_bytes: opened.checking_bytes(file) })
}

/// Reads the image to its end: a file that passes can be decoded.
pub fn check(file: &[u8]) -> Result<(), DecodeError> {
    match Opened::new(file)?.format {
        OpenedFormat::Png(reader) => reader.check().map_err(damaged_png),
        other => other.pixels().map(drop),
    }
}

/// An image: rows top to bottom, three bytes a pixel.
pub struct Decoded {
    pub width: u32,
    pub height: u32,
    pub bytes: Vec<u8>,
}

/// The image in the size that it has.
pub fn decode_as_it_is(file: &[u8]) -> Result<Decoded, DecodeError> {
    let Opened { orientation, format, .. } = Opened::new(file)?;
    let Decoded { width, height, bytes } = format.pixels()?;
    if orientation == Orientation::NoTransforms {
        return Ok(Decoded { width, height, bytes });
    }
    // The size is right by construction.
    let image = RgbImage::from_raw(width, height, bytes).unwrap_or_default();
    let mut image = DynamicImage::from(image);
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    Ok(Decoded { width, height, bytes: image.into_bytes() })
}

/// A PNG file, read piece by piece.
pub fn decode_png(file: impl BufRead + Seek) -> Result<Decoded, DecodeError> {
    png_rows::Reader::new(file).and_then(png_rows::Reader::read).map_err(damaged_png)
}

/// The image in that size: rows top to bottom, three bytes a pixel.
pub fn decode_rgb(file: &[u8], size: Size) -> Result<Vec<u8>, DecodeError> {
    let Decoded { width, height, bytes } = decode_as_it_is(file)?;
    Ok(resize::<3>(bytes, (width, height), (size.width, size.height)))
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

/// A file whose pixels are not read yet.
struct Opened<'a> {
    width: u32,
    height: u32,
    orientation: Orientation,
    format: OpenedFormat<'a>,
}

enum OpenedFormat<'a> {
    Png(Box<png_rows::Reader<Cursor<&'a [u8]>>>),
    Jpeg { decoder: JpegDecoder<Cursor<&'a [u8]>>, kept_components: u8 },
    WebP(WebPDecoder<Cursor<&'a [u8]>>),
}

impl<'a> Opened<'a> {
    fn new(file: &'a [u8]) -> Result<Self, DecodeError> {
        let cursor = Cursor::new(file);
        let (format, (width, height), orientation) = match image::guess_format(file) {
            Ok(ImageFormat::Png) => {
                let reader = png_rows::Reader::new(cursor).map_err(damaged_png)?;
                let (dimensions, orientation) = (reader.dimensions(), reader.orientation());
                (OpenedFormat::Png(Box::new(reader)), dimensions, orientation)
            }
            Ok(ImageFormat::Jpeg) => {
                let jpeg::Outline { is_complete, kept_components } = jpeg::outline(file);
                if !is_complete {
                    return Err(DecodeError::CutShort);
                }
                let mut decoder = JpegDecoder::new(cursor).map_err(DecodeError::Damaged)?;
                let orientation = decoder.orientation().map_err(DecodeError::Damaged)?;
                let dimensions = decoder.dimensions();
                (OpenedFormat::Jpeg { decoder, kept_components }, dimensions, orientation)
            }
            Ok(ImageFormat::WebP) => {
                let mut decoder = WebPDecoder::new(cursor).map_err(DecodeError::Damaged)?;
                let dimensions = decoder.dimensions();
                webp::check(file, dimensions)?; // before EXIF is looked for
                let orientation = decoder.orientation().map_err(DecodeError::Damaged)?;
                (OpenedFormat::WebP(decoder), dimensions, orientation)
            }
            Ok(_) | Err(_) => return Err(DecodeError::Unknown),
        };
        too_large((width, height))?;
        Ok(Self { width, height, orientation, format })
    }

    fn turned_dimensions(&self) -> (u32, u32) {
        match self.orientation {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => (self.height, self.width),
            Orientation::NoTransforms
            | Orientation::Rotate180
            | Orientation::FlipHorizontal
            | Orientation::FlipVertical => (self.width, self.height),
        }
    }

    fn checking_bytes(&self, file: &[u8]) -> u64 {
        let bytes_of_a_pixel = match &self.format {
            // Only a few rows are in memory; but reading them takes time, and who counts bytes
            // also counts on few large images being read at once.
            OpenedFormat::Png(_) => 2,
            // Grey and RGB, and the coefficients that are kept, 16 bits each.
            OpenedFormat::Jpeg { kept_components, .. } => 4 + 2 * u64::from(*kept_components),
            // An animation's frame, canvas and result, RGBA each.
            OpenedFormat::WebP(_) => 12,
        };
        let pixels = u64::from(self.width) * u64::from(self.height);
        bytes_of_a_pixel * pixels + file.len() as u64
    }
}

impl OpenedFormat<'_> {
    fn pixels(self) -> Result<Decoded, DecodeError> {
        let image = match self {
            Self::Png(reader) => return reader.read().map_err(damaged_png),
            Self::Jpeg { decoder, .. } => DynamicImage::from_decoder(decoder),
            Self::WebP(decoder) => DynamicImage::from_decoder(decoder),
        };
        let image = image.map_err(DecodeError::Damaged)?.into_rgb8();
        let (width, height) = image.dimensions();
        Ok(Decoded { width, height, bytes: image.into_raw() })
    }
}

fn too_large((width, height): (u32, u32)) -> Result<(), DecodeError> {
    let pixels = u64::from(width) * u64::from(height);
    if width > MAX_SIDE || height > MAX_SIDE || pixels > MAX_PIXELS {
        return Err(DecodeError::TooLarge { width, height });
    }
    Ok(())
}

fn damaged_png(error: png::DecodingError) -> DecodeError {
    let error = DecodingError::new(ImageFormat::Png.into(), error);
    DecodeError::Damaged(ImageError::Decoding(error))
}

#[cfg(test)]
mod tests;
