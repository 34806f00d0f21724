//! The body of a request: JSON, or the parts of a form.
//!
//! Bytes that begin with `--\n` are a form, its parts separated by `\n--\n`: the first line of a part
//! is its name, the rest its content. (Taking a multipart body apart is the HTTP library's work.)
//! All other bytes are a JSON document.

use diffused::{
    modes::{CheckpointRef, Defaults, Mode, PipelineSpec, Size, Timeout},
    request::{
        Context, FieldError, Files, Form, GenerateRequest, InvalidFields, MAX_PROMPT_BYTES,
        Overrides, Superres, UpscaleWish, parse_json,
    },
};
use serde_json::{Map, Value};

use super::allocated_by;

const FORM: &[u8] = b"--\n";
const SEPARATOR: &[u8] = b"\n--\n";

/// A document unfolds to 10,000 values at most; each request is read four times here.
const MAX_ALLOCATED: usize = 32 << 20;
const MAX_ALLOCATED_PER_BYTE: usize = 64;

pub fn check(bytes: &[u8]) {
    let ((), allocated) = allocated_by(|| match bytes.strip_prefix(FORM) {
        Some(parts) => form(parts),
        None => json(bytes),
    });
    let limit = MAX_ALLOCATED + MAX_ALLOCATED_PER_BYTE * bytes.len();
    assert!(allocated <= limit, "{allocated} bytes allocated for a body of {}", bytes.len());
}

fn json(bytes: &[u8]) {
    match parse_json(bytes) {
        Ok(body) => {
            assert_eq!(Some(&body), serde_json::from_slice(bytes).ok().as_ref());
            fields(&body, &Files::default());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn form(bytes: &[u8]) {
    let mut form = Form::default();
    for part in split(bytes) {
        let end = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
        let content = part.get(end + 1..).unwrap_or_default();
        form.add(&String::from_utf8_lossy(&part[..end]), content);
    }
    match form.finish() {
        Ok((body, files)) => fields(&body, &files),
        Err(errors) => check_errors(&errors, None),
    }
}

fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some(at) = bytes.windows(SEPARATOR.len()).position(|part| part == SEPARATOR) {
        parts.push(&bytes[..at]);
        bytes = &bytes[at + SEPARATOR.len()..];
    }
    parts.push(bytes);
    parts
}

fn fields(body: &Value, files: &Files) {
    match Overrides::parse_with(body, files.clone()) {
        Ok(overrides) => overrides_hold(body, &overrides),
        Err(errors) => check_errors(&errors, Some(body)),
    }
    match UpscaleWish::parse(body, files.clone()) {
        Ok(wish) => assert!(Superres::MAGNITUDES.contains(&wish.magnitude)),
        Err(errors) => check_errors(&errors, Some(body)),
    }
}

fn overrides_hold(body: &Value, overrides: &Overrides) {
    assert!(overrides.tags.len() <= Overrides::MAX_TAGS);
    assert!(overrides.tags.iter().all(|tag| !tag.is_empty()));
    assert!(overrides.priority.is_none_or(|it| Overrides::PRIORITIES.contains(&it)));
    assert!(overrides.timeout.is_none_or(|it| (1..=Overrides::MAX_TIMEOUT_SECS).contains(&it)));
    assert!(overrides.loras.iter().all(|lora| lora.strength.is_finite()));
    if let Some(deadline) = overrides.deadline {
        deadline.unix_ms(u64::MAX);
    }

    let mode = mode();
    let upscaler = CheckpointRef { name: "x4".into(), path: "/x4".into() };
    for superres in [None, Some(&upscaler)] {
        let context = Context {
            mode: &mode,
            max_pixels: Size::DEFAULT_MAX_PIXELS,
            init_image: overrides.init_image.is_some().then_some((72, 104)),
            superres,
        };
        match overrides.clone().resolve(context, || 7) {
            Ok(request) => request_holds(&request),
            Err(errors) => check_errors(&errors, Some(body)),
        }
    }
}

fn request_holds(request: &GenerateRequest) {
    assert!(request.size.pixels() <= Size::DEFAULT_MAX_PIXELS);
    assert!(request.size.pixels() * u64::from(request.n) <= Overrides::MAX_TOTAL_PIXELS);
    assert!((1..=Overrides::MAX_IMAGES).contains(&request.n));
    assert!((1..=Defaults::MAX_STEPS).contains(&request.steps));
    assert!((0.0..=Defaults::MAX_GUIDANCE_SCALE).contains(&request.guidance_scale));
    assert!((0.0..=1.0).contains(&request.guidance_rescale));
    assert!((0.0..=1.0).contains(&request.eta));
    assert!(request.clip_skip <= Defaults::MAX_CLIP_SKIP);
    assert!(request.prompt.len() <= MAX_PROMPT_BYTES);
    if let Some(superres) = &request.superres {
        let factor = u64::from(superres.factor());
        let pixels = request.size.pixels() * u64::from(request.n) * factor * factor;
        assert!(pixels <= Superres::MAX_PIXELS);
    }
    // It travels to the worker and into the journal as JSON.
    let json = serde_json::to_string(request).unwrap();
    assert_eq!(&serde_json::from_str::<GenerateRequest>(&json).unwrap(), request);
}

/// Errors name fields whose parents are in the body.
fn check_errors(InvalidFields(errors): &InvalidFields, body: Option<&Value>) {
    assert!(!errors.is_empty());
    for FieldError { pointer, detail } in errors {
        assert!(!detail.is_empty(), "{pointer}");
        let Some((parent, _)) = pointer.rsplit_once('/') else {
            assert_eq!(pointer, "", "{detail}");
            continue;
        };
        assert!(body.is_none_or(|body| body.pointer(parent).is_some()), "{pointer}: {detail}");
    }
}

fn mode() -> Mode {
    let checkpoint = CheckpointRef { name: "x".into(), path: "/x".into() };
    Mode {
        name: "mode".into(),
        pipeline: PipelineSpec::of(checkpoint),
        defaults: Defaults::default(),
        pinned: false,
        preload: false,
        metadata: Map::new(),
        timeout: Timeout::Off,
    }
}
