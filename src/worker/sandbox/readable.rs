//! Which files the worker may read.
//!
//! The kernel's rules hold for files, not for names, so links are followed: people link large disks
//! into `model_root`, and a cache of Hugging Face's is a folder of links. The daemon resolves the
//! names, and the worker only says that a job's file lies outside: a worker that was taken over
//! cannot ask for files of its own choice.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::modes::{Modes, PipelineSpec};

/// A model's folder has folders of components, and those have files.
const MODEL_DEPTH: u32 = 4;
/// `lora_root` is arranged as people like.
const LORA_DEPTH: u32 = 8;
/// Bounds for folders that can be anything.
const MAX_ENTRIES: usize = 50_000;
/// Bounds for the links below `lora_root`, which become arguments of a process. A job that needs
/// another one has the worker started again.
const MAX_LINKED: usize = 4096;
const MAX_LINKED_BYTES: usize = 512 << 10;

/// Names of folders and files as the configuration and jobs say them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readable {
    /// Readable as a whole.
    roots: BTreeSet<PathBuf>,
    /// Models, which may be links, or folders of links, out of the roots.
    models: BTreeSet<PathBuf>,
    /// Requests name files in here, and its links are followed wherever they lead.
    lora_root: Option<PathBuf>,
}

impl Readable {
    pub fn of(modes: &Modes) -> Self {
        let roots = [modes.model_root.clone(), modes.lora_root.clone()].into();
        let of_modes = modes.modes.values().flat_map(|mode| files_of(&mode.pipeline));
        let superres = modes.superres.iter().map(|model| model.path.as_path());
        let models = of_modes.chain(superres).map(Path::to_owned).collect();
        Self { roots, models, lora_root: Some(modes.lora_root.clone()) }
    }

    pub fn add(&mut self, models: impl IntoIterator<Item = PathBuf>) {
        self.models.extend(models);
    }

    /// The files and folders behind the names, links followed. Names without a file are left out.
    pub fn resolve(&self) -> Vec<PathBuf> {
        let roots = self.roots.iter().filter_map(|root| root.canonicalize().ok());
        let mut resolved: BTreeSet<PathBuf> = roots.collect();
        let covers = |resolved: &BTreeSet<PathBuf>, target: &Path| {
            target.ancestors().any(|folder| resolved.contains(folder))
        };
        for target in self.models.iter().flat_map(|model| targets(model, MODEL_DEPTH)) {
            if !covers(&resolved, &target) {
                resolved.insert(target);
            }
        }
        let (mut links, mut bytes) = (0, 0);
        for target in self.lora_root.iter().flat_map(|root| targets(root, LORA_DEPTH)) {
            if covers(&resolved, &target) {
                continue;
            }
            links += 1;
            bytes += target.as_os_str().len();
            if links > MAX_LINKED || bytes > MAX_LINKED_BYTES {
                tracing::debug!("lora_root has more links than the worker may follow at once");
                break;
            }
            resolved.insert(target);
        }
        resolved.into_iter().collect()
    }

    /// The roots as they are named, where the disk does not answer.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.roots.iter().cloned().collect()
    }
}

/// The files and folders that a pipeline is loaded from.
pub fn files_of(pipeline: &PipelineSpec) -> impl Iterator<Item = &Path> {
    let PipelineSpec { checkpoint, vae, loras, on_lora_error: _, prediction: _, stamp: _ } =
        pipeline;
    let models = [checkpoint].into_iter().chain(vae).map(|model| model.path.as_path());
    models.chain(loras.iter().map(|lora| lora.path.as_path()))
}

/// The place of a model, and of everything that is linked into its folder, down to that depth.
fn targets(model: &Path, depth: u32) -> Vec<PathBuf> {
    let mut targets = Vec::new();
    let mut folders = VecDeque::new();
    let mut seen = HashSet::new(); // links may lead in circles
    let mut entries_left = MAX_ENTRIES;
    if let Ok(canonical) = model.canonicalize() {
        folders.push_back((canonical.clone(), depth));
        seen.insert(canonical.clone());
        targets.push(canonical);
    }
    while let Some((folder, depth)) = folders.pop_front() {
        // An error: it is a file, or a folder outside of the sandbox, which its own name says.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entries_left == 0 {
                return targets;
            }
            entries_left -= 1;
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_file() {
                continue;
            }
            let Ok(canonical) = entry.path().canonicalize() else { continue };
            if kind.is_symlink() {
                targets.push(canonical.clone());
            }
            if depth > 1 && seen.insert(canonical.clone()) {
                folders.push_back((canonical, depth - 1));
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
        models.into_iter().find(|model| targets(model, MODEL_DEPTH).iter().any(is_outside))
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
        let roots = [root.join("models")].into();
        let readable = Readable { roots, models: models.into(), lora_root: None };
        let resolved = readable.resolve();
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
    fn links_below_lora_root_are_followed_within_bounds() {
        let (_folder, root) = tree();
        let models = root.join("models");
        symlink(&models, models.join("circle")).unwrap();
        let lora_root = Some(models.clone());
        let readable = Readable { roots: [models.clone()].into(), lora_root, ..Default::default() };
        let linked = ["disk/a.safetensors", "disk/blob", "disk/vae", "models"];
        assert_eq!(readable.resolve(), linked.map(|name| root.join(name)));

        for index in 0..MAX_LINKED + 10 {
            let file = root.join(format!("disk/{index}"));
            write(&file);
            symlink(&file, models.join(format!("{index}.safetensors"))).unwrap();
        }
        let resolved = readable.resolve();
        assert_eq!(resolved.len(), MAX_LINKED + 1, "one is the root");
        let bytes: usize = resolved.iter().map(|path| path.as_os_str().len()).sum();
        assert!(bytes <= MAX_LINKED_BYTES + models.as_os_str().len());
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
