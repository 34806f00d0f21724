//! JSON that is kept: as text, since a value takes up to twenty times as much.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A JSON value as compact text; clones share it. It serializes as the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(Arc<str>);

impl JsonText {
    /// The value. Takes as long as parsing does.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_default() // written by `from`
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl Default for JsonText {
    fn default() -> Self {
        Value::Null.into()
    }
}

impl From<Value> for JsonText {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(to)
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Value::deserialize(from).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_serializes_as_the_value() {
        for value in [json!(null), json!({"a": [1, "x", -0.5, {}]}), json!("\"狐\"")] {
            let text = JsonText::from(value.clone());
            assert_eq!(text.value(), value);
            assert_eq!(serde_json::to_value(&text).unwrap(), value);
            assert_eq!(serde_json::from_value::<JsonText>(value).unwrap(), text);
        }
    }
}
