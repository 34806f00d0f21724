//! Reads ahead what a load is about to look at, on a thread of its own.
//!
//! A mapped file is read where it is looked at, a little at a time, and whoever looks waits. Read
//! into the page cache in large pieces beforehand, a load from a cold disk takes about as long as
//! one that finds everything in memory. What fails here fails again, and is told, where it is
//! looked at.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::TensorFile;

/// A part of a file.
pub type Piece = (Arc<TensorFile>, Range<usize>);

/// What is asked of the disk at a time.
const BLOCK_BYTES: usize = 2 << 20;

/// What lies between two tensors that are wanted is read as well, up to this.
const LARGEST_GAP_BYTES: usize = 256 << 10;

/// A thread that reads; it stops when this is dropped.
pub struct Prefetch {
    stopped: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Begins to read those, in that order.
    pub fn start(pieces: Vec<Piece>) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = stopped.clone();
        let read = move || {
            let mut buffer = vec![0; BLOCK_BYTES];
            for (file, range) in joined(pieces) {
                for start in range.clone().step_by(BLOCK_BYTES) {
                    let len = BLOCK_BYTES.min(range.end - start);
                    let read = file.read_at(&mut buffer[..len], start);
                    if stop.load(Ordering::Relaxed) || read.is_err() {
                        return;
                    }
                }
            }
        };
        // Without a thread it takes longer, and that is all.
        let reader = thread::Builder::new().name("prefetch".to_owned()).spawn(read).ok();
        Self { stopped, reader }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // At most a block is still to come; and what is allocated is measured behind this.
        self.reader.take().into_iter().for_each(|reader| drop(reader.join()));
    }
}

/// Pieces that follow each other in a file, as one.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for (file, range) in pieces {
        match joined.last_mut() {
            Some((last, before))
                if Arc::ptr_eq(last, &file)
                    && range.start >= before.start
                    && range.start <= before.end + LARGEST_GAP_BYTES =>
            {
                before.end = before.end.max(range.end);
            }
            _ => joined.push((file, range)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file() -> Arc<TensorFile> {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden/tiny-sd15.safetensors");
        Arc::new(TensorFile::open("tiny.safetensors", &path).unwrap())
    }

    #[test]
    fn neighbours_are_read_as_one() {
        let (a, b) = (file(), file());
        let far = 9 << 20;
        let pieces = [
            (&a, 10..20),
            (&a, 20..30),
            (&a, 1000..2000),
            (&a, far..far + 1),
            (&b, 5..9),
            (&a, 0..5),
        ];
        let pieces = pieces.map(|(file, range)| (file.clone(), range)).to_vec();
        let ranges: Vec<_> = joined(pieces).into_iter().map(|(_, range)| range).collect();
        assert_eq!(ranges, [10..2000, far..far + 1, 5..9, 0..5]);
    }

    #[test]
    fn it_ends_by_itself_and_when_nobody_wants_it() {
        let file = file();
        for range in [0..100, 0..usize::MAX] {
            drop(Prefetch::start(vec![(file.clone(), range)]));
        }
    }
}
