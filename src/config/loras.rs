//! LoRAs that requests name: looked for on disk, and never outside `lora_root`.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::resolve::check_file_name;
use crate::modes::{LoraName, LoraRef, Mode, Modes, did_you_mean, nearest_name};

/// Bounds for a folder that can be anything.
const MAX_ENTRIES: usize = 50_000;
const MAX_DEPTH: usize = 8;

/// Why there is no such LoRA; for the field that names it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnknownLora {
    #[error("{reason}")]
    OutsideRoot { reason: &'static str },
    #[error("there is no LoRA file '{name}'{}", did_you_mean(.nearest.as_deref()))]
    NoFile { name: String, nearest: Option<String> },
    #[error("there is no LoRA '{name}'{}", did_you_mean(.nearest.as_deref()))]
    NoName { name: String, nearest: Option<String> },
    #[error("'{name}' is the name of several LoRAs: name one of them by its path ({})", .files.join(", "))]
    Ambiguous { name: String, files: Vec<String> },
}

/// The LoRA that a request means. A name is first looked for among the `adapter_name`s of the
/// request's own mode, then among the files, then among the other modes'. Reads the disk.
pub fn find_lora(
    modes: &Modes,
    mode: &Mode,
    name: &LoraName,
    strength: f32,
) -> Result<LoraRef, UnknownLora> {
    let lora = |name: &str, path: PathBuf| LoraRef {
        name: name.to_owned(),
        path,
        strength,
        adapter_name: None,
    };
    match name {
        LoraName::Path(file) => {
            check_file_name(file).map_err(|reason| UnknownLora::OutsideRoot { reason })?;
            let path = modes.lora_root.join(file);
            if path.is_file() {
                return Ok(lora(file, path));
            }
            let files = files(&modes.lora_root);
            let nearest = nearest_name(file, files.iter().map(String::as_str));
            Err(UnknownLora::NoFile { name: file.clone(), nearest })
        }
        LoraName::Name(name) => {
            if let Some(own) = adapter(mode, name) {
                return Ok(lora(&own.name, own.path.clone()));
            }
            let files = files(&modes.lora_root);
            let mut by_stem: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
            for file in &files {
                by_stem.entry(stem(file)).or_default().push(file);
            }
            match by_stem.get(name.as_str()).map(Vec::as_slice) {
                Some([file]) => return Ok(lora(file, modes.lora_root.join(file))),
                Some(several) => {
                    let files = several.iter().map(|file| (*file).clone()).collect();
                    return Err(UnknownLora::Ambiguous { name: name.clone(), files });
                }
                None => {}
            }
            if let Some(other) = modes.modes.values().find_map(|mode| adapter(mode, name)) {
                return Ok(lora(&other.name, other.path.clone()));
            }
            let adapters = modes.modes.values().flat_map(|mode| adapter_names(mode));
            let nearest = nearest_name(name, by_stem.keys().copied().chain(adapters));
            Err(UnknownLora::NoName { name: name.clone(), nearest })
        }
    }
}

fn adapter<'a>(mode: &'a Mode, name: &str) -> Option<&'a LoraRef> {
    mode.pipeline.loras.iter().find(|lora| lora.adapter_name.as_deref() == Some(name))
}

fn adapter_names(mode: &Mode) -> impl Iterator<Item = &str> {
    mode.pipeline.loras.iter().filter_map(|lora| lora.adapter_name.as_deref())
}

/// A file's name without folder and extension.
fn stem(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(EXTENSION).unwrap_or(name)
}

const EXTENSION: &str = ".safetensors";

