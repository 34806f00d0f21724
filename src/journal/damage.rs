//! What becomes of a damaged journal: the rows that can still be read are copied into a new one,
//! and only when that is whole is the damaged one renamed. It is never overwritten.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rusqlite::{Connection, config::DbConfig, types::Value};

use super::rows::{COLUMNS, remembered_of};

/// The new journal while it is made.
pub const BUILDING: &str = ".building";
/// The new journal that is whole, until it takes the damaged one's place.
pub const REBUILT: &str = ".rebuilt";
/// The database and the files that SQLite keeps beside it.
const FILES: [&str; 4] = ["", "-wal", "-shm", "-journal"];
/// How many rows without neighbours are looked for one by one, at most.
const MAX_PROBES: i64 = 1_000_000;

/// The values of a row, in the order of [`COLUMNS`].
pub type RawRow = Vec<Value>;

/// The name of a file that belongs to the database.
pub fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Milliseconds since 1970, for a name that is not taken.
pub fn now_ms() -> u128 {
    ms(SystemTime::now())
}

fn ms(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// Puts the rebuilt journal in the damaged one's place, and says what that is called now. A kill
/// after any step leaves work that [`finish_swap`] ends: the database goes first, so that nobody
/// opens it without its log, and the new one comes last, so that it never meets the old log.
pub fn swap(path: &Path) -> io::Result<PathBuf> {
    let rebuilt = with_ending(path, REBUILT);
    // The same name, however often a kill interrupts this.
    let built = fs::metadata(&rebuilt)?.modified()?;
    let aside = with_ending(path, &format!(".damaged-{}", ms(built)));
    for ending in FILES {
        match rename(&with_ending(path, ending), &with_ending(&aside, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    rename(&rebuilt, path)?;
    Ok(aside)
}

/// Ends a [`swap`] that a kill interrupted.
pub fn finish_swap(path: &Path) -> io::Result<Option<PathBuf>> {
    let is_interrupted = !path.try_exists()? && with_ending(path, REBUILT).try_exists()?;
    is_interrupted.then(|| swap(path)).transpose()
}

/// Renames a file so that the new name survives a power cut, before anything else happens.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let folder = to.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Removes a database that is of no use, and what SQLite keeps beside it.
pub fn remove(path: &Path) -> io::Result<()> {
    for ending in FILES {
        match fs::remove_file(with_ending(path, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Keeps a connection from writing when it is closed, so that a damaged database stays as it is.
pub fn leave_untouched(connection: &Connection, is_on: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, is_on).map(|_| ())
}

/// The rows of a damaged database that can be read and make sense, in their order.
pub fn salvage(path: &Path) -> Vec<RawRow> {
    // SQLite would delete a log without its database.
    let is_there = fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() > 0);
    let opened = is_there.then(|| Connection::open(path)).and_then(Result::ok);
    let Some(connection) = opened.filter(|it| prepare(it).is_ok()) else {
        return Vec::new();
    };
    // From both ends up to the first page that is damaged, and one by one between the two.
    let mut rows = scan(&connection, "ORDER BY seq");
    let last = rows.last().map_or(0, |row| seq(row));
    let mut from_the_end = scan(&connection, "ORDER BY seq DESC");
    from_the_end.retain(|row| seq(row) > last);
    let first = from_the_end.last().map_or(last.saturating_add(1), |row| seq(row));
    let missing = last.saturating_add(1).max(first.saturating_sub(MAX_PROBES))..first;
    rows.extend(missing.flat_map(|seq| scan(&connection, &format!("WHERE seq = {seq}"))));
    rows.extend(from_the_end.into_iter().rev());
    drop(connection);
    remove_empty_log(path);
    rows
}

/// For reading what there is: a file that was cut is refused otherwise. Nothing is written.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    leave_untouched(connection, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)?;
    Ok(())
}

/// What reading leaves beside a database: an index of the log, and a log if there was none.
fn remove_empty_log(path: &Path) {
    let log = with_ending(path, "-wal");
    if fs::metadata(&log).is_ok_and(|about| about.len() == 0) {
        for path in [log, with_ending(path, "-shm")] {
            let _ = fs::remove_file(path); // it is of no use, and does no harm
        }
    }
}

fn seq(row: &[Value]) -> i64 {
    match row.first() {
        Some(Value::Integer(seq)) => *seq,
        _ => 0,
    }
}

/// The rows up to the first one that cannot be read from the disk.
fn scan(connection: &Connection, which: &str) -> Vec<RawRow> {
    let mut found = Vec::new();
    let Ok(mut statement) = connection.prepare(&format!("SELECT {COLUMNS} FROM jobs {which}"))
    else {
        return found;
    };
    let columns = statement.column_count();
    let Ok(mut rows) = statement.query([]) else { return found };
    while let Ok(Some(row)) = rows.next() {
        if remembered_of(row).is_ok()
            && let Ok(values) =
                (0..columns).map(|at| row.get(at)).collect::<rusqlite::Result<RawRow>>()
        {
            found.push(values);
        }
    }
    found
}
