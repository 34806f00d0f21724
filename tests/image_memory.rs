//! Checking an image takes no more memory than its header promises, which is what the daemon sets
//! aside for it.
//!
//! One test, in a program of its own: the account is the whole process's.

use std::{fs, path::Path};

use diffused::{
    engine::memory::{allocated_bytes, peak_bytes, reset_peak},
    image::{Header, check, header},
};

/// Tables of a decoder, whatever the image.
const BOOKKEEPING: u64 = 256 << 10;

#[test]
fn checking_takes_what_the_header_promises() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/image");
    let mut measured = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // In smaller images a byte more or less for each pixel would not show.
        if !path.file_name().unwrap().to_str().unwrap().starts_with("large-") {
            continue;
        }
        let file = fs::read(&path).unwrap();
        let Header { checking_bytes, .. } = header(&file).unwrap();
        let before = allocated_bytes();
        reset_peak();
        check(&file).unwrap();
        let peak = peak_bytes() - before;
        let path = path.display();
        assert!(peak <= checking_bytes + BOOKKEEPING, "{path}: {peak} of {checking_bytes} bytes");
        measured += 1;
    }
    assert!(measured >= 8, "{measured} large images in the corpus");
}
