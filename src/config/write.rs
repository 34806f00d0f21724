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
