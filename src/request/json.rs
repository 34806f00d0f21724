//! JSON that comes from outside, with a bound on what it unfolds to: a list of zeros takes two bytes
//! a number on its way and sixteen times as much as a [`Value`]. A key that an object has twice is
//! refused: readers differ on which of the two counts.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The most values in a document; the longest sensible request has some dozens. They take 6 MB at
/// most, beside their texts: objects of one field, 640 bytes each.
pub const MAX_VALUES: usize = 10_000;
/// So much of a key is named in an error.
const MAX_KEY_CHARS: usize = 100;

/// Reads a document.
///
/// # Errors
/// It is not JSON, holds too many values, or an object of it has a key twice.
pub fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    parse_within(&mut { MAX_VALUES }, bytes)
}

/// Reads one of several documents that together hold no more than [`MAX_VALUES`], of which so many
/// are `left`.
///
/// # Errors
/// As [`parse`]; nothing is left then, if there were too many values.
pub fn parse_within(left: &mut usize, bytes: &[u8]) -> serde_json::Result<Value> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Bounded { left }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Makes a [`Value`] out of no more values than are `left`.
struct Bounded<'a> {
    left: &'a mut usize,
}

impl Bounded<'_> {
    fn next<E: Error>(&mut self) -> Result<Bounded<'_>, E> {
        let too_many = || E::custom(format_args!("more than {MAX_VALUES} values"));
        *self.left = self.left.checked_sub(1).ok_or_else(too_many)?;
        Ok(Bounded { left: self.left })
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.next::<A::Error>()?)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            if object.contains_key(&key) {
                let key: String = key.chars().take(MAX_KEY_CHARS).collect();
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            object.insert(key, fields.next_value_seed(self.next::<A::Error>()?)?);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_read_is_what_serde_json_reads() {
        for text in [
            r#"{"a": [1, -2, 1.5, 1e400, true, null, "x\u00e9"], "b": {}, "c": 18446744073709551615}"#,
            r#"{"a": [1, -2, 1.5, true, null, "x\u00e9"], "b": {"c": []}, "d": 18446744073709551616}"#,
            "[]",
            "7",
            "\"x\"",
            "[1,]",
            "{",
            "",
            "1 2",
        ] {
            let (found, expected) = (parse(text.as_bytes()), serde_json::from_str::<Value>(text));
            assert_eq!(found.map_err(|e| e.to_string()), expected.map_err(|e| e.to_string()));
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused() {
        for (text, expected) in [
            (r#"{"a": 1, "b": 2, "a": 1}"#, Some(r#"the key "a" is there twice at line 1"#)),
            (
                r#"{"x": [{"a b": 1, "a b": {}}]}"#,
                Some(r#"the key "a b" is there twice at line 1"#),
            ),
            (r#"{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}"#, None),
        ] {
            let error = parse(text.as_bytes()).err().map(|error| error.to_string());
            match expected {
                Some(expected) => assert!(error.unwrap().starts_with(expected), "{text}"),
                None => assert_eq!(error, None),
            }
        }
    }

    #[test]
    fn what_unfolds_to_too_much_is_refused() {
        let nested = json!(vec![vec![json!({"a": 0, "b": 1}); 10]; 100]).to_string();
        assert!(parse(nested.as_bytes()).is_ok());
        for text in [
            format!("[{}0]", "0,".repeat(MAX_VALUES)),
            format!("[{}[]]", "[],".repeat(MAX_VALUES)),
            format!("[{}0]", r#"{"a":0},"#.repeat(MAX_VALUES / 2 + 1)),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("more than 10000 values at line 1"), "{error}");
        }
    }
}
