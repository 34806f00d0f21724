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
    let remembered = contents.remembered.iter().map(|job| job.entry.id);
    let known: HashSet<_> =
        remembered.chain(contents.unreadable.clone()).chain(contents.tombstones.clone()).collect();
    let orphaned = results.orphaned_folder().display();
    match results.set_aside_all_but(&known) {
        Ok(0) => {}
        Ok(count) => tracing::error!(
            "the journal knows nothing of {count} images: they are now in '{orphaned}'; 'diffused \
             recover --state-dir {}' makes jobs of them again, once this daemon is stopped",
            folder.display()
        ),
        Err(error) => tracing::error!(
            "the journal knows nothing of some images, and they cannot be moved to '{orphaned}': \
             {error}; they stay where they are"
        ),
    }
    Ok(Files { store, results, contents })
}
