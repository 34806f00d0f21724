//! What a generation is answered with: an image, or images in JSON, and the headers of both.

use std::fmt::Write;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    accept::Form,
    problem::X_JOB_ID,
    sending::{Answer, Part},
};
use crate::{
    dispatcher::{DrawnImages, DrawnReport},
    image::{
        self, EncodeError, Format, Rgb,
        parameters::{self, Facts, infotext},
    },
    job::JobId,
    modes::{Dimensions, PipelineSpec},
    request::{GenerateRequest, Superres},
};

const X_MODE: HeaderName = HeaderName::from_static("x-mode");
const X_SEED: HeaderName = HeaderName::from_static("x-seed");
const X_SUPER_RES: HeaderName = HeaderName::from_static("x-superres");
const X_SUPER_RES_MODEL: HeaderName = HeaderName::from_static("x-superres-model");
const X_PROMPT_TRUNCATED: HeaderName = HeaderName::from_static("x-prompt-truncated");
const X_LORA_SKIPPED: HeaderName = HeaderName::from_static("x-lora-skipped");

/// So much of a text goes into a header, in characters. (Clients allow 8 KiB for all headers; a
/// character may take 12 bytes.)
const MAX_HEADER_CHARS: usize = 200;

/// What was asked for, all of it.
pub struct Asked {
    /// The prompt as the user wrote it, tags and all.
    pub prompt: String,
    pub request: GenerateRequest,
    /// The mode's, with the request's own LoRAs behind those that the mode has.
    pub pipeline: PipelineSpec,
    /// Where in the request its own LoRAs are named, as JSON pointers.
    pub lora_pointers: Vec<String>,
}

impl Asked {
    /// The field that names the LoRA of that place in the pipeline's list; none if it is the mode's.
    pub fn pointer_of_lora(&self, index: usize) -> Option<&str> {
        let of_mode = self.pipeline.loras.len() - self.lora_pointers.len();
        index.checked_sub(of_mode).and_then(|own| self.lora_pointers.get(own)).map(String::as_str)
    }
}

/// Images and what there is to say about them.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerateAnswer {
    mode: String,
    #[schema(example = "0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11")]
    job_id: String,
    /// In the order of their seeds.
    images: Vec<AnswerImage>,
    /// What the text encoder did not see of the prompt; `null` if it saw all.
    prompt_truncated: Option<String>,
    /// LoRAs that were left out.
    skipped_loras: Vec<String>,
    /// What they were made larger by, if they were: the model as modes.yaml names it, or `lanczos`.
    #[serde(skip_serializing_if = "Option::is_none")]
    superres_model: Option<String>,
}

/// An image that was made larger.
#[derive(Debug, Serialize, ToSchema)]
pub struct UpscaleAnswer {
    #[schema(example = "0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11")]
    job_id: String,
    #[schema(example = "image/png")]
    media_type: &'static str,
    /// The file in base64.
    #[schema(value_type = String)]
    data: &'static str,
    /// As modes.yaml names it, or `lanczos`.
    superres_model: String,
}

