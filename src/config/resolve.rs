//! Raw → typed: a tree of values becomes [`Modes`], or every error in it is found. Pure: no file
//! is looked at.

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use super::{
    diagnostic::{Diagnostic, KeyPath, Position},
    names::check_file_name,
    raw::{Entry, Node, Value},
    reader::{Errors, Field, Table},
};
use crate::modes::{CheckpointRef, Mode, Modes, Size, Watch, did_you_mean, nearest_name};

pub mod compute;
pub mod custom;
pub mod http;
pub mod jobs;
pub mod memory;
mod mode;
mod order;
pub mod webhooks;

use compute::{Beside, compute};
use custom::custom_jobs;
use http::http;
use jobs::jobs;
use memory::MemorySection;
use order::order;
use webhooks::webhooks;

pub const ROOT_KEYS: [&str; 19] = [
    "model_root",
    "lora_root",
    "default_mode",
    "max_pixels",
    "watch",
    "scheduling",
    "max_wait",
    "fair",
    "timeout",
    "memory",
    "jobs",
    "modes",
    "custom_jobs",
    "webhooks",
    "http",
    "superres",
    "engine",
    "device",
    "precision",
];
pub const MODE_KEYS: [&str; 19] = [
    "model",
    "vae",
    "loras",
    "on_lora_error",
    "prediction",
    "default_size",
    "default_steps",
    "default_guidance",
    "guidance_rescale",
    "default_scheduler",
    "timestep_spacing",
    "default_negative_prompt",
    "clip_skip",
    "long_prompts",
    "prompt_syntax",
    "pinned",
    "preload",
    "timeout",
    "metadata",
];
pub const LORA_KEYS: [&str; 3] = ["path", "strength", "adapter_name"];
pub const SUPERRES_KEYS: [&str; 1] = ["model"];

/// What a file means.
#[derive(Debug)]
pub struct Resolved {
    pub modes: Modes,
    /// Every file and folder that is named, to be checked by who may look at the disk.
    pub mentions: Vec<Mention>,
    /// What may be written, and will not work as it is.
    pub warnings: Vec<Diagnostic>,
}

/// A file or folder and where it is named.
#[derive(Debug, Clone, PartialEq)]
pub struct Mention {
    /// As the user wrote it.
    pub name: String,
    pub path: PathBuf,
    /// The path as it may be shown: with variables in it instead of their values.
    pub written: PathBuf,
    /// The folder that `name` is relative to; `None` for such a folder itself.
    pub root: Option<PathBuf>,
    /// The file that a folder in its place must have.
    pub folder_with: Option<&'static str>,
    pub at: Position,
    pub key: KeyPath,
}

/// What a file means by itself.
#[cfg(test)]
pub fn resolve(root: &Node, file: Arc<Path>, base: &Path) -> Result<Resolved, Vec<Diagnostic>> {
    resolve_beside(root, file, base, Beside::default())
}

/// Resolves the tree of `file`, whose relative paths start at the folder `base`, and where something
/// else holds as well.
pub fn resolve_beside(
    root: &Node,
    file: Arc<Path>,
    base: &Path,
    beside: Beside,
) -> Result<Resolved, Vec<Diagnostic>> {
    let (errors, mentions, warnings) = (Errors::new(file), Vec::new(), Vec::new());
    let mut resolver = Resolver { beside, errors, mentions, warnings };
    let modes = resolver.file(root, base);
    let Resolver { beside: _, errors, mentions, warnings } = resolver;
    let errors = errors.into_sorted();
    match modes {
        Some(modes) if errors.is_empty() => Ok(Resolved { modes, mentions, warnings }),
        _ => Err(errors),
    }
}

/// What makes a folder a whole pipeline in diffusers' layout, and what makes it one model.
pub const PIPELINE_FOLDER: &str = "model_index.json";
pub const MODEL_FOLDER: &str = "config.json";

struct Resolver {
    beside: Beside,
    errors: Errors,
    mentions: Vec<Mention>,
    warnings: Vec<Diagnostic>,
}

/// The folders that models and LoRAs are relative to. `None`: already reported as wrong.
struct Roots {
    model: Option<Root>,
    lora: Option<Root>,
}

/// A folder, and its path as it may be shown.
#[derive(Clone)]
struct Root {
    path: PathBuf,
    written: PathBuf,
}

