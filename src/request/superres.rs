//! Images made larger: what is asked for, and what the answer is encoded as.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{EncodedImage, FieldError, Fields, Files, InvalidFields};
use crate::modes::{CheckpointRef, Dimensions};

/// What an image is encoded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Png,
    /// `quality` from 1 to 100.
    Jpeg {
        quality: u8,
    },
    /// Lossless.
    WebP,
}

impl Format {
    /// Of a JPEG where nobody asks for another one.
    pub const JPEG_QUALITY: u8 = 92;

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg { .. } => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }

    /// What two values say that are called `[format, quality]`: a quality alone is a JPEG's.
    pub fn of(
        [format_name, quality_name]: [&str; 2],
        format: Option<&str>,
        quality: Option<u8>,
    ) -> Result<Option<Self>, FieldError> {
        match (format, quality) {
            (None, None) => Ok(None),
            (None | Some("jpeg" | "jpg"), quality) => {
                Ok(Some(Self::Jpeg { quality: quality.unwrap_or(Self::JPEG_QUALITY) }))
            }
            (Some("png" | "webp"), Some(_)) => {
                let detail = "is a JPEG's: png and webp lose nothing";
                Err(FieldError::of(quality_name, detail))
            }
            (Some("png"), None) => Ok(Some(Self::Png)),
            (Some("webp"), None) => Ok(Some(Self::WebP)),
            (Some(_), _) => Err(FieldError::of(format_name, "is none of png, jpeg and webp")),
        }
    }
}

/// How an image is made larger: all that is needed to do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superres {
    /// 1, 2 or 3: each side becomes 2, 4 or 8 times as long.
    pub magnitude: u32,
    /// The network that does it; `None`: Lanczos' filter.
    pub model: Option<CheckpointRef>,
    /// What the answer is encoded as, whatever else its recipient accepts.
    #[serde(default)]
    pub format: Option<Format>,
}

impl Superres {
    pub const MAGNITUDES: RangeInclusive<u32> = 1..=3;
    /// What all images of a job may have together when they are large: 96 MiB of RGB.
    pub const MAX_PIXELS: u64 = 32 << 20;

    /// How many times as long each side becomes.
    pub fn factor(&self) -> u32 {
        1 << self.magnitude
    }

    /// What it is done by, as clients are told: the model as modes.yaml names it, or `lanczos`.
    pub fn model_name(&self) -> &str {
        self.model.as_ref().map_or("lanczos", |model| &model.name)
    }

    /// Whether so many images of that size may become that much larger; else, why not.
    pub fn check(from: Dimensions, images: u32, magnitude: u32) -> Result<(), String> {
        let side = |side: u32| u64::from(side) << magnitude;
        let (width, height) = (side(from.width), side(from.height));
        let pixels = width.checked_mul(height).and_then(|of_one| of_one.checked_mul(images.into()));
        if pixels.is_some_and(|pixels| pixels <= Self::MAX_PIXELS) {
            return Ok(());
        }
        let images = if images == 1 { "an image".to_owned() } else { format!("{images} images") };
        let most = Self::MAX_PIXELS;
        Err(format!("makes {images} of {width}x{height} of {from}; {most} pixels are the most"))
    }
}

/// The fields about an answer's image that JSON bodies have in common.
pub const ANSWER_FIELDS: [&str; 3] = ["superres_magnitude", "superres_format", "superres_quality"];

/// Reads [`ANSWER_FIELDS`]: the magnitude, and what is to be sent.
pub(super) fn read_answer_fields(fields: &mut Fields) -> (Option<u32>, Option<Format>) {
    let [magnitude, format, quality] = ANSWER_FIELDS;
    let magnitude = fields.whole_number(magnitude, Superres::MAGNITUDES);
    let (word, number) = (fields.text(format), fields.whole_number(quality, 1..=100));
    match Format::of([format, quality], word.as_deref(), number) {
        Ok(format) => (magnitude, format),
        Err(FieldError { pointer, detail }) => {
            fields.error(pointer.trim_start_matches('/'), detail);
            (magnitude, None)
        }
    }
}

/// An image that somebody wants to have larger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpscaleWish {
    pub image: EncodedImage,
    pub magnitude: u32,
    pub format: Option<Format>,
}

/// The body of `POST /superres`, as JSON or as a form's parts.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct UpscaleRequest {
    /// A PNG, JPEG or WebP file: a form's file, or in base64, with or without a `data:` prefix.
    image: String,
    /// A power of two: 1, 2 and 3 make each side 2, 4 and 8 times as long. By default 1.
    #[schema(minimum = 1, maximum = 3)]
    superres_magnitude: Option<u32>,
    /// `png`, `jpeg` or `webp`, whatever `Accept` says.
    #[schema(example = "jpeg")]
    superres_format: Option<String>,
    /// Of a JPEG. By default 92.
    #[schema(minimum = 1, maximum = 100)]
    superres_quality: Option<u32>,
}

