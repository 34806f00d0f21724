//! The SQLite file: one row a job. Blocks; the writer's thread has it to itself.

use std::{error::Error, fs, io, path::Path, str::FromStr, time::Duration};

use rusqlite::{Connection, ErrorCode, Row, params_from_iter};

use super::{
    JournalError, Record, Remembered,
    damage::{self, RawRow, salvage, with_ending},
    migrations::MIGRATIONS,
    private,
    rows::{COLUMNS, remembered_of, write_one},
};
use crate::job::JobId;

/// A version that no program ever had is damage, not a newer program.
const MAX_VERSION: i64 = 10_000;

pub struct Store {
    connection: Connection,
    /// Their images were to be deleted and are: the next transaction deletes their tombstones.
    buried: Vec<JobId>,
}

/// What a journal says.
#[derive(Debug, Default)]
pub struct Contents {
    /// In the order in which they were accepted.
    pub remembered: Vec<Remembered>,
    /// Jobs with a row that cannot be understood.
    pub unreadable: Vec<JobId>,
    /// Jobs whose images are to be deleted, and may be there still.
    pub tombstones: Vec<JobId>,
}

/// Why a file cannot be opened.
enum Refusal {
    /// It is no journal, or one that is damaged.
    Damaged(String),
    Newer {
        found: usize,
    },
    Other(Box<dyn Error + Send + Sync>),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // The file may be as it should be.
            Some(
                ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::AuthorizationForStatementDenied
                | ErrorCode::ReadOnly
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::OutOfMemory
                | ErrorCode::NoLargeFileSupport
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationAborted
                | ErrorCode::OperationInterrupted,
            ) => Self::Other(error.into()),
            // It is no database, or has not the tables and values that it should have.
            _ => Self::Damaged(match error {
                rusqlite::Error::SqlInputError { msg, .. } => msg,
                error => error.to_string(),
            }),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Other(error.into())
    }
}

impl Store {
    /// Opens the file or creates it, and reads its contents. A damaged file is renamed, never
    /// overwritten; a new one begins with the rows that can still be read.
    pub fn open(path: &Path) -> Result<(Self, Contents), JournalError> {
        let opened = Self::open_or_replace(path);
        let unusable = |error| JournalError::Unusable { path: path.into(), error };
        opened.map_err(|refusal| match refusal {
            Refusal::Damaged(reason) => unusable(reason.into()),
            Refusal::Newer { found } => {
                JournalError::Newer { path: path.into(), found, known: MIGRATIONS.len() }
            }
            Refusal::Other(error) => unusable(error),
        })
    }

    fn open_or_replace(path: &Path) -> Result<(Self, Contents), Refusal> {
        if let Some(aside) = damage::finish_swap(path)? {
            tracing::error!(
                "the journal '{}' was damaged: it is now '{}', and the new one that an earlier \
                 start made of it takes its place",
                path.display(),
                aside.display()
            );
        }
        match Self::try_open(path) {
            Err(Refusal::Damaged(reason)) => Self::replace(path, &reason),
            Ok(opened) => {
                // Of a damaged journal that somebody has replaced.
                damage::remove(&with_ending(path, damage::REBUILT))?;
                damage::remove(&with_ending(path, damage::BUILDING))?;
                Ok(opened)
            }
            refused => refused,
        }
    }

    /// The damaged file keeps its place until the new one is whole, so that neither a kill nor a
    /// full disk costs a job.
    fn replace(path: &Path, reason: &str) -> Result<(Self, Contents), Refusal> {
        let rows = salvage(path);
        let building = with_ending(path, damage::BUILDING);
        if let Err(refusal) = Self::build(&building, &rows) {
            let _ = damage::remove(&building); // it is in the way of nothing
            return Err(refusal);
        }
        damage::rename(&building, &with_ending(path, damage::REBUILT))?;
        let aside = damage::swap(path)?;
        tracing::error!(
            "the journal '{}' is damaged ({reason}): it is now '{}', and a new one begins with the \
             {} jobs that could still be read",
            path.display(),
            aside.display(),
            rows.len()
        );
        Self::try_open(path)
    }

    /// Makes a journal of these rows, in one file.
    fn build(path: &Path, rows: &[RawRow]) -> Result<(), Refusal> {
        damage::remove(path)?;
        let (store, _) = Self::try_open(path)?;
        store.begin_with(rows)?;
        // On closing, the log is merged into the file, unless there is no room.
        match with_ending(path, "-wal").try_exists()? {
            false => Ok(()),
            true => Err(Refusal::Other("a new journal cannot be completed".into())),
        }
    }