/// What an image was sent for.
pub struct Upscaled {
    pub superres: Superres,
    /// What it says of how it was drawn.
    pub parameters: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AnswerImage {
    seed: u64,
    #[schema(example = "image/png")]
    media_type: &'static str,
    /// The file in base64, its parameters embedded.
    #[schema(value_type = String)]
    data: &'static str,
}

/// The answer to `asked`, for which `drawn` was drawn. Takes its time.
pub fn encode(
    asked: &Asked,
    drawn: &DrawnImages,
    job: JobId,
    form: Form,
) -> Result<Answer, EncodeError> {
    let (Form::Image(format) | Form::Json(format)) = form;
    let seeds_and_rgb = asked.request.seeds().zip(drawn.each());
    let files = seeds_and_rgb
        .map(|(seed, rgb)| Ok((seed, file(asked, &drawn.report, (seed, rgb), format)?)))
        .collect::<Result<Vec<_>, EncodeError>>()?;
    let headers = headers(&asked.request, &drawn.report, job);
    Ok(match form {
        Form::Image(format) => {
            // There is one: more are never sent in this form.
            let file = files.into_iter().next().map(|(_, file)| file).unwrap_or_default();
            image_alone(headers, format, file)
        }
        Form::Json(format) => {
            let media_type = format.media_type();
            let (seeds, files): (Vec<_>, Vec<_>) = files.into_iter().unzip();
            let image = |seed| AnswerImage { seed, media_type, data: DATA };
            let answer = GenerateAnswer {
                mode: asked.request.mode.clone(),
                job_id: job.to_string(),
                images: seeds.into_iter().map(image).collect(),
                prompt_truncated: drawn.report.prompt_truncated.clone(),
                skipped_loras: drawn.report.skipped_loras.clone(),
                superres_model: drawn.report.superres.as_ref().map(|it| it.model.clone()),
            };
            images_in_json(headers, &answer, files)
        }
    })
}

/// The answer with an image that was made larger. Takes its time.
pub fn encode_upscaled(
    upscaled: &Upscaled,
    drawn: &DrawnImages,
    job: JobId,
    form: Form,
) -> Result<Answer, EncodeError> {
    let (Form::Image(format) | Form::Json(format)) = form;
    let Upscaled { superres, parameters } = upscaled;
    let Dimensions { width, height } = drawn.report.size;
    let rgb = Rgb { width, height, bytes: &drawn.rgb };
    let file = image::encode(rgb, format, &parameters::upscaled(parameters, superres))?;
    let headers = about(&drawn.report, job);
    Ok(match form {
        Form::Image(format) => image_alone(headers, format, file),
        Form::Json(format) => {
            let answer = UpscaleAnswer {
                job_id: job.to_string(),
                media_type: format.media_type(),
                data: DATA,
                superres_model: superres.model_name().to_owned(),
            };
            images_in_json(headers, &answer, vec![file])
        }
    })
}

fn image_alone(mut headers: HeaderMap, format: Format, file: Vec<u8>) -> Answer {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    Answer { headers, parts: vec![Part::Bytes(file)] }
}

/// Stands in a JSON answer for a file. It is found with its key: a text may be the same, but none can
/// contain the key, since quotes within texts are escaped.
const DATA: &str = "<file>";

/// The JSON with the files in the places of [`DATA`], in their order.
fn images_in_json(mut headers: HeaderMap, answer: &impl Serialize, files: Vec<Vec<u8>>) -> Answer {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Texts and numbers in structs always serialize.
    let json = serde_json::to_string(answer).unwrap_or_default();
    let data = format!("\"data\":\"{DATA}\"");
    let mut texts = json.split(&data);
    let mut parts: Vec<_> = texts.next().map(|text| Part::Bytes(text.into())).into_iter().collect();
    for (file, text) in files.into_iter().zip(texts) {
        parts.push(Part::Bytes(b"\"data\":\"".to_vec()));
        parts.push(Part::Base64(file));
        parts.push(Part::Bytes(format!("\"{text}").into_bytes()));
    }
    Answer { headers, parts }
}

/// What an image that is kept was asked for.
pub enum Wanted {
    Drawn(Box<Asked>),
    Upscaled(Upscaled),
}

/// The headers of one image of a job, and the parameters that are embedded in it.
pub fn about_one(
    wanted: &Wanted,
    report: &DrawnReport,
    (job, index): (JobId, usize),
    format: Format,
) -> (HeaderMap, String) {
    let (mut headers, parameters) = match wanted {
        Wanted::Drawn(asked) => {
            let seed = asked.request.seed.wrapping_add(index as u64);
            let mut headers = headers(&asked.request, report, job);
            headers.insert(X_SEED, seed.into());
            (headers, infotext(&asked.request, facts(asked, report, seed)))
        }
        Wanted::Upscaled(Upscaled { superres, parameters }) => {
            (about(report, job), parameters::upscaled(parameters, superres))
        }
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    (headers, parameters)
}

/// One image of a job, as a file of that format. Takes its time.
pub fn encode_one(
    (headers, parameters): (HeaderMap, String),
    report: &DrawnReport,
    bytes: &[u8],
    format: Format,
) -> Result<Answer, EncodeError> {
    let Dimensions { width, height } = report.size;
    let file = image::encode(Rgb { width, height, bytes }, format, &parameters)?;
    Ok(Answer { headers, parts: vec![Part::Bytes(file)] })
}

fn file(
    asked: &Asked,
    report: &DrawnReport,
    (seed, bytes): (u64, &[u8]),
    format: Format,
) -> Result<Vec<u8>, EncodeError> {
    let rgb = Rgb { width: report.size.width, height: report.size.height, bytes };
    image::encode(rgb, format, &infotext(&asked.request, facts(asked, report, seed)))
}

fn facts<'a>(asked: &'a Asked, report: &'a DrawnReport, seed: u64) -> Facts<'a> {
    Facts {
        prompt: &asked.prompt,
        seed,
        scheduler: report.scheduler,
        pipeline: &asked.pipeline,
        skipped_loras: &report.skipped_loras,
    }
}

fn headers(request: &GenerateRequest, report: &DrawnReport, job: JobId) -> HeaderMap {
    let mut headers = about(report, job);
    headers.insert(X_SEED, request.seed.into());
    let truncated = report.prompt_truncated.as_deref().map(header_text);
    let skipped: Vec<_> = report.skipped_loras.iter().map(|it| header_text(it)).collect();
    let skipped = (!skipped.is_empty()).then(|| skipped.join(","));
    for (name, value) in [
        (X_MODE, Some(request.mode.clone())),
        (X_PROMPT_TRUNCATED, truncated),
        (X_LORA_SKIPPED, skipped),
    ] {
        // All are plain ASCII: configuration sees to it for the mode's name.
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    headers
}

/// What there is to say of all images.
fn about(report: &DrawnReport, job: JobId) -> HeaderMap {
    let model = report.superres.as_ref().map(|superres| header_text(&superres.model));
    let is_larger = HeaderValue::from_static(if model.is_some() { "1" } else { "0" });
    let mut headers = HeaderMap::from_iter([(X_SUPER_RES, is_larger)]);
    for (name, value) in [(X_JOB_ID, Some(job.to_string())), (X_SUPER_RES_MODEL, model)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    headers
}

/// A text as a header can have it: percent-encoded as URLs are, and its end cut off with an "…".
fn header_text(text: &str) -> String {
    let mut encoded = String::new();
    let cut = text.char_indices().nth(MAX_HEADER_CHARS).map(|(at, _)| (&text[..at], "…"));
    let (start, ellipsis) = cut.unwrap_or((text, ""));
    for byte in start.bytes().chain(ellipsis.bytes()) {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // to a String: cannot fail
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_looks_like_a_file_stays_a_text() {
        let image = AnswerImage { seed: 1, media_type: "image/png", data: DATA };
        let answer = GenerateAnswer {
            mode: "a".to_owned(),
            job_id: String::new(),
            images: vec![image],
            prompt_truncated: Some(DATA.to_owned()),
            skipped_loras: vec![r#""data":"<file>""#.to_owned()],
            superres_model: None,
        };
        let answer = images_in_json(HeaderMap::new(), &answer, vec![b"file".to_vec()]);
        let json: String = answer
            .parts
            .iter()
            .map(|part| match part {
                Part::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
                Part::Base64(bytes) => format!("({})", bytes.len()),
            })
            .collect();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["images"][0]["data"], "(4)");
        assert_eq!(json["prompt_truncated"], DATA);
        assert_eq!(json["skipped_loras"][0], r#""data":"<file>""#);
    }

    #[test]
    fn any_text_fits_into_a_header() {
        let long = "狐".repeat(MAX_HEADER_CHARS + 1);
        let cut = "%E7%8B%90".repeat(MAX_HEADER_CHARS) + "%E2%80%A6";
        for (text, expected) in [
            ("styles/ink_v2.safetensors", "styles/ink_v2.safetensors"),
            ("a, b\r\n100%", "a%2C%20b%0D%0A100%25"),
            ("", ""),
            (&long, &cut),
            (&long[3..], &cut[..cut.len() - 9]),
        ] {
            assert_eq!(header_text(text), expected);
        }
    }
}
