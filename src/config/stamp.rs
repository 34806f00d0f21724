//! Whether files are still those that they were: a number that changes when one is replaced.

use std::{
    fs::{self, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::modes::{LoraRef, PipelineSpec};

/// Bounds for a folder that can be anything; a diffusers folder has some thirty files.
const MAX_ENTRIES: usize = 1_000;
const MAX_DEPTH: usize = 2;

/// What a look at a file, or at all in a folder and in the folders in it, tells.
#[derive(Default)]
pub struct Look {
    /// Of a file: its length, time of change and inode; of a folder: those of all that is in it.
    /// 0 where nothing is.
    pub stamp: u64,
    pub bytes: u64,
}

pub fn look(path: &Path) -> Look {
    let mut entries_left = MAX_ENTRIES;
    look_at(path, 0, &mut entries_left)
}

/// [`Look::stamp`] alone.
pub fn of(path: &Path) -> u64 {
    look(path).stamp
}

/// Of all files of a pipeline.
pub fn of_pipeline(pipeline: &PipelineSpec) -> u64 {
    let models = [Some(&pipeline.checkpoint), pipeline.vae.as_ref()];
    let models = models.into_iter().flatten().map(|model| of(&model.path));
    joined(models.chain(pipeline.loras.iter().map(|lora| of(&lora.path))))
}

/// The pipeline with a request's own LoRAs behind its own.
pub fn with_loras(mut pipeline: PipelineSpec, loras: Vec<LoraRef>) -> PipelineSpec {
    if !loras.is_empty() {
        let stamps = loras.iter().map(|lora| of(&lora.path));
        pipeline.stamp = joined([pipeline.stamp].into_iter().chain(stamps));
        pipeline.loras.extend(loras);
    }
    pipeline
}

fn look_at(path: &Path, depth: usize, entries_left: &mut usize) -> Look {
    let Ok(metadata) = fs::metadata(path) else { return Look::default() };
    if !metadata.is_dir() {
        return Look { stamp: of_file(&metadata), bytes: metadata.len() };
    }
    let mut folder = Look::default();
    if depth == MAX_DEPTH {
        return folder;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if *entries_left == 0 {
            break;
        }
        *entries_left -= 1;
        let Look { stamp, bytes } = look_at(&entry.path(), depth + 1, entries_left);
        let mut hasher = DefaultHasher::new();
        entry.file_name().hash(&mut hasher);
        stamp.hash(&mut hasher);
        // A sum: whatever the order of the entries.
        folder.stamp = folder.stamp.wrapping_add(hasher.finish());
        folder.bytes += bytes;
    }
    folder
}

fn of_file(metadata: &Metadata) -> u64 {
    let changed = (metadata.mtime(), metadata.mtime_nsec());
    let mut hasher = DefaultHasher::new();
    (metadata.len(), changed, metadata.dev(), metadata.ino()).hash(&mut hasher);
    hasher.finish()
}

fn joined(stamps: impl Iterator<Item = u64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    stamps.for_each(|stamp| stamp.hash(&mut hasher));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modes::CheckpointRef;

    #[test]
    fn a_replaced_file_has_another_stamp_wherever_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let [checkpoint, lora, pipe] = ["c", "l", "pipe"].map(|name| folder.path().join(name));
        fs::create_dir_all(pipe.join("unet")).unwrap();
        let part = pipe.join("unet/x");
        for file in [&checkpoint, &lora, &part] {
            fs::write(file, "one").unwrap();
        }
        let lora_ref =
            LoraRef { name: "l".into(), path: lora.clone(), strength: 1.0, adapter_name: None };
        let spec = |path: &Path, loras: &[&LoraRef]| PipelineSpec {
            loras: loras.iter().map(|&lora| lora.clone()).collect(),
            ..PipelineSpec::of(CheckpointRef { name: "x".into(), path: path.to_owned() })
        };
        let plain = spec(&checkpoint, &[]);
        let stamps = || {
            let asked = with_loras(plain.clone(), vec![lora_ref.clone()]);
            [of_pipeline(&plain), of_pipeline(&spec(&pipe, &[])), asked.stamp]
        };
        let before = stamps();
        assert_eq!(before, stamps());
        assert_eq!(with_loras(plain.clone(), vec![]), plain);
        let replace = |file: &Path| {
            let new = folder.path().join("new");
            fs::write(&new, "two").unwrap();
            fs::rename(new, file).unwrap();
        };
        for (at, file) in [&checkpoint, &part, &lora].into_iter().enumerate() {
            let before = stamps();
            replace(file);
            let after = stamps();
            let changed: Vec<_> = (0..3).filter(|i| before[*i] != after[*i]).collect();
            assert_eq!(changed, [at]);
        }
        fs::remove_file(&checkpoint).unwrap();
        assert_ne!(stamps()[0], before[0]);
    }
}
