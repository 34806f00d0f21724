//! A request's body, with errors that say what to do.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, Multipart, Request, multipart::MultipartError},
    http::{HeaderMap, StatusCode, header},
};
use serde_json::Value;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    MAX_BODY_BYTES, MAX_GENERATE_BODY_BYTES,
    problem::{Kind, Problem},
};
use crate::request::{self, Files, Form};

/// What large bodies may take together while they are read and understood, in MiB.
const ROOM_MIB: usize = 512;
static ROOM: Semaphore = Semaphore::const_new(ROOM_MIB);
/// How long a body may be on its way: somebody may wait for its room.
const LONGEST: Duration = Duration::from_secs(120);

/// Any JSON value; what must be in it is for the handler to say.
pub struct JsonBody(pub Value);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !content_type(request.headers()).is_some_and(is_json) {
            return Err(wrong_content_type(request.headers(), "'content-type: application/json'"));
        }
        let bytes = read_bytes(request, state, MAX_BODY_BYTES).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(not_json)
    }
}

/// What an image is asked for with: JSON, or a form with files beside the fields.
pub struct GenerateBody {
    pub fields: Value,
    pub files: Files,
    /// Given back when both have been made something else of.
    pub room: Option<SemaphorePermit<'static>>,
}

impl<S: Send + Sync> FromRequest<S> for GenerateBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let content_type = content_type(request.headers());
        if content_type.is_some_and(is_json) {
            let room = room(request.headers()).await?;
            let bytes = read_bytes(request, state, MAX_GENERATE_BODY_BYTES).await?;
            let fields = request::parse_json(&bytes).map_err(not_json)?;
            return Ok(Self { fields, files: Files::default(), room });
        }
        if content_type.is_some_and(is_form) {
            let room = room(request.headers()).await?;
            let form =
                timeout(LONGEST, read_form(request, state)).await.map_err(|_| too_slow())??;
            let (fields, files) = form.finish()?;
            return Ok(Self { fields, files, room });
        }
        let expected = "'content-type: application/json' or as 'multipart/form-data'";
        Err(wrong_content_type(request.headers(), expected))
    }
}

/// Waits until there is room for a body; one of a few words needs none.
async fn room(headers: &HeaderMap) -> Result<Option<SemaphorePermit<'static>>, Problem> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = length.and_then(|length| length.parse().ok());
    let length = length.unwrap_or(MAX_GENERATE_BODY_BYTES).min(MAX_GENERATE_BODY_BYTES);
    if length <= MAX_BODY_BYTES {
        return Ok(None);
    }
    let mib = length.div_ceil(1 << 20) as u32;
    ROOM.acquire_many(mib).await.map(Some).map_err(Problem::internal)
}

fn too_slow() -> Problem {
    let detail = format!("the body took longer than {} s", LONGEST.as_secs());
    Problem::new(Kind::BodyTooSlow, detail)
}

async fn read_bytes<S: Send + Sync>(
    request: Request,
    state: &S,
    limit: usize,
) -> Result<Bytes, Problem> {
    let reading = timeout(LONGEST, Bytes::from_request(request, state));
    reading.await.map_err(|_| too_slow())?.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            too_large(limit)
        } else {
            Problem::new(Kind::MalformedRequest, "the body could not be read to its end")
        }
    })
}

fn not_json(error: serde_json::Error) -> Problem {
    Problem::new(Kind::MalformedRequest, format!("the body is not JSON: {error}"))
}

async fn read_form<S: Send + Sync>(request: Request, state: &S) -> Result<Form, Problem> {
    let mut parts = Multipart::from_request(request, state).await.map_err(|rejection| {
        Problem::new(Kind::MalformedRequest, format!("the form: {}", rejection.body_text()))
    })?;
    let unreadable = |error: MultipartError| {
        if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return too_large(MAX_GENERATE_BODY_BYTES);
        }
        let detail = format!("the form cannot be read: {}", error.body_text());
        Problem::new(Kind::MalformedRequest, detail)
    };
    let mut form = Form::default();
    while let Some(part) = parts.next_field().await.map_err(unreadable)? {
        let name = part.name().unwrap_or_default().to_owned();
        form.add(&name, &part.bytes().await.map_err(unreadable)?);
    }
    Ok(form)
}

fn too_large(limit: usize) -> Problem {
    let limit = limit >> 20;
    Problem::new(Kind::BodyTooLarge, format!("a body has at most {limit} MiB here"))
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
}

fn wrong_content_type(headers: &HeaderMap, expected: &str) -> Problem {
    let found = content_type(headers);
    let found = found.map_or("none is named".to_owned(), |found| format!("this is '{found}'"));
    let detail = format!("the body is expected as {expected}; {found}");
    Problem::new(Kind::UnsupportedMediaType, detail)
}

fn is_form(content_type: &str) -> bool {
    essence(content_type) == "multipart/form-data"
}

fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type);
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The type without its parameters.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        for (content_type, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.x+json", true),
            ("application/x-www-form-urlencoded", false),
            ("text/json+json", false),
            ("", false),
        ] {
            assert_eq!(is_json(content_type), expected, "{content_type}");
        }
    }
}
