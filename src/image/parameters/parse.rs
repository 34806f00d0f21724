//! Parameters as text, read back: what [`infotext`](super::infotext) and
//! [`upscaled`](super::upscaled) wrote. Other tools' texts are understood as far as they agree.

use std::path::PathBuf;

use super::sampler_name;
use crate::{
    modes::{CheckpointRef, Dimensions, LoraRef, PipelineSpec, SchedulerId, Size},
    request::{EncodedImage, GenerateRequest, Source, Superres},
};

/// What an image says of its origin.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    Generated(Box<Generated>),
    /// An image that was made larger, and the parameters it had before.
    Upscaled {
        superres: Superres,
        before: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Its seed is this image's own.
    pub request: GenerateRequest,
    pub pipeline: PipelineSpec,
    pub scheduler: Option<SchedulerId>,
}

/// Reads the text of an image of that size. Files have no paths, and the model's name stands in for
/// the mode's, which no image has.
pub fn parse(text: &str, size: Dimensions) -> Origin {
    let (words, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let settings = settings(last);
    let is_ours = settings
        .last()
        .is_some_and(|(key, value)| *key == "Version" && value.starts_with("diffused "));
    let is_generated = settings.first().is_some_and(|(key, _)| *key == "Steps");
    // A generation ends with the version; an image that was made larger later has more behind it.
    if let Some(superres) = superres(&settings)
        && !(is_generated && is_ours)
    {
        let before = last.rfind("Postprocess upscale by: ").unwrap_or(0);
        let before = &text[..text.len() - last.len() + before];
        let before = before.strip_suffix(", ").or(before.strip_suffix('\n')).unwrap_or(before);
        return Origin::Upscaled { superres, before: before.to_owned() };
    }
    let words = if is_generated { words } else { text };
    Origin::Generated(Box::new(generated(words, &settings, size)))
}

fn generated(words: &str, settings: &[(&str, String)], size: Dimensions) -> Generated {
    let get = |wanted: &str| {
        settings.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.as_str())
    };
    let number = |key| get(key)?.parse::<f32>().ok().filter(|number| number.is_finite());
    let (prompt, negative) = match words.split_once("\nNegative prompt: ") {
        Some((prompt, negative)) => (prompt, Some(negative.to_owned())),
        None => (words, None),
    };
    let model = get("Model").unwrap_or("unknown");
    let other = GenerateRequest::of(model, prompt);
    let source = number("Denoising strength").map(|denoise_strength| Source {
        image: EncodedImage::default(),
        mask: None,
        denoise_strength,
    });
    let drawn_size = get("Size").and_then(|size| size.parse().ok());
    let request = GenerateRequest {
        negative_prompt: negative,
        size: drawn_size.or(Size::new(size.width, size.height).ok()).unwrap_or(other.size),
        steps: get("Steps").and_then(|steps| steps.parse().ok()).unwrap_or(other.steps),
        guidance_scale: number("CFG scale").unwrap_or(other.guidance_scale),
        guidance_rescale: number("Guidance rescale").unwrap_or_default(),
        seed: get("Seed").and_then(|seed| seed.parse().ok()).unwrap_or_default(),
        timestep_spacing: get("Timestep spacing").and_then(|spacing| spacing.parse().ok()),
        eta: number("Eta").unwrap_or_default(),
        // There, 1 is the last layer.
        clip_skip: get("Clip skip")
            .and_then(|skip| skip.parse::<u32>().ok())
            .unwrap_or_default()
            .saturating_sub(1),
        source,
        superres: superres(settings),
        ..other
    };
    let scheduler = get("Sampler").and_then(scheduler_of);
    let pipeline = PipelineSpec {
        vae: get("VAE").map(file),
        loras: get("LoRAs").map(loras).unwrap_or_default(),
        ..PipelineSpec::of(file(model))
    };
    let request = GenerateRequest { scheduler, ..request };
    Generated { request, pipeline, scheduler }
}

/// The settings of a line; none if it is no such line.
fn settings(line: &str) -> Vec<(&str, String)> {
    let mut settings = Vec::new();
    let mut rest = line;
    while let Some((key, after)) = rest.split_once(": ") {
        let (value, end) = match after.starts_with('"').then(|| json_string(after)).flatten() {
            Some(read) => read,
            None => {
                let end = after.find(", ").unwrap_or(after.len());
                (after[..end].to_owned(), end)
            }
        };
        settings.push((key, value));
        rest = after[end..].strip_prefix(", ").unwrap_or("");
    }
    settings
}