impl Resolver {
    fn file(&mut self, root: &Node, base: &Path) -> Option<Modes> {
        let field = Field { node: root, key: KeyPath::default() };
        if root.value == Value::Null {
            field.error(
                &mut self.errors,
                "the file is empty; modes.yaml.example shows what it needs",
            );
            return None;
        }
        let table =
            Table::read(&field, Position { line: 1, column: 1 }, &ROOT_KEYS, &mut self.errors)?;
        let model_root = table.require("model_root", &mut self.errors);
        let model = model_root.and_then(|field| self.root(&field, base));
        let lora = match table.get("lora_root") {
            Some(field) => self.root(&field, base),
            None => model.clone(),
        };
        let default_mode = table.require("default_mode", &mut self.errors);
        let modes = table.require("modes", &mut self.errors);
        let max_pixels = table
            .get("max_pixels")
            .and_then(|field| field.whole_number(64..=Size::MAX_PIXELS as u32, &mut self.errors))
            .map_or(Size::DEFAULT_MAX_PIXELS, u64::from);
        let watch = parsed(&table, "watch", &mut self.errors).unwrap_or(Watch::Auto);
        let order = order(&table, &mut self.errors);
        let jobs = jobs(&table, &mut self.errors);
        let timeout = parsed(&table, "timeout", &mut self.errors).unwrap_or_default();
        let compute = compute(&table, &self.beside, &mut self.errors);
        let section = MemorySection::read(&table, &mut self.errors);
        let custom_jobs = custom_jobs(&table, base, &mut self.errors);
        let webhooks = webhooks(&table, &mut self.errors);
        let http = http(&table, &mut self.errors);
        let superres = table.get("superres").map(|field| self.superres(&field, model.as_ref()));
        let roots = Roots { model, lora };
        let declared = modes.and_then(|field| field.entries(&mut self.errors).map(|e| (field, e)));
        let Some((field, entries)) = declared else {
            // Its type is still worth a word.
            default_mode.and_then(|field| field.text(&mut self.errors));
            return None;
        };
        if entries.is_empty() {
            field.error(&mut self.errors, "declares no mode; at least one is needed");
        }
        let default_mode = default_mode.and_then(|field| self.default_mode(&field, entries));
        let modes: BTreeMap<String, Arc<Mode>> = entries
            .iter()
            .filter_map(|entry| self.mode(entry, &field.key, &roots, max_pixels))
            .map(|mode| (mode.name.clone(), Arc::new(mode)))
            .collect();
        let (model_root, lora_root) = (roots.model?.path, roots.lora?.path);
        let (default_mode, superres) = (default_mode?, superres.flatten());
        let memory = section.memory.clone();
        let modes = Modes {
            default_mode,
            model_root,
            lora_root,
            max_pixels,
            watch,
            memory,
            order,
            jobs,
            modes,
            custom_jobs,
            webhooks,
            http,
            superres,
            timeout,
            compute,
        };
        self.warnings = section.warnings(&modes, &self.errors);
        let change = (self.beside.running, modes.compute);
        self.warnings.extend(compute::warnings(&table, change, &self.errors));
        Some(modes)
    }

    fn root(&mut self, field: &Field, base: &Path) -> Option<Root> {
        let name = field.text(&mut self.errors)?;
        if name.is_empty() {
            field.error(&mut self.errors, "is empty; write '.' for the folder of this file");
            return None;
        }
        let root = Root { path: base.join(name), written: base.join(field.written(name)) };
        self.mentions.push(Mention {
            name: field.written(name).to_owned(),
            path: root.path.clone(),
            written: root.written.clone(),
            root: None,
            folder_with: None,
            at: field.node.at,
            key: field.key.clone(),
        });
        Some(root)
    }

    /// What makes images larger: the file's name alone, or a mapping.
    fn superres(&mut self, field: &Field, root: Option<&Root>) -> Option<CheckpointRef> {
        let (name, path) = match field.node.value {
            Value::Text(_) | Value::Variable(_) => self.file_name(field, root, None)?,
            Value::Map(_) => {
                let at = field.node.at;
                let table = Table::read(field, at, &SUPERRES_KEYS, &mut self.errors)?;
                let model = table.require("model", &mut self.errors)?;
                self.file_name(&model, root, None)?
            }
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::List(_) => {
                field.error(&mut self.errors, "expected a file name or a mapping {model}");
                return None;
            }
        };
        Some(CheckpointRef { name, path })
    }

    fn default_mode(&mut self, field: &Field, declared: &[Entry]) -> Option<String> {
        let name = field.text(&mut self.errors)?;
        if declared.iter().any(|entry| entry.key == name) {
            return Some(name.to_owned());
        }
        let nearest = nearest_name(name, declared.iter().map(|entry| entry.key.as_str()));
        let hint = did_you_mean(nearest.as_deref());
        field.error_quoting(&mut self.errors, format!("there is no mode '{name}'{hint}"));
        None
    }

    /// A file below `root`: its name as written (with variables, not with their values), and its path. A symbolic link that leads out
    /// of the folder is the user's own decision; a name that does is not.
    fn file_name(
        &mut self,
        field: &Field,
        root: Option<&Root>,
        folder_with: Option<&'static str>,
    ) -> Option<(String, PathBuf)> {
        let name = field.text(&mut self.errors)?;
        if let Err(reason) = check_file_name(name) {
            field.error(&mut self.errors, reason);
            return None;
        }
        let root = root?;
        let path = root.path.join(name);
        let name = field.written(name).to_owned();
        self.mentions.push(Mention {
            name: name.clone(),
            path: path.clone(),
            written: root.written.join(&name),
            root: Some(root.path.clone()),
            folder_with,
            at: field.node.at,
            key: field.key.clone(),
        });
        Some((name, path))
    }
}

/// A value that is written as a word.
fn parsed<T: FromStr<Err: Display>>(table: &Table, key: &str, errors: &mut Errors) -> Option<T> {
    table.get(key).and_then(|field| field.parsed(errors))
}

fn flag(table: &Table, key: &str, errors: &mut Errors) -> Option<bool> {
    table.get(key).and_then(|field| field.flag(errors))
}

#[cfg(test)]
mod tests;
