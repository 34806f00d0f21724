//! Which files are kept, which go first, and which are no longer what they were.

use std::{cell::Cell, fs, path::Path};

use safetensors::{Dtype, serialize_to_file, tensor::TensorView};

use super::*;
use crate::engine::checkpoint::Module;

const MODULE: &str = "unet.proj_in";

/// A LoRA of so many outputs; of equally many, files are equally long.
fn write(folder: &Path, name: &str, outputs: usize) -> LoraRef {
    let bytes = vec![0; 4 * 8 * outputs];
    let view = TensorView::new(Dtype::F32, vec![outputs, 8], &bytes).unwrap();
    let path = folder.join(name);
    serialize_to_file([(format!("{MODULE}.diff"), view)], None, &path).unwrap();
    LoraRef { name: name.to_owned(), path, strength: 1.0, adapter_name: None }
}

/// A checkpoint of that file, which has room for LoRAs of so many outputs.
fn recipient(file: &LoraRef, outputs: usize) -> Recipient<'static> {
    let module = Module { canonical: MODULE.to_owned(), ldm: None, dims: vec![outputs, 8] };
    let files = vec![FileIdentity::of(&file.path).unwrap()];
    Recipient::new("SD1.x", files, || vec![module])
}

fn cache(max_files: u32, max_bytes: u64) -> LoraCache {
    let mut cache = LoraCache::new();
    cache.set_limits(max_files, max_bytes);
    cache
}

fn counts(cache: &LoraCache) -> [u64; 3] {
    [u64::from(cache.files()), cache.hits(), cache.misses()]
}

#[test]
fn the_least_recently_used_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| write(folder.path(), name, 8));
    let (to, mut cache) = (recipient(&a, 8), cache(2, u64::MAX));
    let mut open = |lora: &LoraRef| {
        cache.open(lora, &to).unwrap();
        counts(&cache)
    };
    assert_eq!(open(&a), [1, 0, 1]);
    assert_eq!(open(&b), [2, 0, 2]);
    assert_eq!(open(&a), [2, 1, 2]);
    // b was used before a.
    assert_eq!(open(&c), [2, 1, 3]);
    assert_eq!(open(&a), [2, 2, 3]);
    assert_eq!(open(&c), [2, 3, 3]);
    assert_eq!(open(&b), [2, 3, 4]);
    assert_eq!(open(&a), [2, 3, 5]);
}

#[test]
fn no_more_bytes_and_files_are_kept_than_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| write(folder.path(), name, 8));
    let long = write(folder.path(), "long", 1000);
    let (to, len) = (recipient(&a, 8), fs::metadata(&a.path).unwrap().len());
    let mut cache = cache(9, 2 * len);
    for lora in [&a, &b, &c] {
        cache.open(lora, &to).unwrap();
    }
    assert_eq!((cache.files(), cache.bytes()), (2, 2 * len));
    // One that is too long by itself drives nobody out.
    cache.open(&long, &recipient(&long, 1000)).unwrap();
    assert_eq!((cache.files(), cache.bytes()), (2, 2 * len));
    cache.set_limits(9, 2 * len - 1);
    assert_eq!((cache.files(), cache.bytes()), (1, len));
    cache.set_limits(0, u64::MAX);
    assert_eq!((cache.files(), cache.bytes()), (0, 0));
    let before = cache.misses();
    cache.open(&a, &to).unwrap();
    cache.open(&a, &to).unwrap();
    assert_eq!(counts(&cache), [0, 0, before + 2]);
}

#[test]
fn a_file_that_was_replaced_or_is_gone_is_not_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let a = write(folder.path(), "a", 8);
    let base = write(folder.path(), "base", 8);
    let mut cache = cache(9, u64::MAX);
    cache.open(&a, &recipient(&base, 8)).unwrap();
    // In its place, with another length.
    write(folder.path(), "a", 16);
    let error = cache.open(&a, &recipient(&base, 8)).err().unwrap().to_string();
    assert!(error.contains("[16, 8]"), "{error}");
    assert_eq!(counts(&cache), [1, 0, 2]);
    // Another file of the same length.
    let b = write(folder.path(), "b", 16);
    fs::rename(b.path, &a.path).unwrap();
    let wide = write(folder.path(), "wide", 16);
    let (file, _) = cache.open(&a, &recipient(&wide, 16)).unwrap();
    assert_eq!(counts(&cache), [1, 0, 3]);
    assert_eq!(file.file.identity, FileIdentity::of(&a.path).unwrap());
    fs::remove_file(&a.path).unwrap();
    assert!(cache.open(&a, &recipient(&wide, 16)).is_err());
    assert_eq!(counts(&cache), [0, 0, 4]);
}

#[test]
fn places_are_looked_for_once_in_each_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let lora = write(folder.path(), "lora", 8);
    let mut cache = cache(9, u64::MAX);
    let listed = Cell::new(0);
    let mut open = |files: &[&str]| {
        let files = files.iter().map(|name| {
            let file = write(folder.path(), name, 8);
            FileIdentity::of(&file.path).unwrap()
        });
        let to = Recipient::new("SD1.x", files.collect(), || {
            listed.set(listed.get() + 1);
            vec![Module { canonical: MODULE.to_owned(), ldm: None, dims: vec![8, 8] }]
        });
        let (_, matched) = cache.open(&lora, &to).unwrap();
        assert_eq!(matched.adapters.len(), 1);
        listed.get()
    };
    assert_eq!(open(&["a"]), 1);
    assert_eq!(open(&["b"]), 2);
    // Of a checkpoint without files nothing is known.
    assert_eq!(open(&[]), 3);
    assert_eq!(open(&[]), 4);
    let files = [FileIdentity::of(&folder.path().join("a")).unwrap()];
    let to = Recipient::new("SD1.x", files.to_vec(), || panic!("it was matched to before"));
    cache.open(&lora, &to).unwrap();
}
