//! Files and folders that only their owner may read: they hold prompts, images and the secrets of
//! webhooks. Their modes are set explicitly, so that the umask makes no difference.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

const FOLDER: u32 = 0o700;
const FILE: u32 = 0o600;

/// Creates the folder if it is missing, and closes it to everybody else.
pub fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER).create(path)?;
    tighten(path);
    Ok(())
}

/// Opens the file for reading and writing, and creates it if it is missing.
pub fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(FILE).open(path)?;
    tighten(path);
    Ok(file)
}

/// Creates the file, or empties it.
pub fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE).open(path)
}

/// Takes the permissions of group and others away. A file system without permissions, or another
/// owner, is no reason not to work: the log warns.
pub fn tighten(path: &Path) {
    let Ok(about) = fs::metadata(path) else { return };
    let (mode, wanted) =
        (about.permissions().mode() & 0o777, if about.is_dir() { FOLDER } else { FILE });
    if mode & 0o077 == 0 {
        return;
    }
    // A folder like /tmp is for everybody, and stays so.
    let is_shared = about.permissions().mode() & 0o1000 != 0;
    let set = match is_shared {
        true => Ok(()),
        false => fs::set_permissions(path, Permissions::from_mode(wanted)),
    };
    let now = fs::metadata(path).map_or(mode, |about| about.permissions().mode() & 0o777);
    match set {
        Ok(()) if now & 0o077 == 0 => {
            tracing::info!("'{}' had mode {mode:o}: it is now {now:o}", path.display());
        }
        Ok(()) | Err(_) => tracing::warn!(
            "'{}' has mode {now:o}: other users of this machine can read prompts, images and the \
             secrets of webhooks; 'chmod {wanted:o}' it",
            path.display()
        ),
    }
}
