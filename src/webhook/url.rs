//! What a receiver's address must be, as far as its text tells. Pure.

use std::net::IpAddr;

use ureq::http::Uri;

use super::address::is_public;

/// What is wrong with it, for who named it. `allow_private`: whether it may be an address that is
/// not public; what a name stands for is looked at when it is connected to.
pub fn check(url: &str, allow_private: bool) -> Result<(), &'static str> {
    let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("is not an http:// or https:// URL");
    }
    let authority = uri.authority().filter(|it| !it.host().is_empty());
    let authority = authority.ok_or("names no host")?;
    if authority.as_str().contains('@') {
        return Err("has a user in it, and whoever sees the URL would see a password");
    }
    if authority.port_u16() == Some(0) {
        return Err("names port 0");
    }
    let address: Option<IpAddr> = host(&uri).parse().ok();
    if !allow_private && address.is_some_and(|address| !is_public(address)) {
        return Err("is a private or otherwise special address, which the configuration does not \
                    allow (webhooks.allow_private)");
    }
    Ok(())
}

/// The host without the brackets of an IPv6 address.
fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// Who it is: the host and the port, whether or not the URL writes it.
pub fn receiver(url: &str) -> String {
    let Some(uri) = url.parse::<Uri>().ok().filter(|uri| uri.host().is_some()) else {
        return String::new();
    };
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(default));
    format!("{}:{port}", host.trim_end_matches('.').to_ascii_lowercase())
}

/// Who answers for a receiver's name, roughly: its last two labels. An address stands for itself.
pub fn domain(receiver: &str) -> &str {
    let host = receiver.rsplit_once(':').map_or(receiver, |(host, _)| host);
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return host;
    }
    let second_dot = host.rmatch_indices('.').nth(1);
    second_dot.map_or(host, |(at, _)| &host[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, allow_private, expected) in [
            ("https://example.org/hook?x=1", false, Ok(())),
            ("http://example.org", false, Ok(())),
            ("HTTP://1.1.1.1:8080/", false, Ok(())),
            ("http://127.0.0.1:8080/", true, Ok(())),
            ("http://[::1]/", true, Ok(())),
            ("http://127.0.0.1/", false, Err("is a private")),
            ("http://[::1]:80/", false, Err("is a private")),
            ("http://[::ffff:10.0.0.1]/", false, Err("is a private")),
            ("http://169.254.169.254/latest", false, Err("is a private")),
            ("ftp://example.org/", true, Err("is not an http")),
            ("example.org/hook", true, Err("is not")),
            ("/hook", true, Err("is not an http")),
            ("http://user:pw@example.org/", true, Err("has a user")),
            ("http:///x", true, Err("is not a URL")),
            ("http://example.org:0/", true, Err("names port 0")),
            ("http://exa mple.org/", true, Err("is not a URL")),
            ("", true, Err("is not a URL")),
        ] {
            let result = check(url, allow_private);
            let is = match (result, expected) {
                (Ok(()), Ok(())) => true,
                (Err(found), Err(expected)) => found.starts_with(expected),
                (Ok(()), Err(_)) | (Err(_), Ok(())) => false,
            };
            assert!(is, "{url} {allow_private}: {result:?} where {expected:?} was due");
        }
        for (url, expected) in [
            ("http://Example.org:80/a?b", "example.org:80"),
            ("http://example.org./", "example.org:80"),
            ("HTTPS://example.org", "example.org:443"),
            ("http://[::1]:8080/", "[::1]:8080"),
        ] {
            assert_eq!(receiver(url), expected);
        }
    }

    #[test]
    fn domains() {
        for (url, expected) in [
            ("http://a.b.Example.org/", "example.org"),
            ("https://example.org./", "example.org"),
            ("http://localhost:8080/", "localhost"),
            ("http://1.2.3.4/", "1.2.3.4"),
            ("http://[2606:4700::1]:8080/", "[2606:4700::1]"),
            ("", ""),
        ] {
            assert_eq!(domain(&receiver(url)), expected, "{url}");
        }
    }
}
