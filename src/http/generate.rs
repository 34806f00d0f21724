//! `POST /generate`: a request in, an image out.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use utoipa::ToSchema;

use super::{
    Api, accept,
    body::JsonBody,
    problem::{Kind, Problem, X_JOB_ID},
};
use crate::{
    dispatcher::{DrawnImage, Outcome},
    image::{self, Format, Rgb, parameters::infotext},
    job::{Job, JobId},
    modes::{Mode, Modes, UnknownMode},
    request::{GenerateRequest, Overrides},
};

const X_MODE: HeaderName = HeaderName::from_static("x-mode");
const X_SEED: HeaderName = HeaderName::from_static("x-seed");
const X_SUPER_RES: HeaderName = HeaderName::from_static("x-superres");

/// The bytes of an image file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes a body that is bytes")]
pub struct ImageFile(Vec<u8>);

/// Draws an image and answers with it. Hanging up cancels the job.
#[utoipa::path(
    post, path = "/generate", tag = "images", request_body = Overrides,
    params(("Accept" = Option<String>, Header, description =
        "`image/png` (the default), `image/jpeg` or `image/webp`")),
    responses(
        (status = 200, description = "The image, with its parameters embedded",
         content((ImageFile = "image/png"), (ImageFile = "image/jpeg"), (ImageFile = "image/webp")),
         headers(
            ("X-Mode" = String, description = "The mode that drew it"),
            ("X-Seed" = u64, description = "The seed that it was drawn with"),
            ("X-SuperRes" = u32, description = "The upscaling factor; 0 is none"),
            ("X-Job-Id" = String, description = "For GET /api/jobs/{id}"))),
        (status = 400, description = "The body is not JSON"),
        (status = 404, description = "No such mode"),
        (status = 406, description = "No acceptable format"),
        (status = 409, description = "The job was cancelled"),
        (status = 413, description = "Body over 1 MiB"),
        (status = 415, description = "Not application/json"),
        (status = 422, description = "Invalid fields"),
        (status = 429, description = "The queue is full; see Retry-After"),
        (status = 500, description = "The model is unusable, or the worker died twice"),
        (status = 503, description = "Shutting down; see Retry-After"),
    )
)]
pub async fn generate(
    State(api): State<Api>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let format = accept::image_format(&headers)?;
    let overrides = Overrides::parse(&body)?;
    let modes = api.config.current();
    let selected = &api.dispatcher.status().selected_mode;
    let mode = mode_for(&modes, overrides.mode.as_deref(), selected)?;
    refuse_loras(mode)?;
    // 32 bits: what torch's generator takes of a seed.
    let seed = getrandom::u32().map_err(Problem::internal)?;
    let request = overrides.resolve(mode, || seed.into());

    let job = Job::Generation { request: request.clone(), pipeline: mode.pipeline.clone() };
    let ticket = api.dispatcher.submit(job).await?;
    let id = ticket.id();
    // Dropped with this future when the client hangs up, and the job with it.
    match ticket.outcome().await {
        Outcome::Image(drawn) => {
            let model = mode.pipeline.checkpoint.name.clone();
            let headers = image_headers(&request, id, format);
            let encoding =
                tokio::task::spawn_blocking(move || encode(&drawn, &request, &model, format));
            let file = encoding.await.map_err(Problem::internal)?.map_err(Problem::internal)?;
            Ok((headers, Bytes::from(file)).into_response())
        }
        Outcome::Failed(failure) => Err(Problem::of_job(failure, id)),
        Outcome::Cancelled => Err(Problem::cancelled(id)),
        Outcome::Switched | Outcome::Custom(_) => {
            Err(Problem::internal(format!("job {id}: a generation ended without an image")))
        }
    }
}

/// The mode that is named; else the one that was last switched to, if a reload has left it.
fn mode_for<'a>(
    modes: &'a Modes,
    named: Option<&str>,
    selected: &str,
) -> Result<&'a Arc<Mode>, UnknownMode> {
    match named {
        Some(name) => modes.get(name),
        None => modes.get(selected).or_else(|_| modes.get(&modes.default_mode)),
    }
}

/// LoRAs are read and shown, but not merged yet; an image without them would be a lie.
pub fn refuse_loras(mode: &Mode) -> Result<(), Problem> {
    let loras = &mode.pipeline.loras;
    if loras.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = loras.iter().map(|lora| format!("'{}'", lora.name)).collect();
    let detail = format!(
        "mode '{}' names LoRAs ({}); merging them is not in this version yet",
        mode.name,
        names.join(", ")
    );
    Err(Problem::new(Kind::Unsupported, detail).at("/mode"))
}

fn encode(
    drawn: &DrawnImage,
    request: &GenerateRequest,
    model: &str,
    format: Format,
) -> Result<Vec<u8>, image::EncodeError> {
    let size = drawn.report.size;
    let text = infotext(request, drawn.report.scheduler, model);
    let image = Rgb { width: size.width, height: size.height, bytes: &drawn.rgb };
    image::encode(image, format, &text)
}

fn image_headers(request: &GenerateRequest, id: JobId, format: Format) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(X_SEED, request.seed.into());
    headers.insert(X_SUPER_RES, HeaderValue::from_static("0"));
    for (name, value) in [(X_MODE, request.mode.clone()), (X_JOB_ID, id.to_string())] {
        // Both are plain ASCII: configuration sees to it for the mode's name.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::modes;

    #[test]
    fn the_mode_is_the_named_the_selected_or_the_default_one() {
        let modes = modes("{a: {model: a}, b: {model: b}}", "b");
        for (named, selected, expected) in [
            (Some("a"), "b", Ok("a")),
            (None, "a", Ok("a")),
            (None, "gone", Ok("b")),
            (Some("gone"), "a", Err(())),
        ] {
            let mode = mode_for(&modes, named, selected);
            let name = mode.as_ref().map(|mode| mode.name.as_str()).map_err(|_| ());
            assert_eq!(name, expected, "{named:?} {selected}");
        }
    }

    #[test]
    fn a_mode_with_loras_is_refused_by_their_names() {
        let modes = modes("{a: {model: a}, b: {model: b, loras: [x, y]}}", "a");
        assert!(refuse_loras(&modes.modes["a"]).is_ok());
        let problem = format!("{:?}", refuse_loras(&modes.modes["b"]).unwrap_err());
        assert!(problem.contains("('x', 'y'); merging them is not"), "{problem}");
    }
}
