//! The generation parameters as text, in the form that AUTOMATIC1111's web UI writes and most
//! tools read ("infotext"): prompt, negative prompt, one line of settings.

use std::{
    fmt::Write,
    io::{BufRead, Cursor, Seek},
    path::Path,
};

mod parse;

pub use self::parse::{Generated, Origin, parse};
use crate::{
    modes::{Dimensions, PipelineSpec, SchedulerId},
    request::{GenerateRequest, MAX_PROMPT_BYTES, Superres},
};

/// Of what a file says, so much is taken along: two prompts and more.
const MAX_READ_BYTES: usize = 4 * MAX_PROMPT_BYTES;

/// Text chunks together may take this much, compressed as they are; a file with more of them says
/// nothing.
const MAX_DECODER_BYTES: usize = 8 << 20;

/// What there is to say of an image beside its request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// As the user wrote it, tags and all.
    pub prompt: &'a str,
    pub seed: u64,
    /// The one that drew it.
    pub scheduler: Option<SchedulerId>,
    pub pipeline: &'a PipelineSpec,
    /// LoRAs of the pipeline that were left out.
    pub skipped_loras: &'a [String],
}

/// The infotext of one image of a request.
pub fn infotext(request: &GenerateRequest, facts: Facts) -> String {
    let Facts { prompt, seed, scheduler, pipeline, skipped_loras } = facts;
    let mut text = prompt.to_owned();
    if let Some(negative) = request.negative_prompt.as_deref().filter(|text| !text.is_empty()) {
        let _ = write!(text, "\nNegative prompt: {negative}"); // to a String: cannot fail
    }
    let mut settings = vec![("Steps", request.steps.to_string())];
    let sampler = scheduler.map(|scheduler| ("Sampler", sampler_name(scheduler).to_owned()));
    settings.extend(sampler);
    settings.extend([
        ("CFG scale", request.guidance_scale.to_string()),
        ("Seed", seed.to_string()),
        ("Size", request.size.to_string()),
        ("Model", stem(&pipeline.checkpoint.name)),
    ]);
    let vae = pipeline.vae.as_ref().map(|vae| ("VAE", stem(&vae.name)));
    let source = request.source.as_ref();
    let strength = source.map(|it| ("Denoising strength", it.denoise_strength.to_string()));
    let spacing = request.timestep_spacing.map(|it| ("Timestep spacing", it.to_string()));
    settings.extend(vae.into_iter().chain(strength).chain(spacing));
    if request.clip_skip > 0 {
        // There, 1 is the last layer.
        settings.push(("Clip skip", (request.clip_skip + 1).to_string()));
    }
    if request.guidance_rescale > 0.0 {
        settings.push(("Guidance rescale", request.guidance_rescale.to_string()));
    }
    if request.eta > 0.0 {
        settings.push(("Eta", request.eta.to_string()));
    }
    if let Some(loras) = loras(pipeline, skipped_loras) {
        settings.push(("LoRAs", loras));
    }
    settings.extend(request.superres.iter().flat_map(postprocess));
    settings.push(version());
    format!("{text}\n{}", line(&settings))
}

/// What an image that was made larger says: what it said before, and that it was.
pub fn upscaled(before: &str, superres: &Superres) -> String {
    let mut settings = postprocess(superres).to_vec();
    // The last line is where settings stand, if there are any.
    match before.lines().last() {
        None => {
            settings.push(version());
            line(&settings)
        }
        Some(last) if last.starts_with("Steps: ") => format!("{before}, {}", line(&settings)),
        Some(_) => format!("{before}\n{}", line(&settings)),
    }
}

/// The parameters in a PNG's text chunk before its pixels; else nothing. However much the file's
/// chunks would inflate to, a few times [`MAX_READ_BYTES`] are the most in memory.
pub fn of_png(file: &[u8]) -> String {
    read_png(Cursor::new(file)).map(|(_, text)| text).unwrap_or_default()
}

