//! Alpha where PEFT and diffusers keep it: in the file's metadata, one configuration for all
//! modules of a component with exceptions by name.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Where diffusers writes the configurations of PEFT (`lora_alpha`, `alpha_pattern` …), each key
/// with its component before it.
const ENTRY: &str = "lora_adapter_metadata";

/// What the metadata says of scales; nothing in most files.
pub struct Scales(Map<String, Value>);

impl Scales {
    pub fn of(metadata: &HashMap<String, String>) -> Self {
        let parsed = metadata.get(ENTRY).and_then(|text| serde_json::from_str(text).ok());
        Self(parsed.unwrap_or_default())
    }

    /// The scale of a module of that rank, by the name that it has in the file.
    pub fn of_module(&self, module: &str, rank: usize) -> Option<f32> {
        let (component, name) =
            ["text_encoder_2", "text_encoder", "unet"].into_iter().find_map(|component| {
                Some((component, module.strip_prefix(component)?.strip_prefix('.')?))
            })?;
        let setting = |key: &str| self.0.get(&format!("{component}.{key}"));
        let exception = setting("alpha_pattern").and_then(Value::as_object).and_then(|patterns| {
            patterns.iter().find(|(pattern, _)| is_meant(pattern, name)).map(|(_, alpha)| alpha)
        });
        let alpha = exception.or_else(|| setting("lora_alpha"))?.as_f64()?;
        let rank = rank as f64;
        // Rank-stabilised LoRA (Kalajdzievski, 2023, arXiv:2312.03732).
        let stabilised = setting("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        Some((alpha / if stabilised { rank.sqrt() } else { rank }) as f32)
    }
}

/// Whether a pattern means that module: its whole name, or the end of it from a dot on.
fn is_meant(pattern: &str, name: &str) -> bool {
    let pattern = pattern.trim_start_matches('^');
    name.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_of_metadata() {
        let json = r#"{"unet.lora_alpha": 8, "unet.r": 4,
            "unet.alpha_pattern": {"attn1.to_q": 2, "^conv_in": 1},
            "text_encoder.lora_alpha": 8, "text_encoder.use_rslora": true}"#;
        let scales = Scales::of(&HashMap::from([(ENTRY.to_owned(), json.to_owned())]));
        for (module, expected) in [
            ("unet.a.attn1.to_k", Some(2.0)),
            ("unet.a.attn1.to_q", Some(0.5)),
            ("unet.a.battn1.to_q", Some(2.0)),
            ("unet.conv_in", Some(0.25)),
            ("text_encoder.x", Some(4.0)),
            ("text_encoder_2.x", None),
            ("lora_unet_x", None),
        ] {
            assert_eq!(scales.of_module(module, 4), expected, "{module}");
        }
        let broken = HashMap::from([(ENTRY.to_owned(), "{".to_owned())]);
        assert_eq!(Scales::of(&broken).of_module("unet.x", 4), None);
    }
}
