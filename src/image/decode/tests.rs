use image::{
    DynamicImage, GrayImage, ImageEncoder, ImageFormat, LumaA, Rgb, RgbImage, Rgba, RgbaImage,
    codecs::jpeg::JpegEncoder,
};

use super::*;

fn dimensions(file: &[u8]) -> (u32, u32) {
    let Header { width, height, .. } = header(file).unwrap();
    (width, height)
}

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
        assert_eq!(dimensions(&file), (8, 8));
        check(&file).unwrap();
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
    assert_eq!(dimensions(&file), (8, 16));
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
        (&jpeg[..jpeg.len() / 2], "is a damaged image: the file ends before the image does"),
        (&jpeg[..jpeg.len() - 1], "is a damaged image: the file ends before the image does"),
        (&webp[..webp.len() / 2], "is a damaged image: "),
        (&bomb, too_large),
    ] {
        let error = check(file).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(decode_rgb(file, size(8, 8)).unwrap_err().to_string(), error);
    }
}

#[test]
fn a_lossless_webp_frame_of_another_size_is_refused_by_the_decoder() {
    let webp = file(pattern(16, 16), ImageFormat::WebP);
    // "VP8X" before the frame says that the image is of 8x8.
    let canvas = b"VP8X\x0a\0\0\0\0\0\0\0\x07\0\0\x07\0\0";
    let length = (webp.len() - 8 + canvas.len()) as u32;
    let bomb = [&b"RIFF"[..], &length.to_le_bytes(), b"WEBP", canvas, &webp[12..]].concat();
    assert!(matches!(check(&bomb), Err(DecodeError::Damaged(_))));
}

#[test]
fn bytes_behind_the_end_of_a_jpeg_are_ignored() {
    let jpeg = file(pattern(16, 16), ImageFormat::Jpeg);
    let longer = [&jpeg[..], b"trailing bytes"].concat();
    check(&longer).unwrap();
    let decode = |file| decode_rgb(file, size(16, 16)).unwrap();
    assert_eq!(decode(&longer), decode(&jpeg));
}

/// A PNG of those samples, 8 or 16 bits each.
fn png_of(color: png::ColorType, depth: png::BitDepth, samples: &[u8], size: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, size, size);
    encoder.set_color(color);
    encoder.set_depth(depth);
    encoder.write_header().unwrap().write_image_data(samples).unwrap();
    file
}

#[test]
fn of_16_bits_the_higher_8_are_read() {
    use png::{BitDepth::Sixteen, ColorType};
    for (color, pixel, expected) in [
        (ColorType::Grayscale, &[77, 200][..], [77; 3]),
        (ColorType::GrayscaleAlpha, &[77, 200, 0, 0], [77; 3]),
        (ColorType::Rgb, &[1, 255, 2, 255, 3, 255], [1, 2, 3]),
        (ColorType::Rgba, &[1, 255, 2, 255, 3, 255, 0, 0], [1, 2, 3]),
    ] {
        let file = png_of(color, Sixteen, &pixel.repeat(4), 2);
        let Decoded { bytes, .. } = decode_as_it_is(&file).unwrap();
        assert_eq!(bytes, expected.repeat(4), "{color:?}");
    }
}

/// 5x5 pixels in seven passes, as no encoder at hand writes them: RGB, and RGBA.
#[test]
fn an_interlaced_png_is_the_same_image() {
    for (color, name, samples) in [(png::ColorType::Rgb, 2_u8, 3), (png::ColorType::Rgba, 6, 4)] {
        let pixel = |x: usize, y: usize| [(40 * x) as u8, (40 * y) as u8, 9, 0];
        let rows = |xs: (usize, usize), ys: (usize, usize)| {
            let row = move |y| {
                let pixels =
                    (xs.0..5).step_by(xs.1).flat_map(move |x| pixel(x, y)[..samples].to_vec());
                [0].into_iter().chain(pixels).collect::<Vec<u8>>() // no filter
            };
            (ys.0..5).step_by(ys.1).flat_map(row).collect::<Vec<u8>>()
        };
        let passes = [
            ((0, 8), (0, 8)),
            ((4, 8), (0, 8)),
            ((0, 4), (4, 8)),
            ((2, 4), (0, 4)),
            ((0, 2), (2, 4)),
            ((1, 2), (0, 2)),
            ((0, 1), (1, 2)),
        ];
        let data: Vec<u8> = passes.into_iter().flat_map(|(xs, ys)| rows(xs, ys)).collect();
        let header = [&5_u32.to_be_bytes()[..], &5_u32.to_be_bytes(), &[8, name, 0, 0, 1]].concat();
        let chunks = [chunk(b"IHDR", &header), chunk(b"IDAT", &stored(&data)), chunk(b"IEND", b"")];
        let file = [&b"\x89PNG\r\n\x1a\n"[..], &chunks.concat()].concat();
        let expected: Vec<u8> =
            (0..25).flat_map(|at| pixel(at % 5, at / 5)[..3].to_vec()).collect();
        check(&file).unwrap();
        assert_eq!(decode_as_it_is(&file).unwrap().bytes, expected, "{color:?}");
    }
}

fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let named = [&name[..], data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &named, &crc32(&named).to_be_bytes()].concat()
}

/// Zlib without compression; short data only.
fn stored(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in data {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    let head = [&[0x78, 1, 1][..], &length.to_le_bytes(), &(!length).to_le_bytes()].concat();
    [&head[..], data, &(b << 16 | a).to_be_bytes()].concat()
}

#[test]
fn the_header_says_what_reading_on_will_take() {
    let (png, jpeg) =
        (file(pattern(40, 10), ImageFormat::Png), file(pattern(40, 10), ImageFormat::Jpeg));
    let mut progressive = jpeg.clone();
    let frame = jpeg.windows(2).position(|bytes| bytes == b"\xff\xc0").unwrap();
    progressive[frame + 1] = 0xc2;
    for (file, of_a_pixel) in [(png, 2), (jpeg, 4), (progressive, 10)] {
        let found = header(&file).unwrap();
        assert_eq!(found.checking_bytes, of_a_pixel * 400 + file.len() as u64);
        assert_eq!((found.width, found.height), (40, 10));
    }
}

/// As a PNG chunk ends with.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}
