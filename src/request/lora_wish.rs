//! The LoRAs that a caller wants: those of the field `loras`, and those that its prompt names.

use utoipa::ToSchema;

use super::{Fields, lora_tags};
use crate::modes::{LoraName, LoraRef};

/// More in one request are a mistake.
const MAX_LORAS: usize = 16;

/// A LoRA that a caller wants.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraWish {
    pub name: LoraName,
    pub strength: f32,
    /// Where in the request it is named, as a JSON pointer.
    pub pointer: String,
}

/// A LoRA; named either by `path` or by `name`.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a value that is read by hand")]
pub struct LoraField {
    /// The file, relative to `lora_root`.
    #[schema(example = "styles/ink.safetensors")]
    path: Option<String>,
    /// The file's name without extension, in whichever folder; or the `adapter_name` of a mode's.
    #[schema(example = "ink")]
    name: Option<String>,
    /// By default 1.
    #[schema(minimum = -100, maximum = 100)]
    strength: Option<f32>,
}

impl LoraWish {
    /// Those of the field first.
    pub(super) fn read_all(fields: &mut Fields, prompt: &str) -> Vec<Self> {
        let mut loras = fields.each("loras", &["path", "name", "strength"], lora);
        loras.extend(tagged_loras(fields, prompt));
        if loras.len() > MAX_LORAS {
            fields.error("loras", format!("{} LoRAs; {MAX_LORAS} are the most", loras.len()));
        }
        loras
    }
}

/// One entry of `loras`.
fn lora(item: &mut Fields) -> Option<LoraWish> {
    let strength = item.number("strength", -LoraRef::MAX_STRENGTH..=LoraRef::MAX_STRENGTH);
    let (key, name) = match (item.text("path"), item.text("name")) {
        (Some(path), None) => ("path", LoraName::Path(path)),
        (None, Some(name)) => ("name", LoraName::Name(name)),
        (Some(_), Some(_)) => {
            item.error("name", "is one too many beside 'path'");
            return None;
        }
        (None, None) => {
            if item.get("path").is_none() && item.get("name").is_none() {
                item.error_here("needs a 'path' or a 'name'");
            }
            return None;
        }
    };
    Some(LoraWish { name, strength: strength.unwrap_or(1.0), pointer: item.pointer(key) })
}

fn tagged_loras(fields: &mut Fields, prompt: &str) -> Vec<LoraWish> {
    let mut wishes = Vec::new();
    for tag in lora_tags::all(prompt) {
        match tag {
            Ok((name, strength)) => {
                let (name, pointer) = (LoraName::Name(name.to_owned()), "/prompt".to_owned());
                wishes.push(LoraWish { name, strength, pointer });
            }
            Err(error) => fields.error("prompt", error.to_string()),
        }
    }
    wishes
}