/// The JSON string at the text's beginning, and where it ends.
fn json_string(text: &str) -> Option<(String, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

fn superres(settings: &[(&str, String)]) -> Option<Superres> {
    let get =
        |wanted: &str| settings.iter().rfind(|(key, _)| *key == wanted).map(|(_, value)| value);
    let factor: u32 = get("Postprocess upscale by")?.parse().ok()?;
    let magnitude = factor.checked_ilog2().filter(|it| Superres::MAGNITUDES.contains(it))?;
    let model = get("Postprocess upscaler").filter(|model| *model != "Lanczos");
    Some(Superres { magnitude, model: model.map(|model| file(model)), format: None })
}

fn loras(text: &str) -> Vec<LoraRef> {
    let lora = |text: &str| {
        let (name, strength) = text.rsplit_once(": ")?;
        let strength: f32 = strength.parse().ok().filter(|it: &f32| it.is_finite())?;
        let CheckpointRef { name, path } = file(name);
        Some(LoraRef { name, path, strength, adapter_name: None })
    };
    text.split(", ").filter_map(lora).collect()
}

fn file(name: &str) -> CheckpointRef {
    CheckpointRef { name: name.to_owned(), path: PathBuf::new() }
}

fn scheduler_of(sampler: &str) -> Option<SchedulerId> {
    let mut all = SchedulerId::NAMES.iter().filter_map(|name| name.parse().ok());
    all.find(|scheduler| sampler_name(*scheduler) == sampler)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::parameters::{Facts, infotext, upscaled},
        modes::Spacing,
    };

    const SIZE: Dimensions = Dimensions { width: 64, height: 72 };

    fn lora(name: &str, strength: f32) -> LoraRef {
        LoraRef { name: name.to_owned(), path: PathBuf::new(), strength, adapter_name: None }
    }

    fn everything() -> Generated {
        let source = Source { image: EncodedImage::default(), mask: None, denoise_strength: 0.75 };
        let request = GenerateRequest {
            negative_prompt: Some("blurry,\nSteps: many".into()),
            size: Size { width: 512, height: 768 },
            steps: 30,
            guidance_scale: 7.5,
            guidance_rescale: 0.7,
            seed: u64::MAX,
            scheduler: Some(SchedulerId::Dpmpp2mKarras),
            timestep_spacing: Some(Spacing::Trailing),
            eta: 1.0,
            clip_skip: 1,
            source: Some(source),
            ..GenerateRequest::of("a, b: \"c\"", "a fox,\nin the snow <lora:oil:-1>")
        };
        let pipeline = PipelineSpec {
            vae: Some(file("fine")),
            loras: vec![lora("ink", 0.8), lora("oil", -1.0)],
            ..PipelineSpec::of(file("a, b: \"c\""))
        };
        Generated { request, pipeline, scheduler: Some(SchedulerId::Dpmpp2mKarras) }
    }

    fn text_of(generated: &Generated) -> String {
        let Generated { request, pipeline, scheduler } = generated;
        let (prompt, seed) = (request.prompt.as_str(), request.seed);
        infotext(
            request,
            Facts { prompt, seed, scheduler: *scheduler, pipeline, skipped_loras: &[] },
        )
    }

    #[test]
    fn what_was_written_is_read_back() {
        let model = Superres { magnitude: 2, model: Some(file("x4")), format: None };
        let plain = Generated {
            request: GenerateRequest::of("m", ""),
            pipeline: PipelineSpec::of(file("m")),
            scheduler: None,
        };
        let large = Generated {
            request: GenerateRequest { superres: Some(model.clone()), ..plain.request.clone() },
            ..plain.clone()
        };
        for generated in [plain.clone(), large, everything()] {
            let text = text_of(&generated);
            assert_eq!(parse(&text, SIZE), Origin::Generated(Box::new(generated)), "{text}");
        }
        let lanczos = Superres { magnitude: 1, model: None, format: None };
        let drawn = text_of(&plain);
        for before in ["", "a note", "a fox\nSteps: 4, Size: 8x8", &drawn] {
            for superres in [model.clone(), lanczos.clone()] {
                let text = upscaled(before, &superres);
                let expected = Origin::Upscaled { superres, before: before.to_owned() };
                assert_eq!(parse(&text, SIZE), expected, "{text}");
            }
        }
    }

    #[test]
    fn of_any_other_text_the_words_are_the_prompt() {
        let size = Size { width: 64, height: 72 };
        for text in ["", "a fox", "a fox\nin the snow: deep", "Seed: 3"] {
            let Origin::Generated(generated) = parse(text, SIZE) else { panic!("{text}") };
            assert_eq!((generated.request.prompt.as_str(), generated.request.size), (text, size));
            let json = serde_json::to_string(&generated.request).unwrap();
            assert!(serde_json::from_str::<GenerateRequest>(&json).is_ok(), "{json}");
        }
        let foreign = "a fox\nSteps: 20, Sampler: New, CFG scale: nan, Size: 3x3, Clip skip: 0";
        let Origin::Generated(generated) = parse(foreign, SIZE) else { panic!() };
        let GenerateRequest { prompt, steps, guidance_scale, size: found, .. } = &generated.request;
        assert_eq!((prompt.as_str(), *steps, *guidance_scale, *found), ("a fox", 20, 1.0, size));
    }
}
