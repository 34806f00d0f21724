//! `POST /generate`: a request in, images out.

use axum::{extract::State, http::HeaderMap, response::Response};

use super::{
    Api,
    accept::{self, Form},
    answer::{self, Asked, GenerateAnswer},
    asking::{GenerateForm, ImageFile, Understood, understand},
    body::GenerateBody,
    client::Client,
    encoding,
    problem::Problem,
    submit,
};
use crate::{
    dispatcher::{FailureKind, JobFailure, Outcome},
    job::{Job, JobId, Terms},
    request::Overrides,
};

/// Draws images and answers with them. Hanging up cancels the job.
#[utoipa::path(
    post, path = "/generate", tag = "images",
    request_body(content((Overrides = "application/json"), (GenerateForm = "multipart/form-data"))),
    params(("Accept" = Option<String>, Header, description =
        "`image/png` (the default), `image/jpeg`, `image/webp` or `application/json`; more than one \
         image are always sent as JSON"),
           ("Prefer" = Option<String>, Header, description =
        "`respond-async`: as POST /api/jobs, with a 202 at once")),
    responses(
        (status = 200, description = "The image, with its parameters embedded; or JSON",
         content((ImageFile = "image/png"), (ImageFile = "image/jpeg"), (ImageFile = "image/webp"),
                 (GenerateAnswer = "application/json")),
         headers(
            ("X-Mode" = String, description = "The mode that drew it"),
            ("X-Seed" = u64, description = "The seed that it was drawn with, the first of several"),
            ("X-SuperRes" = u32, description = "Whether it was made larger: 0 or 1"),
            ("X-SuperRes-Model" = String, description =
                "What by: the model as modes.yaml names it, percent-encoded, or `lanczos`"),
            ("X-Job-Id" = String, description = "For GET /api/jobs/{id}"),
            ("X-Prompt-Truncated" = String, description =
                "The beginning of what the text encoder did not see of the prompt, percent-encoded"),
            ("X-Lora-Skipped" = String, description =
                "LoRAs that were left out, each percent-encoded, separated by commas"))),
        (status = 202, description = "Queued, as it was preferred; Location has the job"),
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
        (status = 503, description = "Out of memory, too much at once, not begun within ADMISSION_TIMEOUT, or shutting \
                                      down; see Retry-After"),
        (status = 504, description = "Its deadline has passed, or drawing took longer than its \
                                      timeout"),
    )
)]
pub async fn generate(
    State(api): State<Api>,
    client: Client,
    headers: HeaderMap,
    body: GenerateBody,
) -> Result<Response, Problem> {
    if submit::prefers_async(&headers) {
        return submit::later(&api, client, &headers, body).await;
    }
    let Understood { mut asked, terms, place } = understand(&api, body).await?;
    let format = asked.request.superres.as_ref().and_then(|superres| superres.format);
    let form = accept::form_as(&headers, asked.request.n, format)?;
    let (request, pipeline) = (asked.request.clone(), asked.pipeline.clone());
    let job = Job::Generation { request, pipeline };
    let terms = Terms { admission_secs: api.admission_secs, client: client.0, ..terms };
    let ticket = api.dispatcher.submit_with(job, terms).await?;
    let id = ticket.id();
    // From here on the queue counts the images, and they are gone with the job.
    asked.request.forget_images();
    drop(place);
    // Dropped with this future when the client hangs up, and the job with it.
    match ticket.outcome().await {
        Outcome::Images(drawn) => {
            let (Form::Image(format) | Form::Json(format)) = form;
            let encode = move |drawn: &_| Ok(answer::encode(&asked, drawn, id, form)?);
            encoding::drawn(drawn, format, encode).await
        }
        Outcome::Failed(failure) => Err(failed(&asked, failure, id)),
        Outcome::Cancelled => Err(Problem::cancelled(id)),
        Outcome::Switched | Outcome::Loaded | Outcome::Unloaded(_) | Outcome::Custom(_) => {
            Err(Problem::internal(format!("job {id}: a generation ended without an image")))
        }
    }
}

/// A LoRA that the caller chose is the caller's mistake; any other model file is the operator's.
fn failed(asked: &Asked, failure: JobFailure, id: JobId) -> Problem {
    let pointer = match failure.kind {
        FailureKind::UnusableLora { index } => asked.pointer_of_lora(index),
        FailureKind::UnusableModel
        | FailureKind::NoRoom
        | FailureKind::OutOfMemory
        | FailureKind::TimedOut
        | FailureKind::DeadlinePassed
        | FailureKind::NotAdmitted
        | FailureKind::DrawingTimedOut
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
