//! An image file that a client sent: its header, its pixels, its text.

use std::io::Cursor;

use diffused::{
    image::{
        Format, Rgb, check as check_pixels, decode_as_it_is, decode_mask, decode_rgb, encode,
        header, lanczos, parameters,
    },
    modes::Size,
};
use image::ImageReader;

use super::allocated_by;

/// Larger images are refused by their headers or take too long for a fuzzer.
const MAX_PIXELS: u64 = 1 << 18;
/// The daemon's own limit; what is beyond costs nothing.
const MAX_DECODED_PIXELS: u64 = 64 << 20;
/// Images up to this are encoded again.
const MAX_ENCODED_PIXELS: usize = 1 << 12;
/// The longest text that is taken from a file.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// Tables of a decoder, and what its parts may say of their lengths before they are read.
const MAX_ALLOCATED: usize = 48 << 20;
const MAX_ALLOCATED_PER_BYTE: usize = 64;

pub fn check(bytes: &[u8]) {
    let promised = promised_dimensions(bytes);
    let pixels = promised.map_or(0, |(width, height)| u64::from(width) * u64::from(height));
    if (MAX_PIXELS + 1..=MAX_DECODED_PIXELS).contains(&pixels) {
        return;
    }
    let (found, allocated) = allocated_by(|| {
        let header = header(bytes)?;
        check_pixels(bytes).map(|()| header)
    });
    let checking_bytes = header(bytes).map_or(0, |header| header.checking_bytes as usize);
    let limit = MAX_ALLOCATED + 2 * checking_bytes + MAX_ALLOCATED_PER_BYTE * bytes.len();
    assert!(allocated <= limit, "{allocated} bytes allocated for {pixels} pixels");
    match found {
        Ok(found) => {
            let found = (found.width, found.height);
            let (width, height) = promised.expect("a header that can be read");
            assert!(found == (width, height) || found == (height, width), "{found:?}");
            decoded_holds(bytes, found);
        }
        Err(error) => {
            assert!(error.to_string().starts_with("is "), "{error}");
            assert!(decode_as_it_is(bytes).is_err());
            assert!(decode_rgb(bytes, SMALL).is_err());
        }
    }
    text_holds(bytes);
}

const SMALL: Size = Size { width: 24, height: 16 };

/// Of the header, by the library alone.
fn promised_dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?.into_dimensions().ok()
}

fn decoded_holds(bytes: &[u8], (width, height): (u32, u32)) {
    let image = decode_as_it_is(bytes).expect("whatever has dimensions can be decoded");
    assert_eq!((image.width, image.height), (width, height));
    assert_eq!(image.bytes.len(), 3 * width as usize * height as usize);
    let small = (SMALL.width * SMALL.height) as usize;
    assert_eq!(decode_rgb(bytes, SMALL).unwrap().len(), 3 * small);
    assert_eq!(decode_mask(bytes, SMALL).unwrap().len(), small);

    let rgb = Rgb { width, height, bytes: &image.bytes };
    if image.bytes.len() > 3 * MAX_ENCODED_PIXELS {
        return;
    }
    assert_eq!(lanczos(rgb, (2 * width, 3)).len(), 3 * 2 * width as usize * 3);
    let text = parameters::of_png(bytes);
    for format in [Format::Png, Format::WebP, Format::Jpeg { quality: 90 }] {
        let file = encode(rgb, format, &text).unwrap();
        let again = decode_as_it_is(&file).unwrap();
        assert_eq!((again.width, again.height), (width, height), "{format:?}");
        let is_lossless = !matches!(format, Format::Jpeg { .. });
        assert!(!is_lossless || again.bytes == image.bytes, "{format:?}");
    }
}

/// Text that a PNG carries survives being written into another one.
fn text_holds(bytes: &[u8]) {
    let text = parameters::of_png(bytes);
    assert!(text.len() <= MAX_TEXT_BYTES);
    let pixel = Rgb { width: 1, height: 1, bytes: &[1, 2, 3] };
    let file = encode(pixel, Format::Png, &text).unwrap();
    assert_eq!(parameters::of_png(&file), text.replace('\0', " "));
}
