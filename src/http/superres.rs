//! `POST /superres`: an image in, a larger one out.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue},
    response::Response,
};
use serde_json::Value;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::{
    Api,
    accept::{self, Form},
    answer::{self, UpscaleAnswer, Upscaled},
    asking::ImageFile,
    body::{GenerateBody, work_on},
    budget::{Place, WORK},
    client::Client,
    encoding,
    job_info::Accepted,
    problem::Problem,
    submit::{self, PREFERENCE_APPLIED, RESPOND_ASYNC},
};
use crate::{
    dispatcher::Outcome,
    image::{self, parameters},
    job::{Job, Terms},
    modes::Dimensions,
    request::{
        EncodedImage, FieldError, Files, Format, InvalidFields, Superres, UpscaleRequest,
        UpscaleWish,
    },
};

/// The custom job of that name is one of these.
pub const CUSTOM_NAME: &str = "upscale";

/// The fields of a JSON body as a form's parts. A part that is empty counts as absent.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct UpscaleForm {
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    #[schema(minimum = 1, maximum = 3)]
    superres_magnitude: Option<u32>,
    superres_format: Option<String>,
    #[schema(minimum = 1, maximum = 100)]
    superres_quality: Option<u32>,
}

/// Makes an image larger, and answers with it. Hanging up cancels the job.
#[utoipa::path(
    post, path = "/superres", tag = "images",
    request_body(content((UpscaleRequest = "application/json"), (UpscaleForm = "multipart/form-data"))),
    params(("Accept" = Option<String>, Header, description =
        "`image/png` (the default), `image/jpeg`, `image/webp` or `application/json`"),
           ("Prefer" = Option<String>, Header, description =
        "`respond-async`: as POST /api/jobs, with a 202 at once"),
           ("Idempotency-Key" = Option<String>, Header, description =
        "With `respond-async`: the same one with the same body gives the first one's job")),
    responses(
        (status = 200, description = "The image; what it says of how it was drawn is kept",
         content((ImageFile = "image/png"), (ImageFile = "image/jpeg"), (ImageFile = "image/webp"),
                 (UpscaleAnswer = "application/json")),
         headers(
            ("X-SuperRes" = u32, description = "1"),
            ("X-SuperRes-Model" = String, description =
                "What it was done by: the model as modes.yaml names it, percent-encoded, or `lanczos`"),
            ("X-Job-Id" = String, description = "For GET /api/jobs/{id}"))),
        (status = 202, description = "Queued, as it was preferred; Location has the job", body = Accepted),
        (status = 400, description = "The body is not JSON or not a form"),
        (status = 406, description = "No acceptable format"),
        (status = 409, description = "The job was cancelled"),
        (status = 413, description = "Body over 64 MiB"),
        (status = 415, description = "Neither application/json nor multipart/form-data"),
        (status = 422, description = "Invalid fields, or an image that would become too large"),
        (status = 429, description = "The queue is full; see Retry-After"),
        (status = 500, description = "The model is unusable, or the worker died twice"),
        (status = 503, description = "Out of memory, too much at once, or shutting down; see \
                                      Retry-After"),
    )
)]
pub async fn upscale(
    State(api): State<Api>,
    client: Client,
    headers: HeaderMap,
    body: GenerateBody,
) -> Result<Response, Problem> {
    if submit::prefers_async(&headers) {
        return later(&api, client, &headers, body).await;
    }
    let (asked, place) = understand_body(&api, body).await?;
    let form = accept::form_as(&headers, 1, asked.superres.format)?;
    let (superres, parameters) = (asked.superres.clone(), asked.parameters.clone());
    let terms = Terms { admission_secs: api.admission_secs, client: client.0, ..Terms::default() };
    let ticket = api.dispatcher.submit_with(asked.into_job(), terms).await?;
    drop(place); // the queue counts the image
    let id = ticket.id();
    // Dropped with this future when the client hangs up, and the job with it.
    match ticket.outcome().await {
        Outcome::Images(drawn) => {
            let upscaled = Upscaled { superres, parameters };
            let (Form::Image(format) | Form::Json(format)) = form;
            let encode = move |drawn: &_| Ok(answer::encode_upscaled(&upscaled, drawn, id, form)?);
            encoding::drawn(drawn, format, encode).await
        }
        Outcome::Failed(failure) => Err(Problem::of_job(failure, id)),
        Outcome::Cancelled => Err(Problem::cancelled(id)),
        Outcome::Switched | Outcome::Loaded | Outcome::Unloaded(_) | Outcome::Custom(_) => {
            Err(Problem::internal(format!("job {id}: an upscale ended without an image")))
        }
    }
}

