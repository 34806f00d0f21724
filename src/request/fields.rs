//! Reads a JSON object by hand, so that everything wrong with it is found at once and each error
//! has the pointer to its field.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{EncodedImage, MAX_PROMPT_BYTES};
use crate::modes::{did_you_mean, nearest_name};

/// What is wrong with one field of a JSON document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// A JSON pointer (RFC 6901); empty for the document itself.
    #[schema(example = "/size")]
    pub pointer: String,
    #[schema(example = "500x500: width and height must be positive multiples of 8")]
    pub detail: String,
}

impl FieldError {
    /// Of a field of the document itself.
    pub fn of(name: &str, detail: impl Into<String>) -> Self {
        Self { pointer: below("", name), detail: detail.into() }
    }
}

/// Everything that is wrong with a JSON document; never empty.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{} of its fields cannot be used", .0.len())]
pub struct InvalidFields(pub Vec<FieldError>);

/// The fields of an object and the errors found in them so far. A reader returns `None` for what
/// is absent and for what it has reported.
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Where the object stands in its document; empty for the document itself.
    at: String,
    errors: Vec<FieldError>,
}

/// The longest text of a field that is a name, a size or the like, in bytes.
const MAX_TEXT_BYTES: usize = 1024;
/// How many errors are told of. A body of many MiB may be wrong in millions of places.
pub(super) const MAX_ERRORS: usize = 100;

