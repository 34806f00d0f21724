//! Writes a file whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Replaces the contents of a file that exists. Whoever reads it, or loses power, has the old text or
/// the new one. Symbolic links stay what they are; the new file has the old one's permissions.
pub fn atomically(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().display();
    let temporary = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = write(&temporary, text, fs::metadata(&path)?.permissions())
        .and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the first error counts
        return written;
    }
    // The new name is on disk, too.
    File::open(folder)?.sync_all()
}

fn write(path: &Path, text: &str, permissions: fs::Permissions) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(permissions)?;
    file.sync_all()
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

        let in_the_way = folder.path().join(format!(".file.{}.new", std::process::id()));
        fs::create_dir(in_the_way).unwrap();
        atomically(&link, "three").unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        atomically(&folder.path().join("none"), "x").unwrap_err();
    }
}