/// The size of a PNG and what it says of how it was drawn; reads nothing behind that.
pub fn read_png(file: impl BufRead + Seek) -> Option<(Dimensions, String)> {
    const KEYWORD: &str = "parameters";
    let limits = png::Limits { bytes: MAX_DECODER_BYTES };
    let mut decoder = png::Decoder::new_with_limits(file, limits);
    decoder.set_ignore_iccp_chunk(true);
    let reader = decoder.read_info().ok()?;
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEYWORD);
    let newer = || {
        let mut chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD)?.clone();
        chunk.decompress_text_with_limit(MAX_READ_BYTES).ok()?;
        chunk.get_text().ok()
    };
    let text = plain.map(|chunk| chunk.text.clone()).or_else(newer);
    let text = text.filter(|text| text.len() <= MAX_READ_BYTES).unwrap_or_default();
    Some((Dimensions { width: info.width, height: info.height }, text))
}

/// As the field's tools call it where an image is made larger once it is drawn.
fn postprocess(superres: &Superres) -> [(&'static str, String); 2] {
    let model = superres.model.as_ref().map_or("Lanczos".to_owned(), |model| stem(&model.name));
    let factor = superres.factor().to_string();
    [("Postprocess upscale by", factor), ("Postprocess upscaler", model)]
}

fn version() -> (&'static str, String) {
    ("Version", concat!("diffused ", env!("CARGO_PKG_VERSION")).to_owned())
}

fn line(settings: &[(&str, String)]) -> String {
    let settings: Vec<_> =
        settings.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
    settings.join(", ")
}

/// Those that were merged, the mode's and the request's own, with their strengths.
fn loras(pipeline: &PipelineSpec, skipped: &[String]) -> Option<String> {
    let merged = pipeline.loras.iter().filter(|lora| !skipped.contains(&lora.name));
    let loras: Vec<_> =
        merged.map(|lora| format!("{}: {}", stem(&lora.name), lora.strength)).collect();
    (!loras.is_empty()).then(|| loras.join(", "))
}

fn sampler_name(scheduler: SchedulerId) -> &'static str {
    match scheduler {
        SchedulerId::Ddim => "DDIM",
        SchedulerId::Pndm => "PLMS",
        SchedulerId::Euler => "Euler",
        SchedulerId::EulerA => "Euler a",
        SchedulerId::Heun => "Heun",
        SchedulerId::Lms => "LMS",
        SchedulerId::Dpmpp2m => "DPM++ 2M",
        SchedulerId::Dpmpp2mKarras => "DPM++ 2M Karras",
        SchedulerId::Dpmpp2mSde => "DPM++ 2M SDE",
        SchedulerId::Dpmpp2mSdeKarras => "DPM++ 2M SDE Karras",
        SchedulerId::DpmppSde => "DPM++ SDE",
        SchedulerId::DpmppSdeKarras => "DPM++ SDE Karras",
        SchedulerId::Unipc => "UniPC",
        SchedulerId::Lcm => "LCM",
    }
}

fn stem(model: &str) -> String {
    Path::new(model).file_stem().map_or(model.into(), |stem| stem.to_string_lossy()).into_owned()
}

