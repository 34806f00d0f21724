//! What must be so before a handler is asked at all.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use sha2::{Digest, Sha256};

use super::{
    Api,
    problem::{Kind, Problem},
};

/// That who asks has the admin key, where one is set.
pub struct Admin;

impl FromRequestParts<Api> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        Self::check(&parts.headers, api)
    }
}

impl Admin {
    /// For who learns from the body that it is needed.
    pub fn check(headers: &HeaderMap, api: &Api) -> Result<Self, Problem> {
        let Some(key) = &api.admin_key else { return Ok(Self) };
        let given = headers.get("x-admin-key").map_or(&b""[..], |given| given.as_bytes());
        // Compared by their hashes: how long that takes says nothing about the key.
        if Sha256::digest(given) == Sha256::digest(key.as_bytes()) {
            return Ok(Self);
        }
        Err(Problem::new(
            Kind::AdminKeyNeeded,
            "this needs the admin key, in the header X-Admin-Key",
        ))
    }
}

/// That there is a configuration file.
pub struct WithFile;

impl FromRequestParts<Api> for WithFile {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, api: &Api) -> Result<Self, Problem> {
        if api.config.has_file() {
            return Ok(Self);
        }
        let detail = "this daemon was started without modes.yaml and has one mode, described by the \
                      environment; start it with a file for more";
        Err(Problem::new(Kind::Conflict, detail))
    }
}
