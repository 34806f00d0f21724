//! A form's parts → what a JSON body would have been.

use serde_json::{Map, Value};

use super::{EncodedImage, FieldError, Files, InvalidFields, fields::MAX_ERRORS, json};

/// Fields whose text is read as JSON, if it is some: numbers, lists, and a webhook with its secret.
const JSON_FIELDS: [&str; 17] = [
    "n",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "seed",
    "eta",
    "clip_skip",
    "priority",
    "deadline",
    "timeout",
    "loras",
    "tags",
    "denoise_strength",
    "webhook",
    "superres",
    "superres_magnitude",
    "superres_quality",
];
/// Fields in which an empty text says something.
const PROMPTS: [&str; 2] = ["prompt", "negative_prompt"];
/// A part with a JSON object: fields as in a JSON body.
const REQUEST: &str = "request";

/// The parts that have arrived of a form. As browsers send what was not filled in, an empty part
/// counts as absent, but for the prompts.
#[derive(Debug, Default)]
pub struct Form {
    object: Map<String, Value>,
    files: Files,
    errors: Vec<FieldError>,
}

impl Form {
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        let file = match name {
            "init_image" => Some(&mut self.files.init_image),
            "mask_image" => Some(&mut self.files.mask_image),
            "image" => Some(&mut self.files.image),
            _ => None,
        };
        if bytes.is_empty() && !PROMPTS.contains(&name) {
            return;
        }
        if let Some(file) = file {
            if file.replace(EncodedImage(bytes.into())).is_some() {
                self.error(name, "is here twice");
            }
            return;
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if name == REQUEST => self.add_request(text),
            Ok(text) => self.add_field(name, value(name, text)),
            Err(_) => self.error(name, "is not UTF-8 text"),
        }
    }

    /// The fields and the files, or what was wrong with the parts.
    pub fn finish(self) -> Result<(Value, Files), InvalidFields> {
        if self.errors.is_empty() {
            Ok((Value::Object(self.object), self.files))
        } else {
            Err(InvalidFields(self.errors))
        }
    }

    fn add_request(&mut self, text: &str) {
        match json::parse(text.as_bytes()) {
            Ok(Value::Object(fields)) => {
                fields.into_iter().for_each(|(name, value)| self.add_field(&name, value));
            }
            Ok(_) => self.error(REQUEST, "is not a JSON object"),
            Err(error) => self.error(REQUEST, format!("is not JSON: {error}")),
        }
    }

    fn add_field(&mut self, name: &str, value: Value) {
        if self.object.insert(name.to_owned(), value).is_some() {
            self.error(name, "is here twice");
        }
    }

    fn error(&mut self, name: &str, detail: impl Into<String>) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(FieldError::of(name, detail));
        }
    }
}

/// A text that is not the JSON that its field needs is left as it is, to be refused by its type.
fn value(name: &str, text: &str) -> Value {
    let json = JSON_FIELDS.contains(&name).then(|| json::parse(text.as_bytes()).ok());
    json.flatten().unwrap_or_else(|| text.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn form(parts: &[(&str, &[u8])]) -> Result<(Value, Files), InvalidFields> {
        let mut form = Form::default();
        parts.iter().for_each(|(name, bytes)| form.add(name, bytes));
        form.finish()
    }

    #[test]
    fn parts_become_fields_and_files() {
        let (fields, files) = form(&[
            ("prompt", "7 狐".as_bytes()),
            ("negative_prompt", b""),
            ("mode", b""),
            ("seed", b" 18446744073709551615 "),
            ("eta", b"0.5"),
            ("n", b"two"),
            ("loras", br#"[{"name": "ink"}]"#),
            ("request", br#"{"size": "64x64", "clip_skip": 1}"#),
            ("init_image", b"\xff\xd8"),
            ("mask_image", b""),
        ])
        .unwrap();
        let expected = json!({
            "prompt": "7 狐", "negative_prompt": "", "seed": u64::MAX, "eta": 0.5, "n": "two",
            "loras": [{"name": "ink"}], "size": "64x64", "clip_skip": 1,
        });
        assert_eq!(fields, expected);
        let init_image = Some(EncodedImage(b"\xff\xd8"[..].into()));
        assert_eq!(files, Files { init_image, ..Files::default() });
    }

    #[test]
    fn parts_that_cannot_be_read_are_named() {
        for (parts, pointer, detail) in [
            (&[("seed", &b"1"[..]), ("seed", b"2")][..], "/seed", "is here twice"),
            (&[("prompt", b"x"), ("request", b"{\"prompt\": \"y\"}")], "/prompt", "is here twice"),
            (&[("init_image", b"x"), ("init_image", b"x")], "/init_image", "is here twice"),
            (&[("prompt", b"\xff")], "/prompt", "is not UTF-8 text"),
            (&[("request", b"[]")], "/request", "is not a JSON object"),
            (&[("request", b"{")], "/request", "is not JSON: "),
        ] {
            let InvalidFields(errors) = form(parts).unwrap_err();
            assert_eq!((errors.len(), errors[0].pointer.as_str()), (1, pointer));
            assert!(errors[0].detail.starts_with(detail), "{}", errors[0].detail);
        }
    }
}
