//! A form's parts → what a JSON body would have been.

use std::collections::BTreeMap;

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
/// The most parts of a form, empty ones among them; there are not half as many fields.
const MAX_PARTS: usize = 100;

/// The parts that have arrived of a form. As browsers send what was not filled in, an empty part
/// counts as absent, but for the prompts.
#[derive(Debug, Default)]
pub struct Form {
    parts: usize,
    /// They take as much as they took on their way; what they unfold to has one bound for all.
    texts: BTreeMap<String, String>,
    files: Files,
    errors: Vec<FieldError>,
}

impl Form {
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return;
        }
        if bytes.is_empty() && !PROMPTS.contains(&name) {
            return;
        }
        let file = match name {
            "init_image" => Some(&mut self.files.init_image),
            "mask_image" => Some(&mut self.files.mask_image),
            "image" => Some(&mut self.files.image),
            _ => None,
        };
        let is_here_twice = match (file, std::str::from_utf8(bytes)) {
            (Some(file), _) => file.replace(EncodedImage(bytes.into())).is_some(),
            (None, Ok(text)) => self.texts.insert(name.to_owned(), text.to_owned()).is_some(),
            (None, Err(_)) => return add_error(&mut self.errors, name, "is not UTF-8 text"),
        };
        if is_here_twice {
            add_error(&mut self.errors, name, "is here twice");
        }
    }

    /// The fields and the files, or what was wrong with the parts.
    ///
    /// # Errors
    /// Those of the parts, as far as they were looked at.
    pub fn finish(self) -> Result<(Value, Files), InvalidFields> {
        let Self { parts, texts, files, mut errors } = self;
        if parts > MAX_PARTS {
            let detail = format!("the form has more than {MAX_PARTS} parts");
            errors = vec![FieldError { pointer: String::new(), detail }];
        }
        if !errors.is_empty() {
            return Err(InvalidFields(errors));
        }
        let mut fields = Fields { object: Map::new(), values_left: json::MAX_VALUES, errors };
        texts.into_iter().for_each(|(name, text)| fields.add_text(&name, text));
        match fields.errors.is_empty() {
            true => Ok((Value::Object(fields.object), files)),
            false => Err(InvalidFields(fields.errors)),
        }
    }
}

/// The fields that the texts unfold to.
struct Fields {
    object: Map<String, Value>,
    values_left: usize,
    errors: Vec<FieldError>,
}

impl Fields {
    fn add_text(&mut self, name: &str, text: String) {
        if name != REQUEST && !JSON_FIELDS.contains(&name) {
            return self.add(name, text.into());
        }
        match (json::parse_within(&mut self.values_left, text.as_bytes()), name) {
            (Ok(Value::Object(fields)), REQUEST) => {
                fields.into_iter().for_each(|(name, value)| self.add(&name, value));
            }
            (Ok(_), REQUEST) => self.error(REQUEST, "is not a JSON object"),
            (Err(error), REQUEST) => self.error(REQUEST, format!("is not JSON: {error}")),
            (Ok(value), name) => self.add(name, value),
            (Err(error), name) if self.values_left == 0 => self.error(name, error.to_string()),
            // Not the JSON that its field needs: it is refused by its type.
            (Err(_), name) => self.add(name, text.into()),
        }
    }

    fn add(&mut self, name: &str, value: Value) {
        if self.object.insert(name.to_owned(), value).is_some() {
            self.error(name, "is here twice");
        }
    }

    fn error(&mut self, name: &str, detail: impl Into<String>) {
        add_error(&mut self.errors, name, detail);
    }
}

fn add_error(errors: &mut Vec<FieldError>, name: &str, detail: impl Into<String>) {
    if errors.len() < MAX_ERRORS {
        errors.push(FieldError::of(name, detail));
    }
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
            (&[("request", b"{}"), ("request", b"{}")], "/request", "is here twice"),
            (&[("prompt", b"\xff")], "/prompt", "is not UTF-8 text"),
            (&[("request", b"[]")], "/request", "is not a JSON object"),
            (&[("request", b"{")], "/request", "is not JSON: "),
        ] {
            let InvalidFields(errors) = form(parts).unwrap_err();
            assert_eq!((errors.len(), errors[0].pointer.as_str()), (1, pointer));
            assert!(errors[0].detail.starts_with(detail), "{}", errors[0].detail);
        }
    }

    /// A short text unfolds to a hundred times its bytes.
    #[test]
    fn all_parts_together_unfold_to_a_bounded_number_of_values() {
        let list = |values: usize| format!("[{}0]", "0,".repeat(values));
        let (most, half) = (list(json::MAX_VALUES - 2), list(json::MAX_VALUES / 2));
        let request = format!("{{\"loras\": {half}}}");
        assert!(form(&[("loras", most.as_bytes()), ("prompt", b"x")]).is_ok());
        for (parts, pointer) in [
            ([("loras", &half), ("tags", &half)], "/tags"),
            ([("loras", &half), ("request", &request)], "/request"),
        ] {
            let parts = parts.map(|(name, text)| (name, text.as_bytes()));
            let InvalidFields(errors) = form(&parts).unwrap_err();
            assert_eq!((errors.len(), errors[0].pointer.as_str()), (1, pointer));
            assert!(errors[0].detail.contains("more than 10000 values"), "{}", errors[0].detail);
        }
    }

    #[test]
    fn a_form_has_a_bounded_number_of_parts() {
        let names: Vec<String> = (0..=MAX_PARTS).map(|at| format!("x{at}")).collect();
        let parts: Vec<_> = names.iter().map(|name| (name.as_str(), &b"1"[..])).collect();
        assert!(form(&parts[1..]).is_ok());
        let InvalidFields(errors) = form(&parts).unwrap_err();
        assert_eq!((errors.len(), errors[0].pointer.as_str()), (1, ""));
        assert_eq!(errors[0].detail, "the form has more than 100 parts");
        let empty = vec![("seed", &b""[..]); MAX_PARTS + 1];
        assert!(form(&empty).is_err());
    }
}
