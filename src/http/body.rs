//! A request's body, with errors that say what to do.

use axum::{
    extract::{FromRequest, Multipart, Request, multipart::MultipartError},
    http::{HeaderMap, header},
};
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::{
    MAX_BODY_BYTES, MAX_GENERATE_BODY_BYTES,
    budget::Place,
    intake::{Intake, refusal},
    problem::{Kind, Problem},
};
use crate::request::{self, Files, Form};

/// Any JSON value; what must be in it is for the handler to say.
pub struct JsonBody(pub Value);

/// The same, of a handler that waits for something while it holds the value.
pub struct PlacedJsonBody {
    pub value: Value,
    /// The memory that it takes. A short body needs none.
    pub place: Option<Place>,
}

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let PlacedJsonBody { value, .. } = PlacedJsonBody::from_request(request, state).await?;
        Ok(Self(value))
    }
}

impl<S: Send + Sync> FromRequest<S> for PlacedJsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        if !content_type(request.headers()).is_some_and(is_json) {
            return Err(wrong_content_type(request.headers(), "'content-type: application/json'"));
        }
        let (parts, body) = request.into_parts();
        let (bytes, place) = Intake::new(&parts.headers, body, MAX_BODY_BYTES)?.read().await?;
        let (value, place) = work_on(place, move || request::parse_json(&bytes)).await?;
        Ok(Self { value: value.map_err(not_json)?, place })
    }
}

/// Works on a body: a long one, which has a place, off the server's threads. The work holds the
/// place, so that a hang-up returns nothing early.
pub async fn work_on<T: Send + 'static>(
    place: Option<Place>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, Option<Place>), Problem> {
    if place.is_none() {
        return Ok((work(), None));
    }
    spawn_blocking(move || (work(), place)).await.map_err(Problem::internal)
}

/// What an image is asked for with: JSON, or a form with files beside the fields.
pub struct GenerateBody {
    pub fields: Value,
    pub files: Files,
    /// The memory that both take. A short body needs none.
    pub place: Option<Place>,
}

impl<S: Send + Sync> FromRequest<S> for GenerateBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let content_type = content_type(request.headers());
        let (is_json, is_form) =
            (content_type.is_some_and(is_json), content_type.is_some_and(is_form));
        if is_json || is_form {
            let (parts, body) = request.into_parts();
            let intake = Intake::new(&parts.headers, body, MAX_GENERATE_BODY_BYTES)?;
            if is_json {
                let (bytes, place) = intake.read().await?;
                let (fields, place) = work_on(place, move || request::parse_json(&bytes)).await?;
                let fields = fields.map_err(not_json)?;
                return Ok(Self { fields, files: Files::default(), place });
            }
            let (body, room) = intake.into_body();
            let form = read_form(Request::from_parts(parts, body), state).await?;
            let (form, place) = work_on(room.take(), move || form.finish()).await?;
            let (fields, files) = form?;
            return Ok(Self { fields, files, place });
        }
        let expected = "'content-type: application/json' or as 'multipart/form-data'";
        Err(wrong_content_type(request.headers(), expected))
    }
}

fn not_json(error: serde_json::Error) -> Problem {
    Problem::new(Kind::MalformedRequest, format!("the body is not JSON: {error}"))
}

async fn read_form<S: Send + Sync>(request: Request, state: &S) -> Result<Form, Problem> {
    let mut parts = Multipart::from_request(request, state).await.map_err(|rejection| {
        Problem::new(Kind::MalformedRequest, format!("the form: {}", rejection.body_text()))
    })?;
    let unreadable = |error: MultipartError| {
        refusal(&error).unwrap_or_else(|| {
            let detail = format!("the form cannot be read: {}", error.body_text());
            Problem::new(Kind::MalformedRequest, detail)
        })
    };
    let mut form = Form::default();
    while let Some(part) = parts.next_field().await.map_err(unreadable)? {
        let name = part.name().unwrap_or_default().to_owned();
        form.add(&name, &part.bytes().await.map_err(unreadable)?);
    }
    Ok(form)
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

    #[tokio::test]
    async fn a_long_body_keeps_its_place_beyond_its_reading() {
        for (length, has_place) in [(10, false), (200 << 10, true)] {
            let body = format!("\"{}\"", "x".repeat(length));
            let request = Request::post("/").header("content-type", "application/json");
            let request = request.body(body.into()).unwrap();
            let body = PlacedJsonBody::from_request(request, &()).await.unwrap();
            assert_eq!(body.value.as_str().map(str::len), Some(length));
            assert_eq!(body.place.is_some(), has_place);

            // Where it is long, the server's threads go on meanwhile.
            let here = std::thread::current().id();
            let (there, place) = work_on(body.place, || std::thread::current().id()).await.unwrap();
            assert_eq!(there != here, has_place);
            assert_eq!(place.is_some(), has_place);
        }
    }

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
