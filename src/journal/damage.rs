//! What becomes of a damaged journal: it is renamed, never overwritten, and the rows that can still
//! be read are copied.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rusqlite::{Connection, config::DbConfig, types::Value};

use super::rows::{COLUMNS, remembered_of};

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
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// Renames the database and the files that belong to it, and says what it is called now.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = with_ending(path, &format!(".damaged-{}", now_ms()));
    for ending in ["", "-wal", "-shm"] {
        match fs::rename(with_ending(path, ending), with_ending(&aside, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(aside)
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