/// Queues it and answers at once; the image is kept for GET /api/jobs/{id}/image.
async fn later(
    api: &Api,
    client: Client,
    headers: &HeaderMap,
    body: GenerateBody,
) -> Result<Response, Problem> {
    let (idempotency, body) = submit::idempotency_of(headers, body).await?;
    let (asked, place) = understand_body(api, body).await?;
    let terms = Terms { durable: true, idempotency, client: client.0, ..Terms::default() };
    let mut response = submit::answer_queued(api, asked.into_job(), terms).await?;
    drop(place);
    response.headers_mut().insert(PREFERENCE_APPLIED, HeaderValue::from_static(RESPOND_ASYNC));
    Ok(response)
}

/// The custom job of that name: `args` are the body of POST /superres.
pub async fn custom(
    api: &Api,
    args: Value,
    place: Option<Place>,
) -> Result<(Job, Option<Place>), Problem> {
    let body = GenerateBody { fields: args, files: Files::default(), place };
    let understood = understand_body(api, body).await;
    let (asked, place) = understood.map_err(|problem| problem.below("/args"))?;
    Ok((asked.into_job(), place))
}

/// What a body asks for, nothing open any more.
struct Asked {
    image: EncodedImage,
    superres: Superres,
    parameters: String,
}

impl Asked {
    fn into_job(self) -> Job {
        let Self { image, superres, parameters } = self;
        Job::Upscale { image, superres, parameters }
    }
}

/// The same of a whole body, with the place of its image.
async fn understand_body(api: &Api, body: GenerateBody) -> Result<(Asked, Option<Place>), Problem> {
    let GenerateBody { fields, files, place } = body;
    // Only the image is left of it: the fields may have held it as text.
    let parse = move || {
        let wish = UpscaleWish::parse(&fields, files)?;
        let checking = checking_bytes(&wish.image, wish.magnitude)?;
        Ok::<_, InvalidFields>((wish, checking))
    };
    let (parsed, mut place) = work_on(place, parse).await?;
    let (wish, checking) = parsed?;
    if let Some(place) = &mut place {
        place.shrink_to(wish.image.0.len() as u64);
    }
    Ok((check(api, wish, checking).await?, place))
}

async fn check(api: &Api, wish: UpscaleWish, checking_bytes: u64) -> Result<Asked, Problem> {
    let UpscaleWish { image, magnitude, format } = wish;
    let working = WORK.take(checking_bytes).await?;
    let checking = spawn_blocking(move || {
        let parameters = image::check(&image.0).map(|()| parameters::of_png(&image.0));
        drop(working);
        parameters.map(|parameters| (image, parameters))
    });
    let checked = checking.await.map_err(Problem::internal)?;
    let (image, parameters) = checked.map_err(|error| invalid("image", error.to_string()))?;
    let model = api.config.current().superres.clone();
    Ok(Asked { image, superres: Superres { magnitude, model, format }, parameters })
}

/// The memory that checking the image takes, by its header; or why there is no need to.
fn checking_bytes(image: &EncodedImage, magnitude: u32) -> Result<u64, InvalidFields> {
    let header = image::header(&image.0).map_err(|error| invalid("image", error.to_string()))?;
    let image::Header { width, height, checking_bytes } = header;
    let from = Dimensions { width, height };
    if let Err(too_large) = Superres::check(from, 1, magnitude) {
        // If the least is too much already, it is the image that is too large.
        let least = *Superres::MAGNITUDES.start();
        let is_fault = Superres::check(from, 1, least).is_ok();
        return Err(invalid(if is_fault { "superres_magnitude" } else { "image" }, too_large));
    }
    Ok(checking_bytes)
}

fn invalid(name: &str, detail: String) -> InvalidFields {
    InvalidFields(vec![FieldError::of(name, detail)])
}

/// How an image that is fetched later is sent, where its fetcher does not say.
pub fn format_of(job: &Job) -> Option<Format> {
    match job {
        Job::Generation { request, .. } => request.superres.as_ref()?.format,
        Job::Upscale { superres, .. } => superres.format,
        Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => None,
    }
}
