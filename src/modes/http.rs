//! The section `http`: which names and web pages reach the API, and how many connections.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Access from browsers, and the number of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Names of this daemon, beside localhost and IP addresses.
    pub hosts: Vec<HostName>,
    /// Web pages that may use the API.
    pub origins: Vec<WebOrigin>,
    pub max_connections: u32,
}

impl Http {
    /// macOS grants a process 10,240 descriptors.
    pub const MAX_CONNECTIONS: u32 = 10_000;
}

impl Default for Http {
    fn default() -> Self {
        Self { hosts: Vec::new(), origins: Vec::new(), max_connections: 512 }
    }
}

/// A DNS name in lower case, without the dot at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("'{0}' is not a host name: write it as in studio.example.com, without a scheme or a port")]
pub struct InvalidHostName(String);

impl FromStr for HostName {
    type Err = InvalidHostName;

    fn from_str(text: &str) -> Result<Self, InvalidHostName> {
        const MAX_LENGTH: usize = 253;
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            !label.is_empty()
                && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        if text.len() > MAX_LENGTH || !name.split('.').all(is_label) {
            return Err(InvalidHostName(text.to_owned()));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

/// A host with or without a port, as in the header `Host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Name(HostName),
}

impl Authority {
    /// Whether nobody else's DNS can have led here: an address, `localhost` or a name below it.
    pub fn is_address_or_localhost(&self) -> bool {
        match self.name() {
            None => true,
            Some(HostName(name)) => name == "localhost" || name.ends_with(".localhost"),
        }
    }

    /// `None` for an address.
    pub fn name(&self) -> Option<&HostName> {
        match &self.host {
            Host::V4(_) | Host::V6(_) => None,
            Host::Name(name) => Some(name),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("is not a host with an optional port")]
pub struct InvalidAuthority;

impl FromStr for Authority {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, InvalidAuthority> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or(InvalidAuthority)?;
                (Host::V6(address.parse().map_err(|_| InvalidAuthority)?), port)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let address = host.parse().map(Host::V4);
                let host = address.or_else(|_| host.parse().map(Host::Name));
                (host.map_err(|_| InvalidAuthority)?, port)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return Err(InvalidAuthority),
            Some("") => None, // RFC 3986, 3.2.3
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| InvalidAuthority)?)
            }
            Some(_) => return Err(InvalidAuthority),
        };
        Ok(Self { host, port })
    }
}

/// Where a web page comes from, as in the header `Origin`: `https://studio.example.com`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOrigin {
    /// In lower case.
    scheme: String,
    /// Without the scheme's own port, as browsers send it.
    authority: Authority,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidWebOrigin {
    #[error(
        "'*' would let every web page use this daemon: list the origins, as in \
         https://studio.example.com"
    )]
    Any,
    #[error(
        "'null' is the origin of sandboxed pages and files of anybody: it cannot be told from others"
    )]
    Null,
    #[error(
        "'{0}' is not an origin: write scheme://host[:port], as in https://studio.example.com, \
         without a path"
    )]
    Malformed(String),
}

impl WebOrigin {
    /// Whether the page was served under that `Host`. A proxy may have added TLS.
    pub fn is_served_by(&self, host: &Authority) -> bool {
        matches!(&self.scheme[..], "http" | "https")
            && self.authority == without_default_port(&self.scheme, host.clone())
    }
}

impl FromStr for WebOrigin {
    type Err = InvalidWebOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidWebOrigin> {
        match text {
            "*" => return Err(InvalidWebOrigin::Any),
            "null" => return Err(InvalidWebOrigin::Null),
            _ => {}
        }
        let malformed = || InvalidWebOrigin::Malformed(text.to_owned());
        let (scheme, authority) = text.split_once("://").ok_or_else(malformed)?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
        if !is_scheme || authority.ends_with(':') {
            return Err(malformed());
        }
        let scheme = scheme.to_ascii_lowercase();
        let authority = authority.parse().map_err(|_| malformed())?;
        let authority = without_default_port(&scheme, authority);
        Ok(Self { scheme, authority })
    }
}

fn without_default_port(scheme: &str, mut authority: Authority) -> Authority {
    if matches!((scheme, authority.port), ("http", Some(80)) | ("https", Some(443))) {
        authority.port = None;
    }
    authority
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_a_port() {
        let local = |text: &str| text.parse::<Authority>().map(|it| it.is_address_or_localhost());
        for text in [
            "localhost",
            "LocalHost:4200",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1",
            "0.0.0.0:4200",
            "192.168.0.7:",
            "[::1]",
            "[::1]:65535",
            "[fe80::1]:4200",
        ] {
            assert_eq!(local(text), Ok(true), "{text}");
        }
        for text in ["evil.example", "evil.example:4200", "localhost.evil.example", "127.0.0.1.x"] {
            assert_eq!(local(text), Ok(false), "{text}");
        }
        for text in [
            "",
            ":4200",
            "localhost:x",
            "localhost:+1",
            "localhost:65536",
            "a b",
            "user@localhost",
            "localhost/x",
            "[::1",
            "[::1]x",
            "[localhost]",
            "::1",
            "a..b",
            ".localhost",
            "ü.example",
        ] {
            assert_eq!(local(text), Err(InvalidAuthority), "{text}");
        }
    }

    #[test]
    fn origins_are_compared_as_browsers_write_them() {
        let origin = |text: &str| text.parse::<WebOrigin>();
        assert_eq!(origin("HTTPS://Studio.Example.com:443"), origin("https://studio.example.com"));
        assert_eq!(origin("http://x:80"), origin("http://x"));
        assert_ne!(origin("http://x:443"), origin("http://x"));
        assert_ne!(origin("http://x"), origin("https://x"));
        assert!(origin("chrome-extension://abcdef").is_ok() && origin("http://[::1]:3000").is_ok());
        assert_eq!(origin("*"), Err(InvalidWebOrigin::Any));
        assert_eq!(origin("null"), Err(InvalidWebOrigin::Null));
        for text in ["", "x", "https://", "https://x/", "https://x:", "1://x", "https://*.x"] {
            assert_eq!(origin(text), Err(InvalidWebOrigin::Malformed(text.to_owned())));
        }
    }

    #[test]
    fn a_page_of_the_daemon_itself_names_its_host() {
        for (origin, host, expected) in [
            ("http://localhost:4200", "localhost:4200", true),
            ("http://[::1]:4200", "[::1]:4200", true),
            ("https://studio.example.com", "studio.example.com", true),
            ("https://studio.example.com", "studio.example.com:443", true),
            ("http://localhost:3000", "localhost:4200", false),
            ("http://127.0.0.1:4200", "localhost:4200", false),
            ("chrome-extension://localhost", "localhost", false),
        ] {
            let (host, page): (Authority, WebOrigin) =
                (host.parse().unwrap(), origin.parse().unwrap());
            assert_eq!(page.is_served_by(&host), expected, "{origin} {host:?}");
        }
    }
}
