//! LoRAs that requests name: looked for on disk, and never outside `lora_root`. A link in there is
//! followed wherever it leads: only who runs the daemon can have put it there.

use std::path::{Path, PathBuf};

use super::{
    folder::{self, EXTENSION},
    names::check_file_name,
};
use crate::modes::{LoraName, LoraRef, Mode, Modes, did_you_mean, nearest_name};

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

/// The LoRA that a request means. Reads the disk.
pub fn find_lora(
    modes: &Modes,
    mode: &Mode,
    name: &LoraName,
    strength: f32,
) -> Result<LoraRef, UnknownLora> {
    let (name, path) = match name {
        LoraName::Path(file) => by_path(&modes.lora_root, file)?,
        LoraName::Name(name) => by_name(modes, mode, name)?,
    };
    Ok(LoraRef { name, path, strength, adapter_name: None })
}

fn by_path(root: &Path, file: &str) -> Result<(String, PathBuf), UnknownLora> {
    check_file_name(file).map_err(|reason| UnknownLora::OutsideRoot { reason })?;
    let path = root.join(file);
    if path.is_file() {
        return Ok((file.to_owned(), path));
    }
    // The extension, which all have, says nothing about what was meant.
    let files = files(root);
    let without_extension = |file: &str| file.strip_suffix(EXTENSION).unwrap_or(file).to_owned();
    let names: Vec<String> = files.iter().map(|file| without_extension(file)).collect();
    let nearest = nearest_name(&without_extension(file), names.iter().map(String::as_str));
    let nearest = nearest.map(|name| name + EXTENSION);
    Err(UnknownLora::NoFile { name: file.to_owned(), nearest })
}

/// Looks among the `adapter_name`s of the request's own mode, then among the files, then among the
/// `adapter_name`s of other modes.
fn by_name(modes: &Modes, mode: &Mode, name: &str) -> Result<(String, PathBuf), UnknownLora> {
    let name_and_path = |lora: &LoraRef| (lora.name.clone(), lora.path.clone());
    if let Some(own) = adapter(mode, name) {
        return Ok(name_and_path(own));
    }
    let files = files(&modes.lora_root);
    let named: Vec<&String> = files.iter().filter(|file| stem(file) == name).collect();
    match &named[..] {
        [file] => return Ok(((*file).clone(), modes.lora_root.join(file))),
        [] => {}
        several => {
            let files = several.iter().map(|file| (*file).clone()).collect();
            return Err(UnknownLora::Ambiguous { name: name.to_owned(), files });
        }
    }
    if let Some(other) = modes.modes.values().find_map(|mode| adapter(mode, name)) {
        return Ok(name_and_path(other));
    }
    let adapters = modes.modes.values().flat_map(|mode| adapter_names(mode));
    let nearest = nearest_name(name, files.iter().map(|file| stem(file)).chain(adapters));
    Err(UnknownLora::NoName { name: name.to_owned(), nearest })
}

fn adapter<'a>(mode: &'a Mode, name: &str) -> Option<&'a LoraRef> {
    mode.pipeline.loras.iter().find(|lora| lora.adapter_name.as_deref() == Some(name))
}

fn adapter_names(mode: &Mode) -> impl Iterator<Item = &str> {
    mode.pipeline.loras.iter().filter_map(|lora| lora.adapter_name.as_deref())
}

fn files(root: &Path) -> Vec<String> {
    folder::files(root, |_| false)
}

/// A file's name without folder and extension.
fn stem(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(EXTENSION).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

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
            (
                path("styles/none"),
                "! there is no LoRA file 'styles/none'; did you mean 'styles/oil.safetensors'?",
            ),
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
