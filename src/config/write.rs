//! Writes a file whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A write takes no longer, so that an older temporary file is one of a daemon that was killed.
const LEFTOVER_AFTER: Duration = Duration::from_secs(60);

/// Replaces the contents of a file that exists. A reader, or a power cut, finds the old text or the
/// new one. Symbolic links stay what they are; the new file has the old one's permissions.
pub fn atomically(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().display().to_string();
    remove_leftovers(folder, &name);
    let (mut file, temporary) = create_beside(folder, &name)?;
    let written = fs::metadata(&path)
        .and_then(|about| write(&mut file, text, about.permissions()))
        .and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the first error counts
        return written;
    }
    // The new name is on disk, too.
    File::open(folder)?.sync_all()
}

/// A new file under a name that nobody can foresee: in a folder that others may write to, a
/// foreseeable one could be a link to a file of ours, or be in the way.
fn create_beside(folder: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let random = getrandom::u64().map_err(io::Error::other)?;
    let temporary = folder.join(format!(".{name}.{random:016x}.new"));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    Ok((file, temporary))
}

fn write(file: &mut File, text: &str, permissions: fs::Permissions) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.set_permissions(permissions)?;
    file.sync_all()
}

/// Removes the temporary files of daemons that were killed while they wrote.
fn remove_leftovers(folder: &Path, name: &str) {
    let is_ours = |file: &str| {
        let random = file.strip_prefix(&format!(".{name}.")).and_then(|it| it.strip_suffix(".new"));
        random.is_some_and(|it| !it.is_empty() && it.bytes().all(|c| c.is_ascii_hexdigit()))
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_old = || {
            let modified = entry.metadata().and_then(|about| about.modified()).ok()?;
            SystemTime::now().duration_since(modified).ok().map(|age| age > LEFTOVER_AFTER)
        };
        if entry.file_name().to_str().is_some_and(is_ours) && is_old() == Some(true) {
            let _ = fs::remove_file(entry.path()); // the next edit tries again
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_behind_its_link_with_its_permissions_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs::write(&file, "one").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("file", &link).unwrap();
        atomically(&link, "two").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);

        let in_the_way = folder.path().join("folder");
        fs::create_dir(&in_the_way).unwrap();
        atomically(&in_the_way, "three").unwrap_err();
        atomically(&folder.path().join("none"), "x").unwrap_err();
        assert!(in_the_way.is_dir());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing is left over");
    }

    #[test]
    fn leftovers_are_removed_once_they_are_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let old = SystemTime::now() - 2 * LEFTOVER_AFTER;
        for name in ["file", ".file.4711.new", ".file.00ff.new", ".file.x.new", ".other.12.new"] {
            fs::write(path(name), "x").unwrap();
            File::options().write(true).open(path(name)).unwrap().set_modified(old).unwrap();
        }
        fs::write(path(".file.12.new"), "being written").unwrap();
        atomically(&path("file"), "two").unwrap();
        let left = fs::read_dir(folder.path()).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".file.12.new", ".file.x.new", ".other.12.new", "file"]);
    }
}
