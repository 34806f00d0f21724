//! LoRA files that stay open, with what was found out about them: a mode's LoRA is asked for again
//! and again, by its own requests and beside others.
//!
//! What is kept is a file's map, its sorted tensors and where these belong in the checkpoints that
//! it was merged into last; numbers are read when it is merged. Whoever was kept longest without
//! being asked for goes first. A file that is not what it was is another one.

use std::sync::Arc;

use super::{
    Match,
    file::{LoraFile, Recipient},
};
use crate::{
    engine::checkpoint::{Error, FileIdentity},
    modes::LoraRef,
};

#[cfg(test)]
mod tests;

/// Of so many checkpoints a file's places are remembered.
const MAX_MATCHES: usize = 8;

/// Open LoRA files, up to so many and so large ones together.
#[derive(Default)]
pub struct LoraCache {
    max_files: u32,
    max_bytes: u64,
    /// The one that was asked for last stands last.
    kept: Vec<Kept>,
    hits: u64,
    misses: u64,
}

struct Kept {
    file: Arc<LoraFile>,
    /// The newest stands last.
    matches: Vec<(RecipientKey, Arc<Match>)>,
}

/// A checkpoint's family and files, which are all that a match depends on.
type RecipientKey = (String, Vec<FileIdentity>);

impl LoraCache {
    /// Keeps nothing before it is told how much it may.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many files are kept, and how long they may be together; with 0 files, none is.
    pub fn set_limits(&mut self, max_files: u32, max_bytes: u64) {
        (self.max_files, self.max_bytes) = (max_files, max_bytes);
        self.make_room();
    }

    /// Files that are kept.
    pub fn files(&self) -> u32 {
        self.kept.len() as u32
    }

    /// How long these are together.
    pub fn bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.file.file.identity.size_bytes()).sum()
    }

    /// How often a file that was asked for was there.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// How often it was not.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// The LoRA's file, and where its parts belong.
    ///
    /// # Errors
    /// It cannot be read, is no LoRA or does not fit.
    pub(super) fn open(
        &mut self,
        lora: &LoraRef,
        to: &Recipient<'_>,
    ) -> Result<(Arc<LoraFile>, Arc<Match>), Error> {
        let mut kept = match self.take(lora) {
            Some(kept) => kept,
            None => Kept { file: Arc::new(LoraFile::open(lora)?), matches: Vec::new() },
        };
        let matched = kept.match_to(lora, to);
        let file = kept.file.clone();
        if self.max_files > 0 && file.file.identity.size_bytes() <= self.max_bytes {
            self.kept.push(kept);
            self.make_room();
        }
        Ok((file, matched?))
    }

    /// Takes out what is kept of the file, if it is still the one that lies there.
    fn take(&mut self, lora: &LoraRef) -> Option<Kept> {
        let found = FileIdentity::of(&lora.path).ok();
        let of_path = |kept: &Kept| kept.file.file.identity.path() == lora.path;
        let taken = self.kept.iter().position(of_path).map(|at| self.kept.remove(at));
        let taken = taken.filter(|kept| Some(&kept.file.file.identity) == found.as_ref());
        let counter = if taken.is_some() { &mut self.hits } else { &mut self.misses };
        *counter += 1;
        taken
    }

    fn make_room(&mut self) {
        while self.files() > self.max_files || self.bytes() > self.max_bytes {
            self.kept.remove(0);
        }
    }
}

impl Kept {
    fn match_to(&mut self, lora: &LoraRef, to: &Recipient<'_>) -> Result<Arc<Match>, Error> {
        let key = (to.family.to_owned(), to.files.clone());
        if let Some(at) = self.matches.iter().position(|(known, _)| *known == key) {
            // To the end, as the newest.
            let known = self.matches.remove(at);
            let matched = known.1.clone();
            self.matches.push(known);
            return Ok(matched);
        }
        let matched = self.file.match_to(lora, to)?;
        let matched = Arc::new(matched);
        // A checkpoint without files is nobody's in particular.
        if !to.files.is_empty() {
            self.matches.push((key, matched.clone()));
            self.matches.drain(..self.matches.len().saturating_sub(MAX_MATCHES));
        }
        Ok(matched)
    }
}
