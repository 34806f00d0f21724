//! The committed corpus of the cargo-fuzz targets, replayed: it holds the targets to the API, and
//! whatever a fuzzer once found stays found.

use std::{fs, path::Path};

#[path = "../../fuzz/src/lib.rs"]
mod targets;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        // Captured, and shown if the check panics.
        println!("{}", file.display());
        check(&fs::read(file).unwrap());
    }
}

#[test]
fn requests() {
    replay("request", targets::request::check);
}

#[test]
fn images() {
    replay("image", targets::image::check);
}

#[test]
fn safetensors() {
    replay("safetensors", targets::safetensors::check);
}

#[test]
fn modes() {
    replay("modes", targets::modes::check);
}
