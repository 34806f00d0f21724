//! PNG files → RGB, row by row: 16 bits become 8 and transparency is dropped before a row is kept,
//! and text and colour profiles are skipped unread, whatever they would inflate to.

use std::io::{BufRead, Seek};

use image::metadata::Orientation;
use png::{BitDepth, ColorType, DecodingError, Limits, Transformations};

use super::Decoded;

/// The memory that chunks may take (EXIF, palettes) and a row may take. EXIF of cameras is below
/// 64 KiB.
const MAX_DECODER_BYTES: usize = 8 << 20;

pub struct Reader<R: BufRead + Seek>(png::Reader<R>);

impl<R: BufRead + Seek> Reader<R> {
    /// Reads up to the pixels.
    pub fn new(file: R) -> Result<Self, DecodingError> {
        let mut decoder = png::Decoder::new_with_limits(file, Limits { bytes: MAX_DECODER_BYTES });
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        // As Pillow reads RGB of 16 bits: the high byte.
        decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
        decoder.read_info().map(Self)
    }

    pub fn dimensions(&self) -> (u32, u32) {
        self.0.info().size()
    }

    pub fn orientation(&self) -> Orientation {
        let exif = self.0.info().exif_metadata.as_deref();
        exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
    }

    /// Reads all rows and keeps none.
    pub fn check(mut self) -> Result<(), DecodingError> {
        while self.0.next_row()?.is_some() {}
        Ok(())
    }

    pub fn read(mut self) -> Result<Decoded, DecodingError> {
        let (width, height) = self.dimensions();
        let (color, depth) = self.0.output_color_type();
        debug_assert_eq!(depth, BitDepth::Eight);
        let samples = color.samples();
        let bytes = if self.0.info().interlaced {
            let size = self.0.output_buffer_size().ok_or(DecodingError::LimitsExceeded)?;
            let mut pixels = vec![0; size];
            self.0.next_frame(&mut pixels)?;
            match color {
                ColorType::Rgb => pixels,
                ColorType::Rgba => without_alpha(pixels),
                ColorType::Grayscale | ColorType::GrayscaleAlpha | ColorType::Indexed => {
                    let mut rgb = Vec::with_capacity(3 * pixels.len() / samples);
                    append_rgb(&pixels, samples, &mut rgb);
                    rgb
                }
            }
        } else {
            let mut rgb = Vec::with_capacity(3 * width as usize * height as usize);
            while let Some(row) = self.0.next_row()? {
                append_rgb(row.data(), samples, &mut rgb);
            }
            rgb
        };
        Ok(Decoded { width, height, bytes })
    }
}

/// Appends pixels of 1 (grey), 2 (grey, alpha), 3 or 4 samples.
fn append_rgb(pixels: &[u8], samples: usize, rgb: &mut Vec<u8>) {
    match samples {
        1 | 2 => rgb.extend(pixels.chunks_exact(samples).flat_map(|pixel| [pixel[0]; 3])),
        3 => rgb.extend_from_slice(pixels),
        _ => rgb.extend(pixels.chunks_exact(samples).flat_map(|it| [it[0], it[1], it[2]])),
    }
}

/// In place: a second buffer would double the memory.
fn without_alpha(mut pixels: Vec<u8>) -> Vec<u8> {
    let count = pixels.len() / 4;
    for at in 0..count {
        pixels.copy_within(4 * at..4 * at + 3, 3 * at);
    }
    pixels.truncate(3 * count);
    pixels
}
