//! The journal and its images are brought together: what each says of the other at the start.
//!
//! No image is deleted here without a tombstone, since a journal may be new, damaged or an older
//! copy: an image that it does not know is moved aside.

use std::{collections::HashSet, io, path::Path};

use super::{
    JournalError, Results,
    store::{Contents, Store},
};

/// The open files of a state folder.
pub struct Files {
    pub store: Store,
    pub results: Results,
    pub contents: Contents,
}

/// Opens what is in that folder, or creates it.
pub fn open(folder: &Path) -> Result<Files, JournalError> {
    let unusable =
        |error: io::Error| JournalError::Unusable { path: folder.into(), error: error.into() };
    let results = Results::open(folder).map_err(unusable)?;
    let (mut store, contents) = Store::open(&folder.join("journal.sqlite3"))?;
    for id in &contents.tombstones {
        if results.remove(*id) {
            store.bury(*id);
        }
    }
    store.delete_tombstones();
    if let Err(error) = results.remove_unfinished() {
        tracing::warn!("unfinished images cannot be removed: {error}");
    }
    set_unknown_aside(folder, &results, &contents);
    Ok(Files { store, results, contents })
}

/// An image of a job that has not ended is unknown, too: the journal may be an older copy, and the
/// job, done again, would overwrite the image.
fn set_unknown_aside(folder: &Path, results: &Results, contents: &Contents) {
    let (ended, waiting): (Vec<_>, Vec<_>) =
        contents.remembered.iter().partition(|job| job.ending.is_some());
    let ended = ended.iter().map(|job| job.entry.id);
    let waiting: HashSet<_> = waiting.iter().map(|job| job.entry.id).collect();
    let known: HashSet<_> =
        ended.chain(contents.unreadable.clone()).chain(contents.tombstones.clone()).collect();
    let orphaned = results.orphaned_folder().display();
    let moved = match results.set_aside_all_but(&known) {
        Ok(moved) => moved,
        Err(error) => {
            tracing::error!(
                "the journal knows nothing of some images, and they cannot be moved to \
                 '{orphaned}': {error}; they stay where they are"
            );
            return;
        }
    };
    let again = moved.iter().filter(|image| waiting.contains(&image.job)).count();
    let count = moved.len() - again;
    if again > 0 {
        tracing::info!(
            "{again} images of jobs that have not ended are now in '{orphaned}', and their jobs are \
             done again: an earlier daemon was killed, or the journal is an older copy"
        );
    }
    if count > 0 {
        tracing::error!(
            "the journal knows nothing of {count} images: they are now in '{orphaned}'; 'diffused \
             recover --state-dir {}' makes jobs of them again, once this daemon is stopped",
            folder.display()
        );
    }
}
