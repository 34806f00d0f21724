//! The generation parameters as text, in the form that AUTOMATIC1111's web UI writes and most
//! tools read ("infotext"): prompt, negative prompt, one line of settings.

use std::{fmt::Write, path::Path};

use crate::{modes::SchedulerId, request::GenerateRequest};

/// The infotext of an image that was drawn with `scheduler` from the checkpoint named `model`.
pub fn infotext(request: &GenerateRequest, scheduler: SchedulerId, model: &str) -> String {
    let mut text = request.prompt.clone();
    if let Some(negative) = request.negative_prompt.as_deref().filter(|text| !text.is_empty()) {
        let _ = write!(text, "\nNegative prompt: {negative}"); // to a String: cannot fail
    }
    let mut settings = vec![
        ("Steps", request.steps.to_string()),
        ("Sampler", sampler_name(scheduler).to_owned()),
        ("CFG scale", request.guidance_scale.to_string()),
        ("Seed", request.seed.to_string()),
        ("Size", request.size.to_string()),
        ("Model", stem(model)),
    ];
    if request.clip_skip > 0 {
        // There, 1 is the last layer.
        settings.push(("Clip skip", (request.clip_skip + 1).to_string()));
    }
    settings.push(("Version", concat!("diffused ", env!("CARGO_PKG_VERSION")).to_owned()));
    let settings: Vec<_> =
        settings.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
    format!("{text}\n{}", settings.join(", "))
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
    use crate::modes::Size;

    fn request() -> GenerateRequest {
        GenerateRequest {
            negative_prompt: Some("blurry".into()),
            size: Size { width: 512, height: 768 },
            guidance_scale: 7.5,
            seed: 1,
            clip_skip: 1,
            ..GenerateRequest::of("portrait", "a fox,\nin the snow")
        }
    }

    #[test]
    fn everything_that_is_set() {
        let text = infotext(&request(), SchedulerId::Dpmpp2mKarras, "sd15/dream like.safetensors");
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            text,
            format!(
                "a fox,\nin the snow\nNegative prompt: blurry\nSteps: 4, Sampler: DPM++ 2M Karras, \
                 CFG scale: 7.5, Seed: 1, Size: 512x768, Model: dream like, Clip skip: 2, \
                 Version: diffused {version}"
            )
        );
    }

    #[test]
    fn nothing_that_is_not() {
        let request = GenerateRequest {
            negative_prompt: Some(String::new()),
            guidance_scale: 1.0,
            clip_skip: 0,
            ..request()
        };
        let text = infotext(&request, SchedulerId::EulerA, "a, b: c");
        assert!(
            text.starts_with("a fox,\nin the snow\nSteps: 4, Sampler: Euler a, CFG scale: 1, ")
        );
        assert!(text.contains(r#", Model: "a, b: c", Version: "#), "{text}");
    }
}
