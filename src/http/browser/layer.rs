//! The layer around all routes that applies the decision, and the headers of every answer.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Allowed, Verdict, decide};
use crate::http::{Api, problem::Problem};

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
/// What the API reads of a request.
const REQUEST_HEADERS: &str = "accept, authorization, content-type, idempotency-key, if-match, \
                               last-event-id, prefer, x-admin-key, x-api-key";
/// What the API says in headers of its own.
const ANSWER_HEADERS: &str = "ETag, Location, Preference-Applied, Retry-After, X-Job-Id, \
                              X-Lora-Skipped, X-Mode, X-Prompt-Truncated, X-Seed, X-SuperRes, \
                              X-SuperRes-Model";
/// How long a browser remembers a preflight's answer. The lists may change meanwhile.
const MAX_AGE_SECS: &str = "600";

/// Refuses what web pages may not do, and lets the listed ones read their answers.
pub async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let modes = api.config.current();
    let allowed = Allowed { http: &modes.http, listen_name: api.listen_name.as_deref() };
    let (parts, body) = request.into_parts();
    let verdict = decide(&parts, &allowed);
    drop(modes); // an answer may take hours, and a reload replaces them
    let cors = matches!(verdict, Verdict::Preflight | Verdict::Pass { cors: true });
    let origin = parts.headers.get(header::ORIGIN).filter(|_| cors).cloned();
    let mut response = match verdict {
        Verdict::Pass { .. } => next.run(Request::from_parts(parts, body)).await,
        Verdict::Preflight => preflight(),
        Verdict::Refused(refusal) => Problem::from(refusal).to_response(parts.uri.path()),
    };
    mark(response.headers_mut(), origin);
    response
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECS),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// `origin`: the page's, if it is listed.
fn mark(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let policy = if origin.is_some() { "cross-origin" } else { "same-origin" };
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static(policy));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static(ANSWER_HEADERS);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}
