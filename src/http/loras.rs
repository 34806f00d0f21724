//! LoRAs as clients see them.

use serde::Serialize;
use utoipa::ToSchema;

use crate::modes::LoraRef;

#[derive(Debug, Serialize, ToSchema)]
pub struct LoraInfo {
    /// Relative to `lora_root`.
    path: String,
    strength: f32,
    adapter_name: Option<String>,
}

impl From<&LoraRef> for LoraInfo {
    fn from(lora: &LoraRef) -> Self {
        let LoraRef { name, path: _, strength, adapter_name } = lora;
        Self { path: name.clone(), strength: *strength, adapter_name: adapter_name.clone() }
    }
}