/// Every LoRA file below `root`, relative to it, sorted. What cannot be read is not there.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = HashSet::new(); // links may lead in circles
    let mut folders = vec![(root.to_owned(), 0)];
    let mut entries_left = MAX_ENTRIES;
    while let Some((folder, depth)) = folders.pop() {
        let is_new = fs::metadata(&folder)
            .is_ok_and(|metadata| seen.insert((metadata.dev(), metadata.ino())));
        if !is_new {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entries_left == 0 {
                break;
            }
            entries_left -= 1;
            let path = entry.path();
            if path.is_dir() {
                if depth < MAX_DEPTH {
                    folders.push((path, depth + 1));
                }
            } else if let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str)
                && name.ends_with(EXTENSION)
                && path.is_file()
            {
                found.push(name.to_owned());
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::ModeConfigManager;

    fn found(modes: &Modes, name: LoraName) -> String {
        match find_lora(modes, &modes.modes["a"], &name, 0.5) {
            Ok(LoraRef { name, path, strength, adapter_name }) => {
                assert_eq!((strength, adapter_name), (0.5, None));
                assert_eq!(path, modes.lora_root.join(&name));
                name
            }
            Err(error) => format!("! {error}"),
        }
    }

    #[test]
    fn a_lora_is_found_by_path_stem_or_adapter_name_and_only_below_its_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("loras");
        fs::create_dir_all(root.join("styles/old")).unwrap();
        for file in [
            "ink.safetensors",
            "styles/oil.safetensors",
            "styles/old/oil.safetensors",
            "styles/a.b.safetensors",
            "styles/notes.txt",
            "../secret.safetensors",
        ] {
            fs::write(root.join(file), "").unwrap();
        }
        symlink("..", root.join("styles/circle")).unwrap();
        symlink("nowhere.safetensors", root.join("gone.safetensors")).unwrap();
        let yaml = folder.path().join("modes.yaml");
        let text = "model_root: .\nlora_root: loras\ndefault_mode: a\nmodes:\n  \
                    a: {model: x, loras: [{path: ink.safetensors, adapter_name: pen}]}\n  \
                    b: {model: x, loras: [{path: styles/oil.safetensors, adapter_name: paint}, \
                    {path: styles/oil.safetensors, adapter_name: ink}]}\n";
        fs::write(&yaml, text).unwrap();
        let modes = ModeConfigManager::load(&yaml).unwrap().current();
        let path = |name: &str| LoraName::Path(name.to_owned());
        let name = |name: &str| LoraName::Name(name.to_owned());
        for (wanted, expected) in [
            (path("ink.safetensors"), "ink.safetensors"),
            (path("styles/oil.safetensors"), "styles/oil.safetensors"),
            (name("ink"), "ink.safetensors"),
            (name("a.b"), "styles/a.b.safetensors"),
            (name("pen"), "ink.safetensors"),
            (name("paint"), "styles/oil.safetensors"),
            (
                path("../secret.safetensors"),
                "! must stay inside its root folder: '..' is not allowed",
            ),
            (path("/etc/passwd"), "! must be relative to its root folder, not an absolute path"),
            (path(""), "! is not the name of a file"),
            (path("styles"), "! there is no LoRA file 'styles'"),
            (path("ink"), "! there is no LoRA file 'ink'; did you mean 'ink.safetensors'?"),
            (path("gone.safetensors"), "! there is no LoRA file 'gone.safetensors'"),
            (name("secret"), "! there is no LoRA 'secret'"),
            (name("../secret"), "! there is no LoRA '../secret'"),
            (name("notes"), "! there is no LoRA 'notes'"),
            (name("inc"), "! there is no LoRA 'inc'; did you mean 'ink'?"),
            (
                name("oil"),
                "! 'oil' is the name of several LoRAs: name one of them by its path \
                 (styles/oil.safetensors, styles/old/oil.safetensors)",
            ),
        ] {
            assert_eq!(found(&modes, wanted.clone()), expected, "{wanted:?}");
        }
    }

    #[test]
    fn a_root_that_is_not_there_has_no_loras() {
        let modes = crate::config::tests::modes("{a: {model: x}}", "a");
        let missing = found(&modes, LoraName::Name("x".to_owned()));
        assert_eq!(missing, "! there is no LoRA 'x'");
    }
}
