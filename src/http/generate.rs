//! `POST /generate`: a request in, images out.

use std::sync::Arc;

use axum::{extract::State, http::HeaderMap, response::Response};
use tokio::{sync::Semaphore, task::spawn_blocking};
use utoipa::ToSchema;

use super::{
    Api, accept,
    answer::{self, Asked, GenerateAnswer},
    body::GenerateBody,
    problem::Problem,
};
use crate::{
    config::{find_lora, with_loras},
    dispatcher::{FailureKind, JobFailure, Outcome},
    image,
    job::{Job, JobId, Terms},
    modes::{Mode, Modes, PipelineSpec, UnknownMode},
    request::{Context, EncodedImage, FieldError, InvalidFields, Overrides},
};

/// Images of requests are unpacked by two at a time: one may take half a gigabyte.
static UNPACKING: Semaphore = Semaphore::const_new(2);

/// The bytes of an image file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes a body that is bytes")]
pub struct ImageFile(Vec<u8>);

/// The fields of a JSON body as a form's parts: images as files, `loras` as JSON. A part that is
/// empty counts as absent.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct GenerateForm {
    /// The same as the field of that name in a JSON body; so for every other field.
    prompt: Option<String>,
    #[schema(value_type = Option<String>, format = Binary)]
    init_image: Option<Vec<u8>>,
    #[schema(value_type = Option<String>, format = Binary)]
    mask_image: Option<Vec<u8>>,
    /// A JSON object with fields that have no part of their own.
    #[schema(value_type = Option<Overrides>)]
    request: Option<String>,
}

