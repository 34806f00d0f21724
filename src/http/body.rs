//! A request's JSON body, with errors that say what to do.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use serde_json::Value;

use super::{
    MAX_BODY_BYTES,
    problem::{Kind, Problem},
};

/// Any JSON value; what must be in it is for the handler to say.
pub struct JsonBody(pub Value);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_content_type(request.headers())?;
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                let limit = MAX_BODY_BYTES >> 20;
                Problem::new(Kind::BodyTooLarge, format!("a body has at most {limit} MiB"))
            } else {
                Problem::new(Kind::MalformedRequest, "the body could not be read to its end")
            }
        })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Problem::new(Kind::MalformedRequest, format!("the body is not JSON: {error}"))
        })
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let found = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if found.is_some_and(is_json) {
        return Ok(());
    }
    let found = found.map_or("none is named".to_owned(), |found| format!("this is '{found}'"));
    let detail = format!("the body is expected as 'content-type: application/json'; {found}");
    Err(Problem::new(Kind::UnsupportedMediaType, detail))
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
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
