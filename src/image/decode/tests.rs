use image::{
    DynamicImage, GrayImage, ImageEncoder, ImageFormat, LumaA, Rgb, RgbImage, Rgba, RgbaImage,
    codecs::jpeg::JpegEncoder,
};

use super::*;

fn size(width: u32, height: u32) -> Size {
    Size { width, height }
}

fn file(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    image.into().write_to(&mut file, format).unwrap();
    file.into_inner()
}

/// An image by formula, as the script that made the numbers below has it.
fn pattern(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([0, 1, 2].map(|c| (x * 37 + y * 61 + c * 89 + (x * y) % 97 * 5) as u8))
    })
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The hashes are of PIL 13.0's `resize((w, h), LANCZOS)` of the same pattern, and of that as "L".
#[test]
fn every_byte_is_pils() {
    for ((width, height), (to_width, to_height), rgb, mask) in [
        ((7, 5), (16, 8), 0x1324_3b9c_24fc_f036, 0xfcb2_5618_61cf_f823),
        ((40, 33), (16, 24), 0x9f4c_9fc3_7b2c_ca04, 0x6287_ffc1_3a9a_c811),
        ((16, 24), (16, 8), 0xd07a_fdc7_11d8_8c53, 0xb2ea_7ce1_c7c4_caf5),
        ((50, 8), (8, 8), 0x0b19_853f_2134_0619, 0x85d4_3d5b_aaad_d91a),
        ((8, 8), (8, 8), 0xc094_f9a2_ebe9_ba55, 0x0325_6ca0_f444_0d9f),
        ((1, 1), (8, 8), 0xc9fc_75e9_42ae_9765, 0xab77_eb81_e8d6_bbe5),
        ((701, 3), (8, 64), 0x8aa1_7165_489c_4676, 0x699d_05fb_af46_b3a7),
    ] {
        let file = file(pattern(width, height), ImageFormat::Png);
        let to = size(to_width, to_height);
        assert_eq!(hash(&decode_rgb(&file, to).unwrap()), rgb, "{width}x{height} -> {to}");
        assert_eq!(hash(&decode_mask(&file, to).unwrap()), mask, "{width}x{height} -> {to}, mask");
    }
}

#[test]
fn every_kind_of_pixel_becomes_rgb_without_its_transparency() {
    let grey_alpha = image::GrayAlphaImage::from_pixel(8, 8, LumaA([200, 0]));
    let rgba = RgbaImage::from_pixel(8, 8, Rgba([10, 20, 30, 0]));
    for (image, format, pixel) in [
        (GrayImage::from_pixel(8, 8, [77].into()).into(), ImageFormat::Png, [77, 77, 77]),
        (grey_alpha.into(), ImageFormat::Png, [200, 200, 200]),
        (rgba.clone().into(), ImageFormat::Png, [10, 20, 30]),
        (rgba.into(), ImageFormat::WebP, [10, 20, 30]),
        (DynamicImage::from(pattern(8, 8)).to_rgb16().into(), ImageFormat::Png, [0, 89, 178]),
        (GrayImage::from_pixel(8, 8, [128].into()).into(), ImageFormat::Jpeg, [128, 128, 128]),
    ] {
        let image: DynamicImage = image;
        let file = file(image, format);
        assert_eq!(dimensions(&file).unwrap(), (8, 8));
        assert_eq!(decode_rgb(&file, size(8, 8)).unwrap()[..3], pixel, "{format:?}");
    }
}

#[test]
fn a_photograph_is_turned_as_it_says() {
    let mut file = Vec::new();
    let mut encoder = JpegEncoder::new(&mut file);
    // A TIFF header, and a directory of one entry: the orientation is 6, "turn right".
    let exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    encoder
        .encode_image(&GrayImage::from_fn(16, 8, |x, _| [if x < 8 { 0 } else { 255 }].into()))
        .unwrap();
    assert_eq!(dimensions(&file).unwrap(), (8, 16));
    let mask = decode_mask(&file, size(8, 16)).unwrap();
    assert!(mask[..8 * 8].iter().all(|v| *v < 10) && mask[8 * 8..].iter().all(|v| *v > 245));
}

#[test]
fn what_is_no_image_says_why() {
    let png = file(pattern(16, 16), ImageFormat::Png);
    let jpeg = file(pattern(16, 16), ImageFormat::Jpeg);
    let webp = file(pattern(16, 16), ImageFormat::WebP);
    let mut bomb = png.clone();
    bomb[16..24].copy_from_slice(b"\0\0\x40\0\0\0\x40\0"); // 16384x16384
    let crc = crc32(&bomb[12..29]).to_be_bytes();
    bomb[29..33].copy_from_slice(&crc);
    let too_large =
        "is an image of 16384x16384 pixels; 16384 on a side and 67108864 together are the most";
    for (file, expected) in [
        (&b""[..], "is not a PNG, JPEG or WebP file"),
        (b"a text", "is not a PNG, JPEG or WebP file"),
        (b"GIF89a\x01\0\x01\0\0\0\0", "is not a PNG, JPEG or WebP file"),
        (&png[..png.len() / 2], "is a damaged image: "),
        (&png[..20], "is a damaged image: "),
        (&jpeg[..100], "is a damaged image: "),
        (&webp[..webp.len() / 2], "is a damaged image: "),
        (&bomb, too_large),
    ] {
        let error = dimensions(file).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(decode_rgb(file, size(8, 8)).unwrap_err().to_string(), error);
    }
}

/// As a PNG chunk ends with.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}
