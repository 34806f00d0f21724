//! Which files the worker may read.
//!
//! The kernel's rules hold for files, not for names, so links are followed: people link large disks
//! into `model_root`, and a cache of Hugging Face's is a folder of links. The daemon resolves the
//! names, and the worker only says that a job's file lies outside: a worker that was taken over
//! cannot ask for files of its own choice.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::modes::{Modes, PipelineSpec};

/// Names of folders and files as the configuration and jobs say them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readable {
    /// Readable as a whole.
    roots: BTreeSet<PathBuf>,
    /// Models, which may be links, or folders of links, out of the roots.
    models: BTreeSet<PathBuf>,
}

impl Readable {
    pub fn of(modes: &Modes) -> Self {
        let roots = [modes.model_root.clone(), modes.lora_root.clone()].into();
        let of_modes = modes.modes.values().flat_map(|mode| files_of(&mode.pipeline));
        let superres = modes.superres.iter().map(|model| model.path.as_path());
        let models = of_modes.chain(superres).map(Path::to_owned).collect();
        Self { roots, models }
    }

    pub fn add(&mut self, models: impl IntoIterator<Item = PathBuf>) {
        self.models.extend(models);
    }

    /// The files and folders behind the names, links followed. Names without a file are left out.
    pub fn resolve(&self) -> Vec<PathBuf> {
        let roots = self.roots.iter().filter_map(|root| root.canonicalize().ok());
        let mut resolved: Vec<PathBuf> = roots.collect();
        for target in self.models.iter().flat_map(|model| targets(model)) {
            if !resolved.iter().any(|path| target.starts_with(path)) {
                resolved.push(target);
            }
        }
        resolved
    }
}

/// The files and folders that a pipeline is loaded from.
pub fn files_of(pipeline: &PipelineSpec) -> impl Iterator<Item = &Path> {
    let PipelineSpec { checkpoint, vae, loras, on_lora_error: _, prediction: _, stamp: _ } =
        pipeline;
    let models = [checkpoint].into_iter().chain(vae).map(|model| model.path.as_path());
    models.chain(loras.iter().map(|lora| lora.path.as_path()))
}

/// The place of a model, and of everything that is linked into its folder.
fn targets(model: &Path) -> Vec<PathBuf> {
    /// A model's folder has folders of components, and those have files.
    const DEPTH: u32 = 4;
    let mut targets = Vec::new();
    let mut folders = Vec::new();
    if let Ok(canonical) = model.canonicalize() {
        folders.push((canonical.clone(), DEPTH));
        targets.push(canonical);
    }
    while let Some((folder, depth)) = folders.pop() {
        // An error: it is a file, or a folder outside of the sandbox, which its own name says.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_file() {
                continue;
            }
            let Ok(canonical) = entry.path().canonicalize() else { continue };
            if kind.is_symlink() {
                targets.push(canonical.clone());
            }
            if depth > 1 {
                folders.push((canonical, depth - 1));
            }
        }
    }
    targets
}

/// What this process may read.
#[derive(Debug, Default)]
pub struct Granted {
    /// `None`: everything.
    paths: Option<Vec<(PathBuf, Identity)>>,
}

/// Device and inode. A folder that was moved away and made anew is not the one that was granted.
type Identity = Option<(u64, u64)>;

impl Granted {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn of(canonical: &[PathBuf]) -> Self {
        let paths = canonical.iter().map(|path| (path.clone(), identity(path))).collect();
        Self { paths: Some(paths) }
    }

    /// The first of these models that has a file outside.
    pub fn outside<'m>(&self, models: impl IntoIterator<Item = &'m Path>) -> Option<&'m Path> {
        let granted = self.paths.as_ref()?;
        let covers = |target: &Path, (path, id): &(PathBuf, Identity)| {
            target.starts_with(path) && identity(path) == *id
        };
        let is_outside = |target: &PathBuf| !granted.iter().any(|granted| covers(target, granted));
        models.into_iter().find(|model| targets(model).iter().any(is_outside))
    }
}

fn identity(path: &Path) -> Identity {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    /// `models/` has a plain file, a link to a file, and a folder with a linked file in it and a
    /// linked component; the links lead to `disk/`.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        write(&at("models/plain.safetensors"));
        write(&at("disk/a.safetensors"));
        write(&at("disk/blob"));
        write(&at("disk/vae/blob"));
        write(&at("models/folder/model_index.json"));
        write(&at("models/folder/unet/config.json"));
        symlink(at("disk/a.safetensors"), at("models/a.safetensors")).unwrap();
        symlink("../../../disk/blob", at("models/folder/unet/model.safetensors")).unwrap();
        symlink(at("disk/vae"), at("models/folder/vae")).unwrap();
        (folder, root)
    }

    #[test]
    fn links_that_lead_out_of_the_roots_are_followed() {
        let (_folder, root) = tree();
        let models = ["plain.safetensors", "a.safetensors", "folder", "none"]
            .map(|name| root.join("models").join(name));
        let readable = Readable { roots: [root.join("models")].into(), models: models.into() };
        let mut resolved = readable.resolve();
        resolved.sort();
        let expected =
            ["disk/a.safetensors", "disk/blob", "disk/vae", "models"].map(|name| root.join(name));
        assert_eq!(resolved, expected);

        let granted = Granted::of(&resolved);
        let names = ["plain.safetensors", "a.safetensors", "folder", "none"];
        for name in names {
            assert_eq!(granted.outside([root.join("models").join(name).as_path()]), None, "{name}");
        }
        assert_eq!(Granted::everything().outside([Path::new("/")]), None);
    }

    #[test]
    fn what_came_or_was_replaced_later_lies_outside() {
        let (_folder, root) = tree();
        let models = root.join("models");
        let granted = Granted::of(&[models.clone(), root.join("disk/a.safetensors")]);
        assert_eq!(granted.outside([models.join("a.safetensors").as_path()]), None);
        let folder = models.join("folder");
        assert_eq!(granted.outside([folder.as_path()]), Some(folder.as_path()));
        // The same name, another file.
        fs::rename(root.join("disk/a.safetensors"), root.join("disk/old")).unwrap();
        write(&root.join("disk/a.safetensors"));
        let linked = models.join("a.safetensors");
        assert_eq!(granted.outside([linked.as_path()]), Some(linked.as_path()));
        // And the root itself.
        fs::rename(&models, root.join("before")).unwrap();
        write(&models.join("plain.safetensors"));
        let plain = models.join("plain.safetensors");
        assert_eq!(granted.outside([plain.as_path()]), Some(plain.as_path()));
    }
}