    fn try_open(path: &Path) -> Result<(Self, Contents), Refusal> {
        if path.is_dir() {
            return Err(Refusal::Other("it is a folder; move it away".into()));
        }
        let size = |path: &Path| fs::metadata(path).map_or(0, |about| about.len());
        let log = with_ending(path, "-wal");
        // SQLite would delete the log.
        if size(path) == 0 && size(&log) > 0 {
            return Err(Refusal::Damaged("the file is empty, but its log is not".to_owned()));
        }
        // SQLite's other files take their permissions from this one.
        private::open_file(path)?;
        [log, with_ending(path, "-shm")].iter().for_each(|path| private::tighten(path));
        let mut connection = Connection::open(path)?;
        damage::leave_untouched(&connection, true)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        // What is committed is on disk, whatever happens to the machine.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let check: String =
            connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(Refusal::Damaged(check));
        }
        migrate(&mut connection)?;
        let store = Self { connection, buried: Vec::new() };
        let contents = store.read()?;
        damage::leave_untouched(&store.connection, false)?;
        Ok((store, contents))
    }

    /// Fills a new journal with the rows of a damaged one, and closes it.
    fn begin_with(mut self, rows: &[RawRow]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        let places = vec!["?"; COLUMNS.split(',').count()].join(", ");
        let sql = format!("INSERT OR IGNORE INTO jobs ({COLUMNS}) VALUES ({places})");
        for row in rows {
            match transaction.prepare_cached(&sql)?.execute(params_from_iter(row)) {
                // A value that the table does not allow, in a column that this row does not need.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    tracing::warn!("a row of the damaged journal is left out: {error}");
                }
                inserted => drop(inserted?),
            }
        }
        transaction.commit()
    }

    /// All of these, or none.
    pub fn write<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for id in &self.buried {
            let mut delete = transaction.prepare_cached("DELETE FROM tombstones WHERE id = ?1")?;
            delete.execute([id.to_string()])?;
        }
        for record in records {
            write_one(&transaction, record)?;
        }
        transaction.commit()?;
        self.buried.clear();
        Ok(())
    }

    /// The images of a job that had to be deleted are. With the next [`write`](Self::write) nothing
    /// allows that any more.
    pub fn bury(&mut self, id: JobId) {
        self.buried.push(id);
    }

    /// Deletes the tombstones that have served, if that did not happen by the way.
    pub fn delete_tombstones(&mut self) {
        if !self.buried.is_empty()
            && let Err(error) = self.write([])
        {
            tracing::debug!("the next daemon looks for images that are deleted: {error}");
        }
    }

    /// Copies the whole journal into a new file.
    pub fn copy_to(&self, path: &Path) -> rusqlite::Result<()> {
        drop(private::create_file(path));
        self.connection.execute("VACUUM INTO ?1", [path.to_string_lossy()]).map(|_| ())
    }

    pub fn delete_row(&self, id: JobId) -> rusqlite::Result<()> {
        let sql = "DELETE FROM jobs WHERE id = ?1";
        self.connection.execute(sql, [id.to_string()]).map(|_| ())
    }

    /// As if the disk were full, or not.
    #[cfg(test)]
    pub fn limit_size(&self, is_full: bool) {
        let pages = |name: &str| {
            let sql = format!("PRAGMA {name}");
            self.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let most = if is_full { pages("page_count") } else { 1 << 30 };
        pages(&format!("max_page_count = {most}"));
    }

    fn read(&self) -> rusqlite::Result<Contents> {
        let mut contents = Contents::default();
        let sql = format!("SELECT {COLUMNS} FROM jobs ORDER BY seq");
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            match remembered_of(row) {
                Ok(job) => contents.remembered.push(job),
                // Of another version, perhaps. It stays where it is.
                Err(error) => {
                    let id = id_of(row)?;
                    tracing::error!(
                        job = id,
                        "the journal has a job that cannot be read, and leaves it as it is: {error}"
                    );
                    contents.unreadable.extend(JobId::from_str(&id));
                }
            }
        }
        let mut statement = self.connection.prepare("SELECT id FROM tombstones")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            contents.tombstones.extend(JobId::from_str(&id_of(row)?));
        }
        Ok(contents)
    }
}

/// Also of a row that is damaged.
fn id_of(row: &Row) -> rusqlite::Result<String> {
    let id = row.get_ref("id")?;
    Ok(id
        .as_bytes_or_null()
        .ok()
        .flatten()
        .map_or_else(String::new, |id| String::from_utf8_lossy(id).into_owned()))
}

fn migrate(connection: &mut Connection) -> Result<(), Refusal> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if !(0..=MAX_VERSION).contains(&version) {
        return Err(Refusal::Damaged(format!("its version is {version}")));
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    let Some(missing) = MIGRATIONS.get(version..) else {
        return Err(Refusal::Newer { found: version });
    };
    for (step, migration) in missing.iter().enumerate() {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", (version + step + 1) as i64)?;
        transaction.commit()?;
    }
    Ok(())
}
