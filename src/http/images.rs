//! `GET /api/jobs/{id}/image`: what was drawn, in the form that is asked for.

use axum::{
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;
use tokio::task::spawn_blocking;
use utoipa::IntoParams;

use super::{
    Api,
    accept::{self, Form},
    answer::{self, Asked, Upscaled, Wanted},
    asking::ImageFile,
    encoding,
    jobs::find,
    problem::{Kind, Problem},
    sending, superres,
};
use crate::{
    dispatcher::{JobView, KeptImage},
    image::Format,
    job::{Job, JobState},
    request::{FieldError, InvalidFields},
};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ImageQuery {
    /// `png`, `jpeg` or `webp`; by `Accept` where it is not named.
    format: Option<String>,
    /// Of a JPEG, 1 to 100 [92].
    quality: Option<String>,
}

/// The first image of a job that was submitted by POST /api/jobs.
#[utoipa::path(get, path = "/api/jobs/{id}/image", tag = "jobs",
    params(("id" = String, Path, description = "From Location"), ImageQuery,
           ("Accept" = Option<String>, Header, description = "`image/png`, `image/jpeg` or `image/webp`")),
    responses(
        (status = 200, description = "The image, with its parameters embedded",
         content((ImageFile = "image/png"), (ImageFile = "image/jpeg"), (ImageFile = "image/webp"))),
        (status = 404, description = "No such job or image"),
        (status = 406, description = "No acceptable format"),
        (status = 409, description = "Not drawn yet, failed or cancelled"),
        (status = 410, description = "It was not kept, or not for so long"),
        (status = 400, description = "A parameter is repeated"),
        (status = 422, description = "Invalid parameters"),
        (status = 503, description = "Too many images are encoded or sent; see Retry-After"),
    ))]
pub async fn first(
    state: State<Api>,
    Path(id): Path<String>,
    query: Query<ImageQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    nth(state, Path((id, "0".to_owned())), query, headers).await
}

/// One of a job's images, counted from 0.
#[utoipa::path(get, path = "/api/jobs/{id}/image/{index}", tag = "jobs",
    params(("id" = String, Path, description = "From Location"),
           ("index" = u32, Path, description = "In the order of their seeds, from 0"), ImageQuery,
           ("Accept" = Option<String>, Header, description = "`image/png`, `image/jpeg` or `image/webp`")),
    responses(
        (status = 200, description = "The image, with its parameters embedded",
         content((ImageFile = "image/png"), (ImageFile = "image/jpeg"), (ImageFile = "image/webp"))),
        (status = 404, description = "No such job or image"),
        (status = 406, description = "No acceptable format"),
        (status = 409, description = "Not drawn yet, failed or cancelled"),
        (status = 410, description = "It was not kept, or not for so long"),
        (status = 400, description = "A parameter is repeated"),
        (status = 422, description = "Invalid parameters"),
        (status = 503, description = "Too many images are encoded or sent; see Retry-After"),
    ))]
pub async fn nth(
    State(api): State<Api>,
    Path((id, index)): Path<(String, String)>,
    Query(query): Query<ImageQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let view = find(&api, &id)?;
    let format = match query.format()?.or(superres::format_of(&view.job)) {
        Some(format) => format,
        None => match accept::form(&headers, 1)? {
            Form::Image(format) | Form::Json(format) => format,
        },
    };
    let Some(report) = view.report.clone().filter(|_| view.images > 0) else {
        return Err(not_there(&view));
    };
    let index: usize = index.parse().map_err(|_| no_image())?;
    if index >= view.images as usize {
        return Err(no_image());
    }
    let (dispatcher, id) = (api.dispatcher, view.id);
    let opening = spawn_blocking(move || dispatcher.image(id, index));
    let kept = opening.await.map_err(Problem::internal)?.map_err(Problem::internal)?;
    let Some(kept) = kept else { return Err(not_there(&view)) };
    let Some(wanted) = wanted(view) else { return Err(no_image()) };
    let about = answer::about_one(&wanted, &report, (id, index), format);
    let bytes = report.image_bytes() as u64;
    match (kept, format) {
        // As it was written.
        (KeptImage::Png(file), Format::Png) => {
            sending::respond_with_file(about.0, file).map_err(Problem::internal)
        }
        (KeptImage::Png(file), Format::Jpeg { .. } | Format::WebP) => {
            let encode = move |rgb: &[u8]| Ok(answer::encode_one(about, &report, rgb, format)?);
            encoding::converted(file, bytes, format, encode).await
        }
        (KeptImage::Drawn(images), _) => {
            let encode = move || {
                let rgb = images.each().nth(index).unwrap_or_default();
                Ok(answer::encode_one(about, &report, rgb, format)?)
            };
            encoding::kept(bytes, format, encode).await
        }
    }
}

impl ImageQuery {
    fn format(&self) -> Result<Option<Format>, InvalidFields> {
        let invalid =
            |name: &str, detail: &str| Err(InvalidFields(vec![FieldError::of(name, detail)]));
        let quality = match self.quality.as_deref().map(str::parse) {
            None => None,
            Some(Ok(quality @ 1..=100)) => Some(quality),
            Some(_) => return invalid("quality", "is no number from 1 to 100"),
        };
        let format = Format::of(["format", "quality"], self.format.as_deref(), quality);
        format.map_err(|error| InvalidFields(vec![error]))
    }
}

/// What the job was asked for; nothing if it makes no image.
fn wanted(view: JobView) -> Option<Wanted> {
    match view.job {
        Job::Generation { request, pipeline } => {
            let (prompt, lora_pointers) = (view.terms.prompt, Vec::new());
            Some(Wanted::Drawn(Box::new(Asked { prompt, request, pipeline, lora_pointers })))
        }
        Job::Upscale { superres, parameters, .. } => {
            Some(Wanted::Upscaled(Upscaled { superres, parameters }))
        }
        Job::ModeSwitch { .. } | Job::Load { .. } | Job::Unload { .. } | Job::Custom { .. } => None,
    }
}

fn no_image() -> Problem {
    Problem::new(Kind::NotFound, "the job has no image of that number")
}

/// Why there is no image of a job.
fn not_there(view: &JobView) -> Problem {
    let state = view.state.name();
    match &view.state {
        JobState::Failed { reason } => {
            Problem::new(Kind::Conflict, format!("the job has failed: {reason}"))
        }
        JobState::Done if view.terms.durable => {
            Problem::new(Kind::Gone, "the images were kept for a while, and had to make room")
        }
        JobState::Done => {
            let detail = "the job keeps no images: POST /generate answers with them, POST /api/jobs \
                          keeps them";
            Problem::new(Kind::Gone, detail)
        }
        JobState::Cancelled
        | JobState::Queued
        | JobState::Loading { .. }
        | JobState::Running { .. } => {
            Problem::new(Kind::Conflict, format!("there is no image: the job is {state}"))
        }
    }
}
