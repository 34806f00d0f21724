//! By when a job is wanted, as callers write it.

use serde::Serialize;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::ToSchema;

use super::Fields;

/// A year: what is wanted later has no deadline.
const MAX_SECS: f64 = 365.0 * 24.0 * 60.0 * 60.0;

/// By when a job is to have ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Deadline {
    /// So many milliseconds from now.
    InMs(u64),
    /// In milliseconds since the Unix epoch.
    AtUnixMs(u64),
}

/// Seconds from now, or a time with its zone (RFC 3339).
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes a value that is read by hand")]
pub enum DeadlineField {
    Seconds(f64),
    Time(String),
}

impl Deadline {
    pub fn unix_ms(self, now_unix_ms: u64) -> u64 {
        match self {
            Self::InMs(ms) => now_unix_ms.saturating_add(ms),
            Self::AtUnixMs(at) => at,
        }
    }

    /// Reads the field of that name.
    pub fn read(fields: &mut Fields, name: &str) -> Option<Self> {
        let value = fields.get(name)?;
        let deadline = match value {
            Value::Number(secs) => {
                let secs = secs.as_f64().filter(|secs| *secs > 0.0 && *secs <= MAX_SECS);
                secs.map(|secs| Self::InMs((secs * 1000.0).ceil() as u64))
            }
            Value::String(text) => OffsetDateTime::parse(text, &Rfc3339).ok().map(|time| {
                // What was before 1970 has passed, too.
                let ms = time.unix_timestamp_nanos().div_euclid(1_000_000);
                Self::AtUnixMs(u64::try_from(ms).unwrap_or(0))
            }),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if deadline.is_none() {
            let detail = "is neither a number of seconds from now (more than 0, up to a year) nor \
                          a time with its zone, as 2030-01-31T18:00:00Z";
            fields.error(name, detail);
        }
        deadline
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Option<Deadline> {
        let body = json!({"deadline": value});
        let mut fields = Fields::read(&body, &["deadline"]).unwrap();
        let deadline = Deadline::read(&mut fields, "deadline");
        assert_eq!(fields.finish(()).is_ok(), deadline.is_some() || value.is_null(), "{value}");
        deadline
    }

    #[test]
    fn deadlines_are_seconds_or_times() {
        let at = |ms| Some(Deadline::AtUnixMs(ms));
        for (value, deadline) in [
            (json!(90), Some(Deadline::InMs(90_000))),
            (json!(0.0001), Some(Deadline::InMs(1))),
            (json!("2026-01-01T00:00:00Z"), at(1_767_225_600_000)),
            (json!("2026-01-01T01:30:00.25+01:30"), at(1_767_225_600_250)),
            (json!("1960-01-01T00:00:00Z"), at(0)),
            (json!(null), None),
        ] {
            assert_eq!(read(value.clone()), deadline, "{value}");
        }
        for value in [
            json!(0),
            json!(-1),
            json!(1e9),
            json!("2026-01-01T00:00:00"),
            json!("2026-01-01"),
            json!("90"),
            json!("tomorrow"),
            json!(true),
            json!([90]),
        ] {
            assert_eq!(read(value.clone()), None, "{value}");
        }
    }

    #[test]
    fn seconds_count_from_now() {
        assert_eq!(Deadline::InMs(5).unix_ms(100), 105);
        assert_eq!(Deadline::AtUnixMs(5).unix_ms(100), 5);
    }
}
