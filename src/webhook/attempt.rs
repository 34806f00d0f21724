//! One attempt to deliver: a POST that follows nothing and goes nowhere that it may not.

use std::{
    fmt, io,
    net::IpAddr,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::SystemTime,
};

use ureq::{
    Agent, Error,
    config::Config,
    http::Uri,
    tls::{Certificate, RootCerts, TlsConfig},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use super::{
    Delivery,
    address::{is_public, network},
    agenda::Addresses,
    signature::sign,
};
use crate::modes::Webhooks;

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Attempt {
    Delivered,
    /// Another one may succeed.
    Failed(String),
    /// The same, and it has taken all the time that there was.
    TimedOut(String),
    /// None will.
    Refused(String),
    /// This address has no place for it now; nothing was asked.
    NoPlace(IpAddr),
}

/// Blocks, for as long as the settings allow. Takes places among `addresses` meanwhile.
pub fn attempt(
    delivery: &Delivery,
    settings: &Webhooks,
    addresses: &Arc<Mutex<Addresses>>,
) -> Attempt {
    let request = ureq::http::Request::post(&delivery.webhook.url)
        .header("content-type", "application/json")
        .header("x-diffused-event", delivery.event.name())
        .header("x-diffused-delivery", delivery.job.to_string())
        .header("x-diffused-timestamp", unix_secs());
    let secret = delivery.webhook.secret.as_ref().or(settings.secret.as_ref());
    let request = match secret {
        Some(secret) => request.header("x-diffused-signature", sign(&secret.0, &delivery.body)),
        None => request,
    };
    let Ok(request) = request.body(&delivery.body[..]) else {
        return Attempt::Refused("it cannot be asked like that".to_owned());
    };
    let is_https = request.uri().scheme_str() == Some("https");
    match agent(settings, is_https, addresses.clone()).run(request) {
        Ok(response) => match response.status().as_u16() {
            200..=299 => Attempt::Delivered,
            410 => Attempt::Refused("its receiver answers 410, Gone".to_owned()),
            status => Attempt::Failed(format!("its receiver answers {status}")),
        },
        Err(Error::Io(error)) if error.get_ref().is_some_and(|it| it.is::<Private>()) => {
            Attempt::Refused(Private.to_string())
        }
        Err(Error::Io(error)) if error.get_ref().is_some_and(|it| it.is::<NoPlace>()) => {
            let no_place = error.get_ref().and_then(|it| it.downcast_ref());
            no_place.map_or_else(
                || Attempt::Failed(error.to_string()),
                |NoPlace(address)| Attempt::NoPlace(*address),
            )
        }
        Err(error @ Error::Timeout(_)) => Attempt::TimedOut(error.to_string()),
        Err(error) => Attempt::Failed(error.to_string()),
    }
}

fn unix_secs() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.map_or(0, |duration| duration.as_secs())
}

/// A new one for each attempt: no connection is kept, and the settings are today's.
fn agent(settings: &Webhooks, is_https: bool, addresses: Arc<Mutex<Addresses>>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // It would be asked to resolve names, and nobody could look at the addresses.
        .proxy(None)
        .timeout_global(Some(settings.timeout.duration()))
        .user_agent(concat!("diffused/", env!("CARGO_PKG_VERSION")));
    let config = if is_https { config.tls_config(tls()) } else { config };
    let resolver = PublicOnly {
        allow_private: settings.allow_private,
        by: Default::default(),
        places: Places { addresses, taken: Mutex::default() },
    };
    Agent::with_parts(config.build(), DefaultConnector::default(), resolver)
}

/// Whom the system trusts.
static ROOTS: LazyLock<RootCerts> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    found.errors.iter().for_each(|error| tracing::warn!("the system's certificates: {error}"));
    let certificates = found.certs.iter().map(|it| Certificate::from_der(it).to_owned());
    RootCerts::new_with_certs(&certificates.collect::<Vec<_>>())
});

fn tls() -> TlsConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    TlsConfig::builder()
        .root_certs(ROOTS.clone())
        .unversioned_rustls_crypto_provider(provider)
        .build()
}

/// Resolves a name once, and lets nobody connect but to public addresses among those: what was
/// looked at is what is connected to.
struct PublicOnly {
    allow_private: bool,
    by: DefaultResolver,
    places: Places,
}

/// The places that an attempt has taken, given back when it ends.
struct Places {
    addresses: Arc<Mutex<Addresses>>,
    taken: Mutex<Vec<IpAddr>>,
}

impl Places {
    fn take(&self, address: IpAddr) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.iter().any(|it| network(*it) == network(address)) {
            return true;
        }
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let has_place = addresses.take(address);
        if has_place {
            taken.push(address);
        }
        has_place
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.taken.get_mut().unwrap_or_else(PoisonError::into_inner);
        taken.drain(..).for_each(|address| addresses.release(address));
    }
}

/// Why a name is not connected to yet.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("too many webhooks are on their way to {0}")]
struct NoPlace(IpAddr);

/// Why a name is not connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its receiver has no public address, and the configuration does not allow others")]
struct Private;

impl Resolver for PublicOnly {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.by.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        let mut full = None;
        for address in found.iter().filter(|it| self.allow_private || is_public(it.ip())) {
            match self.places.take(address.ip()) {
                true => allowed.push(*address),
                false => full = full.or(Some(address.ip())),
            }
        }
        match full {
            _ if !allowed.is_empty() => Ok(allowed),
            Some(full) => Err(Error::Io(io::Error::other(NoPlace(full)))),
            None => Err(Error::Io(io::Error::new(io::ErrorKind::PermissionDenied, Private))),
        }
    }
}

impl fmt::Debug for PublicOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicOnly").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{job::JobId, request::Webhook, webhook::Event};

    /// A name is looked up and refused before anything is connected to; nothing listens there.
    #[test]
    fn a_name_that_leads_inside_is_refused() {
        for url in ["http://localhost:1/", "http://127.1:1/", "http://0x7f000001:1/"] {
            let webhook = Webhook { url: url.to_owned(), secret: None };
            let delivery =
                Delivery { job: JobId::new(), event: Event::Done, webhook, body: b"{}".to_vec() };
            let refused = attempt(&delivery, &Webhooks::default(), &Arc::default());
            assert_eq!(refused, Attempt::Refused(Private.to_string()), "{url}");
            let settings = Webhooks { allow_private: true, ..Webhooks::default() };
            let failed = attempt(&delivery, &settings, &Arc::default());
            assert!(matches!(failed, Attempt::Failed(_)), "{url}: {failed:?}");
        }
    }

    /// That there is a way to speak TLS at all; nobody there speaks it.
    #[test]
    fn https_is_spoken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let hello = std::thread::spawn(move || {
            use std::io::Read;
            let (mut stream, _) = listener.accept().unwrap();
            let mut first = [0; 3];
            stream.read_exact(&mut first).unwrap();
            first
        });
        let webhook = Webhook { url, secret: None };
        let delivery =
            Delivery { job: JobId::new(), event: Event::Done, webhook, body: b"{}".to_vec() };
        let settings = Webhooks { allow_private: true, ..Webhooks::default() };
        let failed = attempt(&delivery, &settings, &Arc::default());
        assert!(matches!(failed, Attempt::Failed(_)), "{failed:?}");
        let [kind, major, _] = hello.join().unwrap();
        assert_eq!((kind, major), (22, 3), "a TLS handshake record");
    }
}
