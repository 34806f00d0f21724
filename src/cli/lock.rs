//! The state folder belongs to one daemon at a time.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::journal::private;

/// A child process shares the lock from its fork until it is a program of its own. One that a killed
/// daemon had just begun to start holds it for that long, and the next daemon may be quicker.
const PATIENCE: Duration = Duration::from_secs(2);

/// Holds the folder until it is dropped, or the process is gone.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("the state folder '{}' cannot be used: {error}", path.display())]
    Unusable { path: PathBuf, error: io::Error },
    #[error(
        "another diffused{} uses the state folder '{}'; end it, or give this one a folder of its \
         own with --state-dir",
        .owner.as_deref().map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        path.display()
    )]
    InUse { path: PathBuf, owner: Option<String> },
}

impl StateDir {
    /// Creates the folder if it is missing, closes it to other users, and takes it.
    pub fn acquire(path: &Path) -> Result<Self, StateDirError> {
        let unusable = |error| StateDirError::Unusable { path: path.into(), error };
        private::create_folder(path).map_err(unusable)?;
        let mut lock = private::open_file(&path.join("lock")).map_err(unusable)?;
        match try_lock(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let known = lock.read_to_string(&mut owner).is_ok() && !owner.trim().is_empty();
                let owner = known.then(|| owner.trim().to_owned());
                return Err(StateDirError::InUse { path: path.into(), owner });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // Only for the message above; the lock itself is what counts.
        lock.set_len(0).map_err(unusable)?;
        writeln!(lock, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _lock: lock })
    }
}

fn try_lock(file: &File) -> Result<(), TryLockError> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(10));
            }
            taken => return taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = StateDir::acquire(&path).unwrap();
        let error = StateDir::acquire(&path).unwrap_err().to_string();
        let owner = format!("another diffused (process {})", std::process::id());
        assert!(error.starts_with(&owner), "{error}");
        drop(first);
        // Another test's child process may still share the lock: it is waited for.
        StateDir::acquire(&path).unwrap();
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        let error = StateDir::acquire(&path).unwrap_err().to_string();
        assert!(error.contains("file' cannot be used"), "{error}");
    }
}
