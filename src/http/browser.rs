//! Protects a daemon on loopback from web pages.
//!
//! A browser sends any page's requests to this machine. `Host` stops DNS rebinding: a page cannot
//! choose an address or `localhost` for its own name. `Origin` and `Sec-Fetch-Site` stop what a page
//! may send without asking (forms, bodiless posts). The decision is pure; [`guard`] applies it.

use axum::http::{Method, Version, header, request::Parts};

use super::problem::{Kind, Problem};
use crate::modes::{Authority, HostName, Http, WebOrigin};

mod layer;

pub use layer::guard;

/// What the configuration and the command line allow.
struct Allowed<'a> {
    http: &'a Http,
    /// The name in `--listen`.
    listen_name: Option<&'a HostName>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Pass {
        /// Whether the page's origin is listed, so that the page may read the answer.
        cors: bool,
    },
    /// The question of a listed page's browser whether it may send a request.
    Preflight,
    Refused(Refusal),
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    NoHost,
    SeveralHosts,
    InvalidHost,
    UnknownHost(HostName),
    /// `None`: the browser names no origin, or an opaque one.
    ForeignPage(Option<String>),
}

fn decide(request: &Parts, allowed: &Allowed) -> Verdict {
    let host = match host(request, allowed) {
        Ok(host) => host,
        Err(refusal) => return Verdict::Refused(refusal),
    };
    let page = Page::of(request, host.as_ref(), allowed);
    let asks = request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    match page {
        Page::Listed if request.method == Method::OPTIONS && asks => Verdict::Preflight,
        Page::Listed => Verdict::Pass { cors: true },
        Page::None | Page::Own => Verdict::Pass { cors: false },
        // Without CORS headers the browser keeps the answer from the page.
        Page::Foreign(_) if is_read(&request.method) => Verdict::Pass { cors: false },
        Page::Foreign(origin) => Verdict::Refused(Refusal::ForeignPage(origin)),
    }
}

/// No GET changes anything.
fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The one host that the request names, if it is ours. `None`: a health checker that speaks HTTP/1.0
/// (HAProxy's plain `option httpchk`) names none; no browser does that.
fn host(request: &Parts, allowed: &Allowed) -> Result<Option<Authority>, Refusal> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::SeveralHosts);
    }
    let Some(host) = host else {
        let is_health = super::is_health(request.uri.path()) && is_read(&request.method);
        let is_exempt = request.version == Version::HTTP_10 && is_health;
        return if is_exempt { Ok(None) } else { Err(Refusal::NoHost) };
    };
    let host = host.to_str().map_err(|_| Refusal::InvalidHost)?;
    // A target in absolute form counts instead of the header (RFC 9112, 3.2.2).
    let target = request.uri.authority().map(|target| target.as_str());
    for name in [Some(host), target].into_iter().flatten() {
        is_ours(&name.parse().map_err(|_| Refusal::InvalidHost)?, allowed)?;
    }
    let host = target.unwrap_or(host).parse().map_err(|_| Refusal::InvalidHost)?;
    Ok(Some(host))
}

fn is_ours(host: &Authority, allowed: &Allowed) -> Result<(), Refusal> {
    match host.name() {
        Some(name) if !host.is_address_or_localhost() => {
            let mut names = allowed.http.hosts.iter().chain(allowed.listen_name);
            if names.any(|ours| ours == name) {
                Ok(())
            } else {
                Err(Refusal::UnknownHost(name.clone()))
            }
        }
        _ => Ok(()),
    }
}

/// The web page that sent the request.
#[derive(Debug, PartialEq, Eq)]
enum Page {
    /// Not one, or the user typed the address.
    None,
    /// Of this very host and port.
    Own,
    Listed,
    Foreign(Option<String>),
}

impl Page {
    fn of(request: &Parts, host: Option<&Authority>, allowed: &Allowed) -> Self {
        let mut origins = request.headers.get_all(header::ORIGIN).iter();
        let site = request.headers.get("sec-fetch-site").map(|site| site.as_bytes());
        // The word of a browser that sends no Origin along, or has seen through a redirect.
        let is_cross = !matches!(site, None | Some(b"same-origin" | b"none"));
        let Some(origin) = origins.next() else {
            return if is_cross { Self::Foreign(None) } else { Self::None };
        };
        let origin = origin.to_str().ok().and_then(|origin| Some((origin, origin.parse().ok()?)));
        let Some((text, origin)): Option<(&str, WebOrigin)> = origin else {
            return Self::Foreign(None);
        };
        if origins.next().is_some() {
            Self::Foreign(None)
        } else if allowed.http.origins.contains(&origin) {
            Self::Listed
        } else if !is_cross && host.is_some_and(|host| origin.is_served_by(host)) {
            Self::Own
        } else {
            Self::Foreign(Some(text.to_owned()))
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoHost => Self::new(Kind::MalformedRequest, "the header Host is missing"),
            Refusal::SeveralHosts => {
                Self::new(Kind::MalformedRequest, "the request has more than one Host header")
            }
            Refusal::InvalidHost => {
                Self::new(Kind::MalformedRequest, "the header Host or the target names no host")
            }
            Refusal::UnknownHost(name) => {
                let detail = format!(
                    "'{name}' is not a name of this daemon; if it should be, add it to http.hosts in \
                     modes.yaml"
                );
                Self::new(Kind::UnknownHost, detail)
            }
            Refusal::ForeignPage(origin) => {
                let page = origin.map_or("a page without an origin".to_owned(), |origin| {
                    format!("a page of {origin}")
                });
                let detail = format!(
                    "{page} may not use this daemon; to allow an origin, add it to http.origins in \
                     modes.yaml"
                );
                Self::new(Kind::ForeignOrigin, detail)
            }
        }
    }
}

#[cfg(test)]
mod tests;
