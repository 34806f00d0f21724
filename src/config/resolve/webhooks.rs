//! The section `webhooks`: how they are signed and delivered.

use super::{flag, parsed};
use crate::{
    config::reader::{Errors, Table},
    modes::{Secret, Webhooks},
};

pub const WEBHOOKS_KEYS: [&str; 5] =
    ["secret", "allow_private", "max_attempts", "timeout", "first_retry"];

/// A wrong value is reported and stands as its default: nothing is made of it afterwards.
pub fn webhooks(root: &Table, errors: &mut Errors) -> Webhooks {
    let other = Webhooks::default();
    let Some(field) = root.get("webhooks") else { return other };
    let Some(table) = Table::read(&field, field.node.at, &WEBHOOKS_KEYS, errors) else {
        return other;
    };
    let secret = table.get("secret").and_then(|field| {
        let secret = field.text(errors)?;
        if secret.is_empty() {
            field.error(errors, "is empty: leave the line out to sign nothing");
            return None;
        }
        Some(Secret(secret.to_owned()))
    });
    let max_attempts = table
        .get("max_attempts")
        .and_then(|field| field.whole_number(1..=Webhooks::MAX_ATTEMPTS, errors));
    Webhooks {
        secret,
        allow_private: flag(&table, "allow_private", errors).unwrap_or(other.allow_private),
        max_attempts: max_attempts.unwrap_or(other.max_attempts),
        timeout: parsed(&table, "timeout", errors).unwrap_or(other.timeout),
        first_retry: parsed(&table, "first_retry", errors).unwrap_or(other.first_retry),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{
        config::{raw, resolve::resolve},
        modes::{Secret, Time, Webhooks},
    };

    fn read(section: &str) -> Result<Webhooks, String> {
        let text = format!(
            "model_root: m\ndefault_mode: a\nmodes: {{a: {{model: x}}}}\nwebhooks: {section}\n"
        );
        let root = raw::parse(&text).unwrap();
        let resolved = resolve(&root, Path::new("m.yaml").into(), Path::new("/home/x"));
        resolved
            .map(|resolved| resolved.modes.webhooks)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn what_is_not_said_holds_and_what_is_wrong_is_said() {
        assert_eq!(read("").unwrap(), Webhooks::default());
        let webhooks = read("{secret: s3cret, max_attempts: 2, timeout: 1m, first_retry: 2s}");
        let expected = Webhooks {
            secret: Some(Secret("s3cret".to_owned())),
            allow_private: false,
            max_attempts: 2,
            timeout: Time::of_secs(60),
            first_retry: Time::of_secs(2),
        };
        let webhooks = webhooks.unwrap();
        assert_eq!(webhooks, expected);
        assert!(!format!("{webhooks:?}").contains("s3cret"), "{webhooks:?}");
        let wrong = "{secret: '', allow_private: perhaps, max_attempts: 0, timeout: 9, url: x}";
        insta::assert_snapshot!(read(wrong).unwrap_err(), @r"
        m.yaml:4:20: error: webhooks.secret: is empty: leave the line out to sign nothing
        m.yaml:4:39: error: webhooks.allow_private: expected true or false, found the text 'perhaps'
        m.yaml:4:62: error: webhooks.max_attempts: 0 is not between 1 and 100
        m.yaml:4:74: error: webhooks.timeout: '9' is not a time: write 90s, 10m, 2h or 7d
        m.yaml:4:77: error: webhooks.url: unknown key (known keys: secret, allow_private, max_attempts, timeout, first_retry)
        ");
    }
}
