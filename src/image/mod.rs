//! RGB → PNG, JPEG or WebP, with the generation parameters inside, and back. Knows nothing of
//! requests over the wire, paths or jobs.

use std::borrow::Cow;

use image::{
    ExtendedColorType, ImageBuffer, ImageEncoder, codecs,
    imageops::{self, FilterType},
};

mod decode;
mod exif;
pub mod parameters;
mod resize;

pub use crate::request::Format;
pub use decode::{
    DecodeError, Decoded, Header, check, decode_as_it_is, decode_mask, decode_png, decode_rgb,
    header,
};

/// An image: rows top to bottom, three bytes a pixel.
#[derive(Debug, Clone, Copy)]
pub struct Rgb<'a> {
    pub width: u32,
    pub height: u32,
    pub bytes: &'a [u8],
}

#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("{bytes} bytes are not an image of {width}x{height}")]
    WrongLength { width: u32, height: u32, bytes: usize },
    #[error("PNG: {0}")]
    Png(#[from] png::EncodingError),
    #[error("{0}")]
    Image(#[from] image::ImageError),
}

/// Encodes an image with `parameters` (see [`parameters::infotext`]) where the field's tools look
/// for them: PNG's text chunk `parameters`, EXIF's UserComment in JPEG and WebP.
pub fn encode(image: Rgb, format: Format, parameters: &str) -> Result<Vec<u8>, EncodeError> {
    let Rgb { width, height, bytes } = image;
    if bytes.len() as u64 != 3 * u64::from(width) * u64::from(height) {
        return Err(EncodeError::WrongLength { width, height, bytes: bytes.len() });
    }
    let mut file = Vec::new();
    match format {
        Format::Png => encode_png(image, parameters, &mut file)?,
        Format::Jpeg { quality } => {
            let encoder = codecs::jpeg::JpegEncoder::new_with_quality(&mut file, quality);
            write_with_exif(encoder, image, parameters)?;
        }
        Format::WebP => {
            let encoder = codecs::webp::WebPEncoder::new_lossless(&mut file);
            write_with_exif(encoder, image, parameters)?;
        }
    }
    Ok(file)
}

/// The image in another size, by Lanczos' filter. (What the VAE is given is resized by [`decode_rgb`],
/// byte by byte as the reference does.)
pub fn lanczos(image: Rgb, (width, height): (u32, u32)) -> Vec<u8> {
    let pixels = ImageBuffer::<image::Rgb<u8>, _>::from_raw(image.width, image.height, image.bytes);
    // Too few bytes are no image.
    let resized =
        |pixels| imageops::resize(&pixels, width, height, FilterType::Lanczos3).into_raw();
    pixels.map(resized).unwrap_or_default()
}

fn encode_png(image: Rgb, parameters: &str, file: &mut Vec<u8>) -> Result<(), EncodeError> {
    let mut encoder = png::Encoder::new(file, image.width, image.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // PNG's older text chunk is Latin-1; only what does not fit goes into the newer one.
    let (keyword, text) = ("parameters".to_owned(), without_nul(parameters).into_owned());
    if text.chars().all(|c| u32::from(c) < 256) {
        encoder.add_text_chunk(keyword, text)?;
    } else {
        encoder.add_itxt_chunk(keyword, text)?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.bytes)?;
    writer.finish()?;
    Ok(())
}

fn write_with_exif(
    mut encoder: impl ImageEncoder,
    image: Rgb,
    parameters: &str,
) -> Result<(), EncodeError> {
    if let Some(exif) = exif::user_comment(parameters) {
        encoder.set_exif_metadata(exif).map_err(image::ImageError::Unsupported)?;
    }
    encoder.write_image(image.bytes, image.width, image.height, ExtendedColorType::Rgb8)?;
    Ok(())
}

/// A text chunk ends at its first NUL.
fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', " ").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIXELS: &[u8; 12] = b"\x00\x01\x02\xff\xfe\xfd\x10\x20\x30\x40\x50\x60";
    const IMAGE: Rgb = Rgb { width: 2, height: 2, bytes: PIXELS };

    fn decode_png(file: &[u8]) -> (png::Info<'static>, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        reader.finish().unwrap();
        (reader.info().clone(), pixels)
    }

    #[test]
    fn a_png_carries_latin_1_parameters_in_the_older_chunk() {
        let text = "a fox, café\nNegative prompt: x\0y\nSteps: 4";
        let (info, pixels) = decode_png(&encode(IMAGE, Format::Png, text).unwrap());
        assert_eq!(pixels, PIXELS);
        let [chunk] = &info.uncompressed_latin1_text[..] else { panic!("{info:?}") };
        assert_eq!(chunk.keyword, "parameters");
        assert_eq!(chunk.text, text.replace('\0', " "));
        assert!(info.utf8_text.is_empty());
    }

    #[test]
    fn a_png_carries_other_parameters_in_the_newer_chunk() {
        let text = "狐狸 🦊\nSteps: 4";
        let (info, pixels) = decode_png(&encode(IMAGE, Format::Png, text).unwrap());
        assert_eq!(pixels, PIXELS);
        let [chunk] = &info.utf8_text[..] else { panic!("{info:?}") };
        assert_eq!(chunk.keyword, "parameters");
        assert_eq!(chunk.get_text().unwrap(), text);
        assert!(info.uncompressed_latin1_text.is_empty());
    }

    #[test]
    fn jpeg_and_webp_carry_them_as_a_comment() {
        let text = "狐狸\nSteps: 4";
        let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for format in [Format::Jpeg { quality: 90 }, Format::WebP] {
            let file = encode(IMAGE, format, text).unwrap();
            let decoded = image::load_from_memory(&file).unwrap().to_rgb8();
            assert_eq!(decoded.dimensions(), (2, 2));
            assert!(file.windows(utf16.len()).any(|window| window == utf16), "{format:?}");
            if format == Format::WebP {
                assert_eq!(decoded.as_raw(), PIXELS);
            }
        }
    }

    #[test]
    fn every_format_takes_the_longest_prompts() {
        let text = "狐".repeat(2 * crate::request::MAX_PROMPT_BYTES);
        for format in [Format::Png, Format::Jpeg { quality: 90 }, Format::WebP] {
            let file = encode(IMAGE, format, &text).unwrap();
            image::load_from_memory(&file).unwrap();
        }
    }

    #[test]
    fn pixels_of_another_size_are_refused() {
        let image = Rgb { width: 3, ..IMAGE };
        assert!(matches!(encode(image, Format::Png, ""), Err(EncodeError::WrongLength { .. })));
    }
}
