//! Who asks, as far as turns in the queue go.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};
use sha2::{Digest, Sha256};

/// A caller's key, hashed: `Authorization: Bearer …`, else `X-API-Key`. It is compared with
/// nothing, and the key itself is neither kept nor shown. `None`: no key.
pub struct Client(pub Option<String>);

/// As many of the hash's bytes tell clients apart.
const BYTES: usize = 8;

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|it| bearer(it.as_bytes()));
        let key = bearer.or_else(|| parts.headers.get("x-api-key").map(|it| it.as_bytes()));
        Ok(Self(key.filter(|key| !key.is_empty()).map(hash)))
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

fn hash(key: &[u8]) -> String {
    Sha256::digest(key)[..BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    async fn client(headers: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let Ok(Client(client)) = Client::from_request_parts(&mut parts, &()).await;
        client
    }

    #[tokio::test]
    async fn a_client_is_its_key_whichever_way_it_sends_it() {
        // The beginning of SHA-256("secret").
        let secret = Some("2bb80d537b1da3e3".to_owned());
        for (headers, expected) in [
            (&[("authorization", "Bearer secret")][..], secret.clone()),
            (&[("authorization", "bearer  secret ")], secret.clone()),
            (&[("x-api-key", "secret")], secret.clone()),
            (&[("authorization", "Basic c2VjcmV0"), ("x-api-key", "secret")], secret),
            (&[("authorization", "Bearer ")], None),
            (&[("x-api-key", "")], None),
            (&[("authorization", "Basic c2VjcmV0")], None),
            (&[], None),
        ] {
            assert_eq!(client(headers).await, expected, "{headers:?}");
        }
        assert_ne!(
            client(&[("x-api-key", "Secret")]).await,
            client(&[("x-api-key", "secret")]).await
        );
    }
}