impl UpscaleWish {
    /// Reads a body's JSON and files, or finds everything that is wrong with it.
    pub fn parse(body: &Value, files: Files) -> Result<Self, InvalidFields> {
        let known = ["image"].into_iter().chain(ANSWER_FIELDS).collect::<Vec<_>>();
        let mut fields = Fields::read(body, &known)?;
        for (name, file) in [("init_image", files.init_image), ("mask_image", files.mask_image)] {
            if file.is_some() {
                fields.error(name, "unknown field; did you mean 'image'?");
            }
        }
        let (magnitude, format) = read_answer_fields(&mut fields);
        let image = fields.image("image", files.image);
        if image.is_none() && fields.get("image").is_none() {
            fields.error("image", "is required");
        }
        let image = image.unwrap_or_default();
        fields.finish(Self { image, magnitude: magnitude.unwrap_or(1), format })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_too_large_says_how_large_it_would_be() {
        let of = |width, height| Dimensions { width, height };
        for (from, images, magnitude, expected) in [
            (of(512, 512), 1, 3, Ok(())),
            (of(512, 512), 2, 3, Ok(())),
            (
                of(512, 512),
                3,
                3,
                Err("makes 3 images of 4096x4096 of 512x512; 33554432 pixels are the most"),
            ),
            (of(1, 16384), 1, 3, Ok(())),
            (
                of(u32::MAX, u32::MAX),
                1,
                3,
                Err(
                    "makes an image of 34359738360x34359738360 of 4294967295x4294967295; 33554432 pixels are the most",
                ),
            ),
        ] {
            let found = Superres::check(from, images, magnitude);
            assert_eq!(found, expected.map_err(str::to_owned), "{from} {images} {magnitude}");
        }
    }

    #[test]
    fn formats() {
        let names = ["f", "q"];
        for (format, quality, expected) in [
            (None, None, Ok(None)),
            (Some("png"), None, Ok(Some(Format::Png))),
            (Some("webp"), None, Ok(Some(Format::WebP))),
            (Some("jpg"), None, Ok(Some(Format::Jpeg { quality: 92 }))),
            (Some("jpeg"), Some(5), Ok(Some(Format::Jpeg { quality: 5 }))),
            (None, Some(5), Ok(Some(Format::Jpeg { quality: 5 }))),
            (Some("png"), Some(5), Err("/q")),
            (Some("gif"), Some(5), Err("/f")),
        ] {
            let found = Format::of(names, format, quality).map_err(|error| error.pointer);
            assert_eq!(found, expected.map_err(str::to_owned), "{format:?} {quality:?}");
        }
    }

    #[test]
    fn an_upscale_is_read_with_all_its_errors() {
        let image = |bytes: &[u8]| EncodedImage(bytes.into());
        let files = || Files { image: Some(image(b"x")), ..Files::default() };
        let body = json!({"superres_magnitude": 3, "superres_quality": 7});
        let format = Some(Format::Jpeg { quality: 7 });
        let expected = UpscaleWish { image: image(b"x"), magnitude: 3, format };
        assert_eq!(UpscaleWish::parse(&body, files()), Ok(expected));
        let expected = UpscaleWish { image: image(b"y"), magnitude: 1, format: None };
        let body = json!({"image": "data:image/png;base64,eQ=="});
        assert_eq!(UpscaleWish::parse(&body, Files::default()), Ok(expected));

        let errors = |body: Value, files: Files| -> Vec<String> {
            let InvalidFields(errors) = UpscaleWish::parse(&body, files).unwrap_err();
            errors.into_iter().map(|error| error.pointer + " " + &error.detail).collect()
        };
        assert_eq!(errors(json!({}), Files::default()), ["/image is required"]);
        let twice = errors(json!({"image": "eQ=="}), files());
        assert_eq!(twice, ["/image is here twice, as a file and as a field"]);
        let wrong = json!({"superres_magnitude": 4, "superres_format": "gif", "superres": true});
        let other = Files { mask_image: Some(image(b"x")), ..files() };
        assert_eq!(
            errors(wrong, other),
            [
                "/superres unknown field; did you mean 'superres_format'?",
                "/mask_image unknown field; did you mean 'image'?",
                "/superres_magnitude 4 is not a whole number from 1 to 3",
                "/superres_format is none of png, jpeg and webp",
            ]
        );
    }
}
