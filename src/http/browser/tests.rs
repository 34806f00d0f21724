//! Every kind of host, page and method.

use axum::http::{Request, request::Builder};

use super::*;

fn lists() -> Http {
    Http {
        hosts: vec!["studio.lan".parse().unwrap()],
        origins: vec!["https://studio.example.com".parse().unwrap()],
        ..Http::default()
    }
}

fn verdict(request: Builder) -> Verdict {
    let http = lists();
    let listen_name: HostName = "box.lan".parse().unwrap();
    let allowed = Allowed { http: &http, listen_name: Some(&listen_name) };
    decide(&request.body(()).unwrap().into_parts().0, &allowed)
}

fn pass() -> Verdict {
    Verdict::Pass { cors: false }
}

fn foreign(origin: Option<&str>) -> Verdict {
    Verdict::Refused(Refusal::ForeignPage(origin.map(str::to_owned)))
}

#[test]
fn the_host_is_an_address_localhost_or_a_known_name() {
    let unknown = |name: &str| Verdict::Refused(Refusal::UnknownHost(name.parse().unwrap()));
    for (host, expected) in [
        ("localhost:4200", pass()),
        ("x.localhost", pass()),
        ("127.0.0.1:4200", pass()),
        ("[::1]:4200", pass()),
        ("192.168.1.7", pass()),
        ("Studio.LAN:80", pass()),
        ("studio.lan.", pass()),
        ("box.lan:4200", pass()),
        ("evil.example:4200", unknown("evil.example")),
        ("x.studio.lan", unknown("x.studio.lan")),
        ("localhost.evil.example", unknown("localhost.evil.example")),
        ("", Verdict::Refused(Refusal::InvalidHost)),
        ("a@localhost", Verdict::Refused(Refusal::InvalidHost)),
        ("localhost, localhost", Verdict::Refused(Refusal::InvalidHost)),
    ] {
        for method in ["GET", "POST", "OPTIONS"] {
            let request = Request::builder().method(method).uri("/health").header("host", host);
            assert_eq!(verdict(request), expected, "{method} {host}");
        }
    }
}

#[test]
fn one_host_is_needed_but_for_the_health_of_http_1_0() {
    let request = |version, method: &str, uri: &str| {
        Request::builder().version(version).method(method).uri(uri)
    };
    let no_host = Verdict::Refused(Refusal::NoHost);
    for (version, method, uri, expected) in [
        (Version::HTTP_10, "GET", "/health/live", pass()),
        (Version::HTTP_10, "POST", "/health/live", Verdict::Refused(Refusal::NoHost)),
        (Version::HTTP_10, "GET", "/healthy", Verdict::Refused(Refusal::NoHost)),
        (Version::HTTP_10, "GET", "/api/jobs", Verdict::Refused(Refusal::NoHost)),
        (Version::HTTP_11, "GET", "/health/live", Verdict::Refused(Refusal::NoHost)),
    ] {
        assert_eq!(verdict(request(version, method, uri)), expected, "{version:?} {method} {uri}");
    }
    let absolute = request(Version::HTTP_11, "GET", "http://localhost/health");
    assert_eq!(verdict(absolute), no_host);
    let twice = request(Version::HTTP_11, "GET", "/").header("host", "localhost");
    let twice = twice.header("host", "localhost");
    assert_eq!(verdict(twice), Verdict::Refused(Refusal::SeveralHosts));
}

#[test]
fn a_target_in_absolute_form_is_checked_as_well() {
    for (uri, host, expected) in [
        ("http://localhost:4200/", "localhost:4200", true),
        ("http://evil.example/", "localhost:4200", false),
        ("http://localhost/", "evil.example", false),
    ] {
        let request = Request::builder().uri(uri).header("host", host);
        assert_eq!(verdict(request) == pass(), expected, "{uri} {host}");
    }
}

#[test]
fn a_page_of_another_origin_reads_at_most() {
    let evil = "https://evil.example";
    for (origin, site, written) in [
        (None, None, pass()),
        (None, Some("none"), pass()),
        (None, Some("same-origin"), pass()),
        (None, Some("same-site"), foreign(None)),
        (None, Some("cross-site"), foreign(None)),
        (None, Some("anything"), foreign(None)),
        (Some("http://localhost:4200"), None, pass()),
        (Some("http://localhost:4200"), Some("same-origin"), pass()),
        (Some("http://localhost:4200"), Some("cross-site"), foreign(Some("http://localhost:4200"))),
        (Some("http://localhost:3000"), Some("same-site"), foreign(Some("http://localhost:3000"))),
        (Some("http://localhost"), None, foreign(Some("http://localhost"))),
        (Some(evil), None, foreign(Some(evil))),
        (Some(evil), Some("cross-site"), foreign(Some(evil))),
        (Some(evil), Some("same-origin"), foreign(Some(evil))),
        (Some("null"), Some("cross-site"), foreign(None)),
        (Some("null"), None, foreign(None)),
        (Some(""), None, foreign(None)),
        (Some("https://studio.example.com/"), None, foreign(None)),
    ] {
        let request = |method: &str| {
            let request = Request::builder().method(method).header("host", "localhost:4200");
            let headers = [("origin", origin), ("sec-fetch-site", site)];
            headers.into_iter().fold(request, |request, (name, value)| match value {
                Some(value) => request.header(name, value),
                None => request,
            })
        };
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            assert_eq!(verdict(request(method)), written, "{method} {origin:?} {site:?}");
        }
        for method in ["GET", "HEAD"] {
            assert_eq!(verdict(request(method)), pass(), "{method} {origin:?} {site:?}");
        }
        let preflight = request("OPTIONS").header("access-control-request-method", "PUT");
        assert_eq!(verdict(preflight), written, "{origin:?} {site:?}");
    }
    let two = Request::builder().method("POST").header("host", "localhost:4200");
    let two = two.header("origin", "http://localhost:4200").header("origin", evil);
    assert_eq!(verdict(two), foreign(None));
}

#[test]
fn a_listed_page_does_everything() {
    for origin in ["https://studio.example.com", "https://STUDIO.example.com:443"] {
        for site in ["cross-site", "same-site", "same-origin"] {
            for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS"] {
                let request = || {
                    let request = Request::builder().method(method).header("host", "127.0.0.1");
                    request.header("origin", origin).header("sec-fetch-site", site)
                };
                assert_eq!(verdict(request()), Verdict::Pass { cors: true }, "{method} {origin}");
                let asks = request().header("access-control-request-method", "POST");
                let is_preflight = verdict(asks) == Verdict::Preflight;
                assert_eq!(is_preflight, method == "OPTIONS", "{method} {origin}");
            }
        }
    }
    // But under a name of this daemon only.
    let rebound = Request::builder().header("host", "evil.example");
    let rebound = verdict(rebound.header("origin", "https://studio.example.com"));
    assert!(matches!(rebound, Verdict::Refused(Refusal::UnknownHost(_))), "{rebound:?}");
}
