//! One mode: what must be loaded for it, and what a request gets that says nothing.

use super::{
    LORA_KEYS, MODE_KEYS, MODEL_FOLDER, PIPELINE_FOLDER, Resolver, Root, Roots, flag, parsed,
};
use crate::{
    config::{
        diagnostic::KeyPath,
        names::{CONTROL_CHARACTER, check_mode_name},
        raw::{Entry, Value},
        reader::{Field, Table},
    },
    modes::{CheckpointRef, Defaults, LoraRef, Mode, OnLoraError, PipelineSpec},
};

impl Resolver {
    pub(super) fn mode(
        &mut self,
        entry: &Entry,
        parent: &KeyPath,
        roots: &Roots,
        max_pixels: u64,
    ) -> Option<Mode> {
        let field = Field { node: &entry.value, key: parent.key(&entry.key) };
        if let Err(reason) = check_mode_name(&entry.key) {
            self.errors.add(entry.key_at, field.key.clone(), reason);
        }
        let table = Table::read(&field, entry.key_at, &MODE_KEYS, &mut self.errors)?;
        let pipeline = self.pipeline(&table, roots);
        let defaults = self.defaults(&table);
        if defaults.size.pixels() > max_pixels {
            let size = defaults.size;
            let message = format!("{size} is more than the {max_pixels} pixels of max_pixels");
            match table.get("default_size") {
                Some(field) => field.error_quoting(&mut self.errors, message),
                None => {
                    let key = field.key.key("default_size");
                    self.errors.add(entry.key_at, key, message);
                }
            }
        }
        let pinned = flag(&table, "pinned", &mut self.errors).unwrap_or(false);
        let preload = flag(&table, "preload", &mut self.errors).unwrap_or(false);
        let timeout = parsed(&table, "timeout", &mut self.errors).unwrap_or_default();
        let metadata = match table.get("metadata") {
            Some(field) => field.json_object(&mut self.errors)?,
            None => serde_json::Map::new(),
        };
        let name = entry.key.clone();
        Some(Mode { name, pipeline: pipeline?, defaults, pinned, preload, metadata, timeout })
    }

    /// What must be loaded.
    fn pipeline(&mut self, table: &Table, roots: &Roots) -> Option<PipelineSpec> {
        let model = table.require("model", &mut self.errors);
        let checkpoint = model.and_then(|field| self.checkpoint(&field, roots, PIPELINE_FOLDER));
        let vae = table.get("vae").map(|field| self.checkpoint(&field, roots, MODEL_FOLDER));
        let loras = self.loras(table, roots.lora.as_ref());
        let errors = &mut self.errors;
        let on_lora_error = parsed(table, "on_lora_error", errors);
        let prediction = parsed(table, "prediction", errors);
        Some(PipelineSpec {
            checkpoint: checkpoint?,
            vae: vae.flatten(),
            loras,
            on_lora_error: on_lora_error.unwrap_or(OnLoraError::Fail),
            prediction,
            stamp: 0,
        })
    }

    fn checkpoint(
        &mut self,
        field: &Field,
        roots: &Roots,
        folder_with: &'static str,
    ) -> Option<CheckpointRef> {
        let (name, path) = self.file_name(field, roots.model.as_ref(), Some(folder_with))?;
        Some(CheckpointRef { name, path })
    }

    /// A wrong value is reported and stands as its default: nothing is made of it afterwards.
    fn defaults(&mut self, table: &Table) -> Defaults {
        let errors = &mut self.errors;
        let other = Defaults::default();
        Defaults {
            size: parsed(table, "default_size", errors).unwrap_or(other.size),
            steps: table
                .get("default_steps")
                .and_then(|field| field.whole_number(1..=Defaults::MAX_STEPS, errors))
                .unwrap_or(other.steps),
            guidance_scale: table
                .get("default_guidance")
                .and_then(|field| field.within(0.0..=Defaults::MAX_GUIDANCE_SCALE, errors))
                .unwrap_or(other.guidance_scale),
            guidance_rescale: table
                .get("guidance_rescale")
                .and_then(|field| field.within(0.0..=1.0, errors))
                .unwrap_or(other.guidance_rescale),
            scheduler: parsed(table, "default_scheduler", errors),
            timestep_spacing: parsed(table, "timestep_spacing", errors),
            negative_prompt: table
                .get("default_negative_prompt")
                .and_then(|field| field.shown_text(errors))
                .map(str::to_owned),
            clip_skip: table
                .get("clip_skip")
                .and_then(|field| field.whole_number(0..=Defaults::MAX_CLIP_SKIP, errors))
                .unwrap_or(other.clip_skip),
            long_prompts: parsed(table, "long_prompts", errors).unwrap_or(other.long_prompts),
            prompt_syntax: parsed(table, "prompt_syntax", errors).unwrap_or(other.prompt_syntax),
        }
    }

    fn loras(&mut self, table: &Table, root: Option<&Root>) -> Vec<LoraRef> {
        let items = table.get("loras").and_then(|field| field.items(&mut self.errors));
        items.unwrap_or_default().iter().filter_map(|item| self.lora(item, root)).collect()
    }

    /// Either the file's name alone or a mapping.
    fn lora(&mut self, item: &Field, root: Option<&Root>) -> Option<LoraRef> {
        if let Value::Text(_) | Value::Variable(_) = item.node.value {
            let (name, path) = self.file_name(item, root, None)?;
            return Some(LoraRef { name, path, strength: 1.0, adapter_name: None });
        }
        if !matches!(item.node.value, Value::Map(_)) {
            item.error(
                &mut self.errors,
                "expected a file name or a mapping {path, strength, adapter_name}",
            );
            return None;
        }
        let table = Table::read(item, item.node.at, &LORA_KEYS, &mut self.errors)?;
        let file = table.require("path", &mut self.errors);
        let file = file.and_then(|field| self.file_name(&field, root, None));
        let strengths = -LoraRef::MAX_STRENGTH..=LoraRef::MAX_STRENGTH;
        let strength = table.get("strength").map(|field| field.within(strengths, &mut self.errors));
        let adapter_name = table.get("adapter_name").map(|field| {
            let name = field.shown_text(&mut self.errors)?;
            if name.contains(char::is_control) {
                field.error(&mut self.errors, CONTROL_CHARACTER);
                return None;
            }
            Some(name)
        });
        let (name, path) = file?;
        Some(LoraRef {
            name,
            path,
            strength: strength.unwrap_or(Some(1.0))?,
            adapter_name: adapter_name.flatten().map(str::to_owned),
        })
    }
}