/// Draws images and answers with them. Hanging up cancels the job.
#[utoipa::path(
    post, path = "/generate", tag = "images",
    request_body(content((Overrides = "application/json"), (GenerateForm = "multipart/form-data"))),
    params(("Accept" = Option<String>, Header, description =
        "`image/png` (the default), `image/jpeg`, `image/webp` or `application/json`; more than one \
         image are always sent as JSON")),
    responses(
        (status = 200, description = "The image, with its parameters embedded; or JSON",
         content((ImageFile = "image/png"), (ImageFile = "image/jpeg"), (ImageFile = "image/webp"),
                 (GenerateAnswer = "application/json")),
         headers(
            ("X-Mode" = String, description = "The mode that drew it"),
            ("X-Seed" = u64, description = "The seed that it was drawn with, the first of several"),
            ("X-SuperRes" = u32, description = "The upscaling factor; 0 is none"),
            ("X-Job-Id" = String, description = "For GET /api/jobs/{id}"),
            ("X-Prompt-Truncated" = String, description =
                "The beginning of what the text encoder did not see of the prompt, percent-encoded"),
            ("X-Lora-Skipped" = String, description =
                "LoRAs that were left out, each percent-encoded, separated by commas"))),
        (status = 400, description = "The body is not JSON or not a form"),
        (status = 404, description = "No such mode"),
        (status = 406, description = "No acceptable format"),
        (status = 409, description = "The job was cancelled"),
        (status = 408, description = "The body took too long"),
        (status = 413, description = "Body over 64 MiB"),
        (status = 415, description = "Neither application/json nor multipart/form-data"),
        (status = 422, description = "Invalid fields, nothing that the mode's model can do, a LoRA that \
                                      does not fit it, or no room for the model"),
        (status = 429, description = "The queue is full; see Retry-After"),
        (status = 500, description = "The model is unusable, or the worker died twice"),
        (status = 503, description = "Out of memory, or shutting down; see Retry-After"),
    )
)]
pub async fn generate(
    State(api): State<Api>,
    headers: HeaderMap,
    body: GenerateBody,
) -> Result<Response, Problem> {
    let overrides = {
        // What was sent goes before the job waits: it may be much, and is all in the overrides.
        let GenerateBody { fields, files, room: _room } = body;
        Overrides::parse_with(&fields, files)?
    };
    let form = accept::form(&headers, overrides.n.unwrap_or(1))?;
    let modes = api.config.current();
    let selected = &api.dispatcher.status().selected_mode;
    let mode = mode_for(&modes, overrides.mode.as_deref(), selected)?.clone();
    let terms = Terms { priority: overrides.priority.unwrap_or_default(), ..Terms::default() };
    let asked = ask(&modes, &mode, overrides).await?;

    let (request, pipeline) = (asked.request.clone(), asked.pipeline.clone());
    let job = Job::Generation { request, pipeline };
    let ticket = api.dispatcher.submit_with(job, terms).await?;
    let id = ticket.id();
    // Dropped with this future when the client hangs up, and the job with it.
    match ticket.outcome().await {
        Outcome::Images(drawn) => {
            let encoding = spawn_blocking(move || answer::encode(&asked, &drawn, id, form));
            encoding.await.map_err(Problem::internal)?.map_err(Problem::internal)
        }
        Outcome::Failed(failure) => Err(failed(&asked, failure, id)),
        Outcome::Cancelled => Err(Problem::cancelled(id)),
        Outcome::Switched | Outcome::Loaded | Outcome::Unloaded(_) | Outcome::Custom(_) => {
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

async fn ask(modes: &Arc<Modes>, mode: &Arc<Mode>, overrides: Overrides) -> Result<Asked, Problem> {
    let (overrides, Found { init_image, pipeline }) = look_up(modes, mode, overrides).await?;
    let prompt = overrides.prompt.clone();
    let lora_pointers = overrides.loras.iter().map(|wish| wish.pointer.clone()).collect();
    // 32 bits: what torch's generator takes of a seed.
    let seed = getrandom::u32().map_err(Problem::internal)?;
    let context = Context { mode, max_pixels: modes.max_pixels, init_image };
    let request = overrides.resolve(context, || seed.into())?;
    Ok(Asked { prompt, request, pipeline, lora_pointers })
}

/// A LoRA that the caller chose is the caller's mistake; any other model file is the operator's.
fn failed(asked: &Asked, failure: JobFailure, id: JobId) -> Problem {
    let pointer = match failure.kind {
        FailureKind::UnusableLora { index } => asked.pointer_of_lora(index),
        FailureKind::UnusableModel
        | FailureKind::NoRoom
        | FailureKind::OutOfMemory
        | FailureKind::TimedOut
        | FailureKind::InvalidRequest { .. }
        | FailureKind::WorkerDied
        | FailureKind::Handler
        | FailureKind::ShuttingDown
        | FailureKind::Internal => None,
    };
    match pointer {
        Some(pointer) => Problem::of_field(pointer, failure, id),
        None => Problem::of_job(failure, id),
    }
}

/// What only a look at the request's images and at the disk can tell.
struct Found {
    /// Width and height of the init image.
    init_image: Option<(u32, u32)>,
    /// The mode's with the request's own LoRAs.
    pipeline: PipelineSpec,
}

async fn look_up(
    modes: &Arc<Modes>,
    mode: &Arc<Mode>,
    overrides: Overrides,
) -> Result<(Overrides, Found), Problem> {
    let unpacking = match overrides.init_image {
        Some(_) => Some(UNPACKING.acquire().await.map_err(Problem::internal)?),
        None => None,
    };
    let (modes, mode) = (modes.clone(), mode.clone());
    let looking = spawn_blocking(move || {
        let _unpacking = unpacking;
        find(&modes, &mode, &overrides).map(|found| (overrides, found))
    });
    Ok(looking.await.map_err(Problem::internal)??)
}

/// Reads the images to their ends and looks for the LoRAs; finds everything that is wrong.
fn find(modes: &Modes, mode: &Mode, overrides: &Overrides) -> Result<Found, InvalidFields> {
    let mut errors = Vec::new();
    let mut dimensions = |name, image: &Option<EncodedImage>| {
        let error = match image::dimensions(&image.as_ref()?.0) {
            Ok(dimensions) => return Some(dimensions),
            Err(error) => error.to_string(),
        };
        errors.push(FieldError::of(name, error));
        None
    };
    let init_image = dimensions("init_image", &overrides.init_image);
    dimensions("mask_image", &overrides.mask_image);
    let mut loras = Vec::new();
    for wish in &overrides.loras {
        match find_lora(modes, mode, &wish.name, wish.strength) {
            Ok(lora) => loras.push(lora),
            Err(error) => {
                let pointer = wish.pointer.clone();
                errors.push(FieldError { pointer, detail: error.to_string() });
            }
        }
    }
    if !errors.is_empty() {
        return Err(InvalidFields(errors));
    }
    Ok(Found { init_image, pipeline: with_loras(mode.pipeline.clone(), loras) })
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
}
