//! What must be so before a handler is asked at all.

use std::{
    convert::Infallible,
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{
    extract::{FromRequestParts, MatchedPath},
    http::{Method, request::Parts},
};
use sha2::{Digest, Sha256};

use super::{
    Api,
    problem::{Kind, Problem},
    server::Peer,
    throttle::Throttle,
};

static REFUSED: Throttle = Throttle::new(Duration::from_secs(1));

/// Requires the admin key, if one is configured.
pub struct Admin;

impl FromRequestParts<Api> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Ok(caller) = Caller::from_request_parts(parts, api).await;
        caller.require_admin(api)
    }
}

/// The sender of a request that may turn out to need the admin key.
pub struct Caller {
    /// The digest of the key: comparing digests takes the same time for every wrong key.
    key: Option<[u8; 32]>,
    method: Method,
    /// As the router knows it: without any text of the client.
    route: Option<MatchedPath>,
    peer: Option<SocketAddr>,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self {
            key: parts.headers.get("x-admin-key").map(|key| Sha256::digest(key).into()),
            method: parts.method.clone(),
            route: parts.extensions.get().cloned(),
            peer: parts.extensions.get().map(|Peer(address)| *address),
        })
    }
}

impl Caller {
    pub fn require_admin(&self, api: &Api) -> Result<Admin, Problem> {
        let Some(key) = &api.admin_key else { return Ok(Admin) };
        if self.key == Some(Sha256::digest(key.as_bytes()).into()) {
            return Ok(Admin);
        }
        self.log_refusal();
        Err(Problem::new(
            Kind::AdminKeyNeeded,
            "this needs the admin key, in the header X-Admin-Key",
        ))
    }

    fn log_refusal(&self) {
        let Some(held_back) = REFUSED.pass(Instant::now()) else { return };
        let key = if self.key.is_some() { "a wrong admin key" } else { "no admin key" };
        let route = self.route.as_ref().map_or("?", |route| route.as_str());
        let peer = self.peer.map_or("an unknown address".to_owned(), |peer| peer.to_string());
        let method = &self.method;
        tracing::warn!(
            "refused {method} {route} from {peer}: {key} ({held_back} more since the last such line)"
        );
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
