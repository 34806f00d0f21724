//! Notices that the file was edited, however that was done: in place, by renaming over it, by
//! `git checkout`, by swapping a symbolic link that it is reached through.
//!
//! It is the folders that are watched, all on the way along symbolic links: a watch on the file
//! itself would stay with the one that was renamed over. Some file systems report nothing of what
//! others do to them (network drives, folders of a virtual machine's host), and none says so; so by
//! default the file is looked at as well.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

use super::{ModeConfigManager, Origin, stamp};
use crate::modes::Watch;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A file is read once nothing has happened to it for so long …
const QUIET: Duration = Duration::from_millis(60);
/// … or for so long things never cease to happen.
const LONGEST: Duration = Duration::from_millis(400);
/// What the kernel follows, too.
const MAX_LINKS: usize = 40;

/// Has the file read again when it was edited, as its own key `watch` says, from now on until the
/// process ends.
pub fn watch(config: Arc<ModeConfigManager>) -> std::io::Result<()> {
    if !config.has_file() {
        return Ok(());
    }
    let (wake, woken) = mpsc::channel();
    thread::Builder::new()
        .name("config-watch".into())
        .spawn(move || run(&config, &wake, &woken))?;
    Ok(())
}

/// Something happened in one of the folders.
#[derive(Debug, PartialEq)]
struct Happened;

fn run(config: &ModeConfigManager, wake: &Sender<Happened>, woken: &Receiver<Happened>) {
    let path = config.path();
    let mut folders = Folders::default();
    // Nothing of what happened before this was seen.
    let mut last_look = None;
    loop {
        let (reported, looked_at) = match config.current().watch {
            Watch::Auto => (true, true),
            Watch::Native => (true, false),
            Watch::Poll => (false, true),
            Watch::Off => (false, false),
        };
        folders.follow(if reported { folders_of(path) } else { HashSet::new() }, wake);
        let look = stamp::of(path);
        let seen_to_change = looked_at && last_look != Some(look);
        if seen_to_change || woken.recv_timeout(LOOK_EVERY) == Ok(Happened) {
            settle(path, woken);
            last_look = Some(stamp::of(path));
            if reported || looked_at {
                config.reload_if_edited(Origin::File);
            }
        }
    }
}

/// Waits until who edits is done.
fn settle(path: &Path, woken: &Receiver<Happened>) {
    let began = Instant::now();
    let mut before = stamp::of(path);
    while began.elapsed() < LONGEST {
        let happened = woken.recv_timeout(QUIET) != Err(RecvTimeoutError::Timeout);
        let now = stamp::of(path);
        if !happened && now == before {
            return;
        }
        before = now;
    }
}

/// The folders that are watched.
#[derive(Default)]
struct Folders {
    watcher: Option<RecommendedWatcher>,
    /// By inode, too: a folder of the same name may be another one.
    watched: HashSet<(PathBuf, u64)>,
}

impl Folders {
    /// Watches these from now on, and no others.
    fn follow(&mut self, wanted: HashSet<(PathBuf, u64)>, wake: &Sender<Happened>) {
        if self.watched == wanted {
            return;
        }
        self.watcher = None;
        if !wanted.is_empty() {
            match watcher(&wanted, wake.clone()) {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => tracing::warn!(
                    "the file system does not report edits of the configuration: {error}"
                ),
            }
        }
        self.watched = wanted;
        // What happened between the two watchers.
        let _ = wake.send(Happened);
    }
}

fn watcher(
    folders: &HashSet<(PathBuf, u64)>,
    wake: Sender<Happened>,
) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // To read is not to edit: else reading the file would have it read again.
        let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let read = event.is_ok_and(|event| event.kind.is_access() && event.kind != written);
        if !read {
            let _ = wake.send(Happened); // nobody listens any more: the process ends
        }
    })?;
    for (folder, _) in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// The folder of the file, and of each file that a symbolic link leads to on the way.
fn folders_of(path: &Path) -> HashSet<(PathBuf, u64)> {
    let mut folders = HashSet::new();
    let mut file = path.to_owned();
    for _ in 0..MAX_LINKS {
        let folder = match file.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        // A link to the folder may be swapped as well as one to the file.
        if folder.is_symlink() {
            folders.extend(folder.parent().and_then(identified));
        }
        folders.extend(identified(&folder));
        match fs::read_link(&file) {
            Ok(target) => file = folder.join(target),
            Err(_) => break,
        }
    }
    folders
}

fn identified(folder: &Path) -> Option<(PathBuf, u64)> {
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    Some((folder.to_owned(), fs::metadata(folder).ok()?.ino()))
}

#[cfg(test)]
mod tests;