/// Base64 as it is found: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl<'a> Fields<'a> {
    /// Refuses what is not an object; reports each field that is not `known`.
    pub fn read(document: &'a Value, known: &[&str]) -> Result<Self, InvalidFields> {
        Self::read_at(String::new(), document, known)
    }

    /// The same of a part of the document.
    pub fn read_at(at: String, value: &'a Value, known: &[&str]) -> Result<Self, InvalidFields> {
        let Some(object) = value.as_object() else {
            let detail = format!("expected a JSON object, found {}", describe(value));
            return Err(InvalidFields(vec![FieldError { pointer: at, detail }]));
        };
        let mut fields = Self { object, at, errors: Vec::new() };
        let unknown = object.keys().filter(|name| !known.contains(&name.as_str()));
        for name in unknown.take(MAX_ERRORS) {
            let nearest = nearest_name(name, known.iter().copied());
            let hint = match &nearest {
                Some(_) => did_you_mean(nearest.as_deref()),
                None => format!(" (known fields: {})", known.join(", ")),
            };
            fields.error(name, format!("unknown field{hint}"));
        }
        Ok(fields)
    }

    /// The value, if no field had an error.
    pub fn finish<T>(self, value: T) -> Result<T, InvalidFields> {
        if self.errors.is_empty() { Ok(value) } else { Err(InvalidFields(self.errors)) }
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Reports a field that is absent.
    pub fn require(&mut self, name: &str) {
        if self.get(name).is_none() {
            self.error(name, "is required");
        }
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.text_up_to(MAX_TEXT_BYTES, name)
    }

    pub fn prompt(&mut self, name: &str) -> Option<String> {
        let text = self.text_up_to(MAX_PROMPT_BYTES, name)?;
        if text.contains('\0') {
            return self.refuse(name, "contains the character U+0000");
        }
        Some(text)
    }

    fn text_up_to(&mut self, max_bytes: usize, name: &str) -> Option<String> {
        match self.get(name)? {
            Value::String(text) if text.len() > max_bytes => {
                self.refuse(name, format!("is {} bytes long; {max_bytes} is the most", text.len()))
            }
            Value::String(text) => Some(text.clone()),
            other => self.wrong_type(name, "a string", other),
        }
    }

    /// Text that is parsed further; what parsing says becomes the detail.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        match self.text(name)?.parse() {
            Ok(value) => Some(value),
            Err(error) => self.refuse(name, error.to_string()),
        }
    }

    pub fn whole_number<T>(&mut self, name: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let value = self.get(name)?;
        if !value.is_number() {
            return self.wrong_type(name, "a whole number", value);
        }
        let number = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
        let number = number.and_then(|number| T::try_from(number).ok());
        match number.filter(|n| range.contains(n)) {
            Some(number) => Some(number),
            None => {
                let (min, max) = (range.start(), range.end());
                self.refuse(name, format!("{value} is not a whole number from {min} to {max}"))
            }
        }
    }

    pub fn flag(&mut self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Value::Bool(flag) => Some(*flag),
            other => self.wrong_type(name, "true or false", other),
        }
    }

    pub fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Option<f32> {
        let value = self.get(name)?;
        let Some(number) = value.as_f64() else {
            return self.wrong_type(name, "a number", value);
        };
        let (min, max) = (*range.start(), *range.end());
        if !(f64::from(min)..=f64::from(max)).contains(&number) {
            return self.refuse(name, format!("{value} is not between {min} and {max}"));
        }
        Some(number as f32)
    }

    /// An image that came in one of two ways: as a file beside the fields, or in base64.
    pub fn image(&mut self, name: &str, file: Option<EncodedImage>) -> Option<EncodedImage> {
        let inline = self.base64(name).map(|bytes| EncodedImage(bytes.into()));
        if file.is_some() && self.get(name).is_some() {
            self.error(name, "is here twice, as a file and as a field");
        }
        inline.or(file)
    }

    /// Bytes as base64, alone or in a `data:` URL; line breaks in it do not matter.
    pub fn base64(&mut self, name: &str) -> Option<Vec<u8>> {
        let text = match self.get(name)? {
            Value::String(text) => text,
            other => return self.wrong_type(name, "a string", other),
        };
        let data = match text.strip_prefix("data:").map(|url| url.split_once(";base64,")) {
            None => text,
            Some(Some((_, data))) => data,
            Some(None) => return self.refuse(name, "is a data: URL, but not in base64"),
        };
        let data: Vec<u8> = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        match BASE64.decode(data) {
            Ok(bytes) => Some(bytes),
            Err(error) => self.refuse(name, format!("is not base64: {error}")),
        }
    }

    /// An object: what `read` makes of it. `expected` says what else might have stood there.
    pub fn object<T>(
        &mut self,
        name: &str,
        expected: &str,
        known: &[&str],
        read: impl FnOnce(&mut Fields) -> Option<T>,
    ) -> Option<T> {
        let value = self.get(name)?;
        if !value.is_object() {
            return self.wrong_type(name, expected, value);
        }
        match Fields::read_at(self.pointer(name), value, known) {
            Ok(mut fields) => {
                let value = read(&mut fields);
                self.errors.append(&mut fields.errors);
                value
            }
            Err(InvalidFields(mut errors)) => {
                self.errors.append(&mut errors);
                None
            }
        }
    }

    /// A list of objects: what `read` makes of each.
    pub fn each<T>(
        &mut self,
        name: &str,
        known: &[&str],
        mut read: impl FnMut(&mut Fields) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = self.get(name) else { return Vec::new() };
        let Value::Array(items) = value else {
            self.wrong_type::<()>(name, "a list", value);
            return Vec::new();
        };
        let mut values = Vec::new();
        for (index, item) in items.iter().enumerate() {
            if self.errors.len() >= MAX_ERRORS {
                break;
            }
            match Fields::read_at(format!("{}/{index}", self.pointer(name)), item, known) {
                Ok(mut fields) => {
                    values.extend(read(&mut fields));
                    self.errors.append(&mut fields.errors);
                }
                Err(InvalidFields(mut errors)) => self.errors.append(&mut errors),
            }
        }
        values
    }

    /// A list of texts, none of them empty.
    pub fn texts(&mut self, name: &str, most: usize) -> Vec<String> {
        let Some(value) = self.get(name) else { return Vec::new() };
        let texts = value.as_array().map(|items| items.iter().map(Value::as_str).collect());
        let texts: Option<Vec<&str>> = texts.flatten();
        match texts {
            Some(texts) if texts.len() > most => {
                self.error(name, format!("has {} entries; {most} are the most", texts.len()));
            }
            Some(texts) if texts.iter().any(|it| it.is_empty() || it.len() > MAX_TEXT_BYTES) => {
                let limits = format!("each entry has 1 to {MAX_TEXT_BYTES} bytes");
                self.error(name, limits);
            }
            Some(texts) => return texts.into_iter().map(str::to_owned).collect(),
            None => {
                self.wrong_type::<()>(name, "a list of texts", value);
            }
        }
        Vec::new()
    }

    /// The JSON pointer of a field.
    pub fn pointer(&self, name: &str) -> String {
        below(&self.at, name)
    }

    pub fn error(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer: self.pointer(name), detail: detail.into() });
    }

    /// Reports what somebody else has found.
    pub fn report(&mut self, error: FieldError) {
        self.errors.push(error);
    }

    /// Reports the object as a whole.
    pub fn error_here(&mut self, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer: self.at.clone(), detail: detail.into() });
    }

    fn refuse<T>(&mut self, name: &str, detail: impl Into<String>) -> Option<T> {
        self.error(name, detail);
        None
    }

    fn wrong_type<T>(&mut self, name: &str, expected: &str, found: &Value) -> Option<T> {
        self.refuse(name, format!("expected {expected}, found {}", describe(found)))
    }
}

fn below(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_body_that_is_wrong_all_over_gets_a_bounded_answer() {
        let object: Map<_, _> = (0..1000).map(|i| (format!("x{i}"), json!(1))).collect();
        let (object, list) = (Value::Object(object), json!({"list": vec![json!({}); 1000]}));
        let fields = Fields::read(&object, &["mode"]).unwrap();
        assert_eq!(fields.finish(()).unwrap_err().0.len(), MAX_ERRORS);
        let mut fields = Fields::read(&list, &["list"]).unwrap();
        let none = fields.each("list", &[], |item| {
            item.error_here("needs something");
            None::<()>
        });
        assert!(none.is_empty());
        assert_eq!(fields.finish(()).unwrap_err().0.len(), MAX_ERRORS);
    }

    #[test]
    fn a_text_that_nobody_means_is_not_repeated() {
        let body = json!({"short": "x".repeat(1024), "long": "x".repeat(1025)});
        let mut fields = Fields::read(&body, &["short", "long"]).unwrap();
        assert!(fields.text("short").is_some());
        assert_eq!(fields.text("long"), None);
        let error = FieldError::of("long", "is 1025 bytes long; 1024 is the most");
        assert_eq!(fields.finish(()), Err(InvalidFields(vec![error])));
    }
}
