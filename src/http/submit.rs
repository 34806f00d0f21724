//! `POST /api/jobs`: a request in, a job's name out; the images are fetched when they are drawn.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};

use super::{
    Api,
    asking::{GenerateForm, Understood, understand},
    body::{GenerateBody, work_on},
    client::Client,
    idempotency,
    job_info::{Accepted, StateName},
    jobs::accepted,
    problem::Problem,
};
use crate::{
    job::{IdempotencyKey, Job, JobId, Terms},
    request::{EncodedImage, Files, Overrides},
};

pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
pub const RESPOND_ASYNC: &str = "respond-async";

/// Queues a generation and answers at once. Its images are kept for GET /api/jobs/{id}/image; hanging
/// up cancels nothing.
#[utoipa::path(
    post, path = "/api/jobs", tag = "jobs",
    request_body(content((Overrides = "application/json"), (GenerateForm = "multipart/form-data"))),
    params(("Idempotency-Key" = Option<String>, Header, description =
        "Any text: the same one with the same body gives the first one's job")),
    responses(
        (status = 202, description = "Queued; Location has the job", body = Accepted),
        (status = 400, description = "The body is not JSON or not a form"),
        (status = 404, description = "No such mode"),
        (status = 408, description = "The body took too long"),
        (status = 413, description = "Body over 64 MiB"),
        (status = 415, description = "Neither application/json nor multipart/form-data"),
        (status = 422, description = "Invalid fields, or an Idempotency-Key that stands for another \
                                      request"),
        (status = 429, description = "The queue is full; see Retry-After"),
        (status = 503, description = "Too much at once, or shutting down; see Retry-After"),
    )
)]
pub async fn submit(
    State(api): State<Api>,
    client: Client,
    headers: HeaderMap,
    body: GenerateBody,
) -> Result<Response, Problem> {
    answer_later(&api, client, &headers, body).await
}

/// The same, of a request that could have been answered with its images.
pub async fn later(
    api: &Api,
    client: Client,
    headers: &HeaderMap,
    body: GenerateBody,
) -> Result<Response, Problem> {
    let mut response = answer_later(api, client, headers, body).await?;
    response.headers_mut().insert(PREFERENCE_APPLIED, HeaderValue::from_static(RESPOND_ASYNC));
    Ok(response)
}

/// Whether the client would rather not wait (RFC 7240).
pub fn prefers_async(headers: &HeaderMap) -> bool {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut words = preferences.flat_map(|value| value.split([',', ';']));
    words.any(|word| word.trim().eq_ignore_ascii_case(RESPOND_ASYNC))
}

async fn answer_later(
    api: &Api,
    client: Client,
    headers: &HeaderMap,
    body: GenerateBody,
) -> Result<Response, Problem> {
    let (idempotency, body) = idempotency_of(headers, body).await?;
    let Understood { asked, terms, place } = understand(api, body).await?;
    let terms = Terms { durable: true, idempotency, client: client.0, ..terms };
    let job = Job::Generation { request: asked.request, pipeline: asked.pipeline };
    let answer = answer_queued(api, job, terms).await;
    drop(place); // the queue counts the images
    answer
}

/// Queues a durable job and answers 202, with how it stands by then.
pub async fn answer_queued(api: &Api, job: Job, terms: Terms) -> Result<Response, Problem> {
    let id = submit_durable(api, job, terms).await?;
    let state = api.dispatcher.job_state(id);
    let state = state.map_or(StateName::Queued, |state| StateName::of(&state));
    Ok(accepted(id, Accepted { id: id.to_string(), state }))
}

/// The request's key, if it has one, with what stands for its body; and the body again.
pub async fn idempotency_of(
    headers: &HeaderMap,
    body: GenerateBody,
) -> Result<(Option<IdempotencyKey>, GenerateBody), Problem> {
    if !headers.contains_key(idempotency::HEADER) {
        return Ok((None, body)); // there is no need to look at the body
    }
    let (headers, GenerateBody { fields, files, place }) = (headers.clone(), body);
    let digest = move || {
        let file = |file: &Option<EncodedImage>| file.clone().map(|file| file.0);
        let Files { init_image, mask_image, image } = &files;
        let images = [init_image, mask_image, image].map(file);
        let images = images.iter().map(|file| file.as_deref().unwrap_or_default());
        let text = fields.to_string();
        let key = idempotency::of_parts(&headers, [text.as_bytes()].into_iter().chain(images));
        (key, fields, files)
    };
    let ((key, fields, files), place) = work_on(place, digest).await?;
    Ok((key?, GenerateBody { fields, files, place }))
}

/// Queues a job that goes on whoever hangs up, from here on; once for each Idempotency-Key.
pub async fn submit_durable(api: &Api, job: Job, terms: Terms) -> Result<JobId, Problem> {
    let Api { dispatcher, idempotency, .. } = api.clone();
    let key = terms.idempotency.clone();
    let submitting = async move {
        let submit = async { Ok(dispatcher.submit_with(job, terms).await?.detach()) };
        idempotency.submit_once(key, submit).await
    };
    tokio::spawn(submitting).await.map_err(Problem::internal)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_prefers_not_to_wait() {
        for (value, expected) in [
            ("respond-async", true),
            ("wait=10, Respond-Async", true),
            ("respond-async; wait=5", true),
            ("return=minimal", false),
            ("respond-asynchronously", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(value));
            assert_eq!(prefers_async(&headers), expected, "{value}");
        }
        assert!(!prefers_async(&HeaderMap::new()));
    }
}