/// A value that could be taken for the next setting is written as JSON writes it.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        modes::{CheckpointRef, LoraRef, Size, Spacing},
        request::{EncodedImage, Source},
    };

    fn file(name: &str) -> CheckpointRef {
        CheckpointRef { name: name.to_owned(), path: "/secret".into() }
    }

    fn lora(name: &str, strength: f32) -> LoraRef {
        LoraRef { name: name.to_owned(), path: "/secret".into(), strength, adapter_name: None }
    }

    #[test]
    fn everything_that_is_set() {
        let image = EncodedImage::default();
        let request = GenerateRequest {
            negative_prompt: Some("blurry".into()),
            size: Size { width: 512, height: 768 },
            guidance_scale: 7.5,
            guidance_rescale: 0.7,
            timestep_spacing: Some(Spacing::Trailing),
            eta: 1.0,
            clip_skip: 1,
            source: Some(Source { image, mask: None, denoise_strength: 0.75 }),
            ..GenerateRequest::of("portrait", "a fox,\nin the snow")
        };
        let pipeline = PipelineSpec {
            vae: Some(file("vae/fine.safetensors")),
            loras: vec![lora("x/ink.safetensors", 0.8), lora("gone", 1.0), lora("oil", -1.0)],
            ..PipelineSpec::of(file("sd15/dream like.safetensors"))
        };
        let facts = Facts {
            prompt: "a fox,\nin the snow <lora:oil:-1>",
            seed: 1,
            scheduler: Some(SchedulerId::Dpmpp2mKarras),
            pipeline: &pipeline,
            skipped_loras: &["gone".to_owned()],
        };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            infotext(&request, facts),
            format!(
                "a fox,\nin the snow <lora:oil:-1>\nNegative prompt: blurry\nSteps: 4, Sampler: \
                 DPM++ 2M Karras, CFG scale: 7.5, Seed: 1, Size: 512x768, Model: dream like, VAE: \
                 fine, Denoising strength: 0.75, Timestep spacing: trailing, Clip skip: 2, Guidance \
                 rescale: 0.7, Eta: 1, LoRAs: \"ink: 0.8, oil: -1\", Version: diffused {version}"
            )
        );
    }

    #[test]
    fn nothing_that_is_not() {
        let request = GenerateRequest {
            negative_prompt: Some(String::new()),
            ..GenerateRequest::of("portrait", "a fox")
        };
        let pipeline = PipelineSpec::of(file("a, b: c"));
        let facts = Facts {
            prompt: "a fox",
            seed: u64::MAX,
            scheduler: Some(SchedulerId::EulerA),
            pipeline: &pipeline,
            skipped_loras: &[],
        };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            infotext(&request, facts),
            format!(
                "a fox\nSteps: 4, Sampler: Euler a, CFG scale: 1, Seed: 18446744073709551615, \
                 Size: 512x512, Model: \"a, b: c\", Version: diffused {version}"
            )
        );
    }

    #[test]
    fn an_image_that_was_made_larger_says_so_behind_what_it_said() {
        let superres =
            Superres { magnitude: 2, model: Some(file("e/x4.safetensors")), format: None };
        let lanczos = Superres { model: None, ..superres.clone() };
        let made = "Postprocess upscale by: 4, Postprocess upscaler: x4";
        let version = concat!("Version: diffused ", env!("CARGO_PKG_VERSION"));
        for (before, expected) in [
            ("", format!("{made}, {version}")),
            ("a fox\nSteps: 4, Size: 8x8", format!("a fox\nSteps: 4, Size: 8x8, {made}")),
            ("a note", format!("a note\n{made}")),
        ] {
            assert_eq!(upscaled(before, &superres), expected);
        }
        assert!(upscaled("", &lanczos).contains("Postprocess upscaler: Lanczos, "));
        let request = GenerateRequest {
            superres: Some(superres),
            ..GenerateRequest::of("portrait", "a fox")
        };
        let facts = Facts {
            prompt: "a fox",
            seed: 1,
            scheduler: None,
            pipeline: &PipelineSpec::of(file("m")),
            skipped_loras: &[],
        };
        assert!(infotext(&request, facts).ends_with(&format!("Model: m, {made}, {version}")));
    }

    #[test]
    fn a_png_is_read_as_it_was_written() {
        let rgb = crate::image::Rgb { width: 1, height: 1, bytes: &[1, 2, 3] };
        let long = "x".repeat(MAX_READ_BYTES + 1);
        for (text, expected) in
            [("a fox, café\nSteps: 4", 0), ("狐\nSteps: 4", 0), (long.as_str(), long.len())]
        {
            let file = crate::image::encode(rgb, crate::image::Format::Png, text).unwrap();
            assert_eq!(of_png(&file), text[expected..]);
        }
        assert_eq!(of_png(b"no image"), "");
    }

    #[test]
    fn compressed_text_is_read_as_far_as_it_is_short() {
        for (length, expected) in [(100, 100), (MAX_READ_BYTES, MAX_READ_BYTES), (64 << 20, 0)] {
            let mut file = Vec::new();
            let mut encoder = png::Encoder::new(&mut file, 1, 1);
            encoder.set_color(png::ColorType::Rgb);
            let text = "x".repeat(length);
            let mut chunk = png::text_metadata::ITXtChunk::new("parameters", text.clone());
            chunk.compress_text().unwrap();
            chunk.compressed = true;
            let mut writer = encoder.write_header().unwrap();
            writer.write_text_chunk(&chunk).unwrap();
            writer.write_image_data(&[1, 2, 3]).unwrap();
            writer.finish().unwrap();
            assert_eq!(of_png(&file), text[..expected]);
        }
    }
}
