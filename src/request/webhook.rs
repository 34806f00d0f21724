//! Whom a caller wants to be told that its job has ended.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Fields;
use crate::modes::Secret;

/// Where it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    pub url: String,
    /// What it is signed with; `None`: the configuration's, if that has one.
    #[serde(default)]
    pub secret: Option<Secret>,
}

/// A webhook in a request, whose URL nobody has looked at yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookWish {
    pub webhook: Webhook,
    /// Where in the request its URL is named, as a JSON pointer.
    pub pointer: String,
}

/// A URL, alone or with a secret.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum WebhookField {
    Url(String),
    Signed {
        #[schema(example = "https://example.org/hooks/diffused")]
        url: String,
        /// Signs the body in `X-Diffused-Signature`; by default the configuration's.
        secret: Option<String>,
    },
}

impl WebhookWish {
    pub fn read(fields: &mut Fields, name: &str) -> Option<Self> {
        if matches!(fields.get(name)?, Value::String(_)) {
            let webhook = Webhook { url: fields.text(name)?, secret: None };
            return Some(Self { webhook, pointer: fields.pointer(name) });
        }
        fields.object(name, "a URL or an object {url, secret}", &["url", "secret"], |fields| {
            fields.require("url");
            let (url, secret) = (fields.text("url"), fields.text("secret"));
            if secret.as_deref() == Some("") {
                fields.error("secret", "is empty");
            }
            let webhook = Webhook { url: url?, secret: secret.map(Secret) };
            Some(Self { webhook, pointer: fields.pointer("url") })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn webhooks() {
        let read = |value: Value| {
            let body = json!({ "webhook": value });
            let mut fields = Fields::read(&body, &["webhook"]).unwrap();
            let wish = WebhookWish::read(&mut fields, "webhook");
            fields.finish(wish).map_err(|invalid| {
                invalid.0.into_iter().map(|it| (it.pointer, it.detail)).collect::<Vec<_>>()
            })
        };
        let wish = |secret: Option<&str>, pointer: &str| {
            let secret = secret.map(|secret| Secret(secret.to_owned()));
            let webhook = Webhook { url: "http://x".to_owned(), secret };
            Ok(Some(WebhookWish { webhook, pointer: pointer.to_owned() }))
        };
        assert_eq!(read(Value::Null), Ok(None));
        assert_eq!(read(json!("http://x")), wish(None, "/webhook"));
        assert_eq!(read(json!({"url": "http://x"})), wish(None, "/webhook/url"));
        let signed = read(json!({"url": "http://x", "secret": "s3cret"}));
        assert_eq!(signed, wish(Some("s3cret"), "/webhook/url"));
        assert!(!format!("{signed:?}").contains("s3cret"), "{signed:?}");
        for (value, pointer, detail) in [
            (json!(1), "/webhook", "expected a URL or an object {url, secret}, found a number"),
            (json!({}), "/webhook/url", "is required"),
            (json!({"url": "x", "secret": ""}), "/webhook/secret", "is empty"),
            (
                json!({"url": "x", "secret": 1}),
                "/webhook/secret",
                "expected a string, found a number",
            ),
            (
                json!({"url": "x", "secrets": 1}),
                "/webhook/secrets",
                "unknown field; did you mean 'secret'?",
            ),
        ] {
            let expected = vec![(pointer.to_owned(), detail.to_owned())];
            assert_eq!(read(value.clone()), Err(expected), "{value}");
        }
    }
}
