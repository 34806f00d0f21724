//! The models and LoRAs that are on disk, and which modes use them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{
    folder,
    resolve::{MODEL_FOLDER, PIPELINE_FOLDER},
    stamp::{self, Look},
};
use crate::modes::{CheckpointRef, Mode, Modes};

/// A file or folder below one of the roots.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFile {
    /// As modes.yaml would name it: relative to `model_root`, or to `lora_root` if it lies there.
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    /// Another number once it has been replaced.
    pub stamp: u64,
    /// The modes that name it, but for those that do by a variable.
    pub modes: Vec<String>,
}

/// Everything below the roots, sorted. Reads the disk.
pub fn inventory(modes: &Modes) -> Vec<ModelFile> {
    let users = users(modes);
    let (models, loras) = (&modes.model_root, &modes.lora_root);
    // LoRAs are often in a folder of the models'.
    let is_pipeline = |path: &Path| path == loras || path.join("model_index.json").is_file();
    let mut names: Vec<(PathBuf, String)> = folder::files(models, is_pipeline)
        .into_iter()
        .map(|name| (models.join(&name), name))
        .filter(|(path, _)| path != loras)
        .collect();
    if models != loras {
        let in_loras = folder::files(loras, |_| false).into_iter();
        names.extend(in_loras.map(|name| (loras.join(&name), name)));
    }
    let file = |(path, name): (PathBuf, String)| {
        let Look { stamp, bytes } = stamp::look(&path);
        let modes = users.get(path.as_path()).cloned().unwrap_or_default();
        ModelFile { name, path, bytes, stamp, modes }
    };
    names.into_iter().map(file).collect()
}

/// A mode's files: model, VAE and LoRAs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeFiles {
    /// Those that are there, each counted once.
    pub bytes: u64,
    /// Those that are not, as modes.yaml names them.
    pub missing: Vec<String>,
}

/// Looks for a mode's files. Reads the disk.
pub fn files_of(mode: &Mode) -> ModeFiles {
    let pipeline = &mode.pipeline;
    let is_model = |path: &Path, folder_with| path.is_file() || path.join(folder_with).is_file();
    let model = |model: &CheckpointRef, folder_with| {
        (is_model(&model.path, folder_with), model.name.clone())
    };
    let models = [
        Some(model(&pipeline.checkpoint, PIPELINE_FOLDER)),
        pipeline.vae.as_ref().map(|vae| model(vae, MODEL_FOLDER)),
    ];
    let loras = pipeline.loras.iter().map(|lora| (lora.path.is_file(), lora.name.clone()));
    let missing = models.into_iter().flatten().chain(loras);
    let missing: BTreeSet<String> =
        missing.filter(|(is_there, _)| !is_there).map(|(_, name)| name).collect();
    let paths: BTreeSet<&Path> = files(mode).map(|(_, path)| path).collect();
    ModeFiles {
        bytes: paths.into_iter().map(|path| stamp::look(path).bytes).sum(),
        missing: missing.into_iter().collect(),
    }
}

/// The modes that name each path. One that names it by a variable is left out: the path is the
/// variable's value, which is not shown.
fn users(modes: &Modes) -> BTreeMap<&Path, Vec<String>> {
    let mut users = BTreeMap::<&Path, Vec<String>>::new();
    for mode in modes.modes.values() {
        let is_as_written = |(name, path): &(&str, &Path)| {
            [&modes.model_root, &modes.lora_root].into_iter().any(|root| root.join(name) == *path)
        };
        for (_, path) in files(mode).filter(is_as_written) {
            let of_path = users.entry(path).or_default();
            if of_path.last() != Some(&mode.name) {
                of_path.push(mode.name.clone());
            }
        }
    }
    users
}

/// Names, as they are written, and paths.
fn files(mode: &Mode) -> impl Iterator<Item = (&str, &Path)> {
    let pipeline = &mode.pipeline;
    let models = [Some(&pipeline.checkpoint), pipeline.vae.as_ref()].into_iter().flatten();
    let loras = pipeline.loras.iter().map(|lora| (lora.name.as_str(), lora.path.as_path()));
    models.map(|model| (model.name.as_str(), model.path.as_path())).chain(loras)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::ModeConfigManager;

    #[test]
    fn what_lies_below_the_roots_is_listed_once_with_the_modes_that_use_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (file, text) in [
            ("m/a.safetensors", "12345"),
            ("m/sub/b.safetensors", "1"),
            ("m/pipe/model_index.json", "{}"),
            ("m/pipe/unet/x.safetensors", "123"),
            ("m/loras/l.safetensors", "12"),
            ("m/notes.txt", "1"),
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), text).unwrap();
        }
        let yaml = "model_root: m\nlora_root: m/loras\ndefault_mode: a\nmodes:\n  \
                    a: {model: a.safetensors, loras: [l.safetensors, l.safetensors]}\n  \
                    b: {model: pipe, vae: a.safetensors}\n  \
                    c: {model: '${UNSET:-a.safetensors}', loras: ['${UNSET:-l.safetensors}']}\n";
        fs::write(root.join("modes.yaml"), yaml).unwrap();
        let modes = ModeConfigManager::load(root.join("modes.yaml")).unwrap().current();
        let files = inventory(&modes);
        let seen: Vec<_> = files
            .iter()
            .map(|file| (file.name.as_str(), file.bytes, file.modes.join(" ")))
            .collect();
        let expected = [
            ("a.safetensors", 5, "a b".to_owned()),
            ("pipe", 5, "b".to_owned()),
            ("sub/b.safetensors", 1, String::new()),
            ("l.safetensors", 2, "a".to_owned()),
        ];
        assert_eq!(seen, expected);
    }
}
