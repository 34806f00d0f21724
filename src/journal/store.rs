//! The SQLite file: one row a job. Blocks; the writer's thread has it to itself.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, ErrorCode, Row, Transaction, named_params};

use super::{Ending, JournalError, Record, Remembered, migrations::MIGRATIONS};
use crate::{
    job::{Job, JobId, JobState},
    queue::Entry,
};

pub struct Store {
    connection: Connection,
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
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Other(error.into()),
        }
    }
}

impl Store {
    /// Opens the file or makes it, and reads what is in it. A damaged one is put aside under another
    /// name, never overwritten, and a new one begun.
    pub fn open(path: &Path) -> Result<(Self, Vec<Remembered>), JournalError> {
        let unusable = |error| JournalError::Unusable { path: path.into(), error };
        let opened = match Self::try_open(path) {
            Err(Refusal::Damaged(what)) => {
                let aside = set_aside(path).map_err(|error| unusable(error.into()))?;
                tracing::error!(
                    "the journal '{}' is damaged ({what}): it is now '{}', and a new one begins; the \
                     jobs that it had are not known any more",
                    path.display(),
                    aside.display()
                );
                Self::try_open(path)
            }
            opened => opened,
        };
        opened.map_err(|refusal| match refusal {
            Refusal::Damaged(what) => unusable(what.into()),
            Refusal::Newer { found } => {
                JournalError::Newer { path: path.into(), found, known: MIGRATIONS.len() }
            }
            Refusal::Other(error) => unusable(error),
        })
    }

    fn try_open(path: &Path) -> Result<(Self, Vec<Remembered>), Refusal> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        // What is committed is on disk, whatever happens to the machine.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(Refusal::Damaged(check));
        }
        migrate(&mut connection)?;
        let store = Self { connection };
        let remembered = store.read()?;
        Ok((store, remembered))
    }

    /// All of these, or none.
    pub fn write<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for record in records {
            write_one(&transaction, record)?;
        }
        transaction.commit()
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

    fn read(&self) -> rusqlite::Result<Vec<Remembered>> {
        let mut rows = self.connection.prepare("SELECT * FROM jobs ORDER BY seq")?;
        let mut remembered = Vec::new();
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            match remembered_of(row) {
                Ok(job) => remembered.push(job),
                // Of another version, perhaps. It stays where it is.
                Err(error) => {
                    let id: String = row.get("id")?;
                    tracing::error!(job = id, "the journal has a job that cannot be read: {error}");
                }
            }
        }
        Ok(remembered)
    }
}

fn migrate(connection: &mut Connection) -> Result<(), Refusal> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
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

/// Another name for the file, and for what belongs to it.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let with = |path: &Path, ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let aside = with(path, &format!(".damaged-{}", now.as_millis()));
    fs::rename(path, &aside)?;
    for ending in ["-wal", "-shm"] {
        match fs::rename(with(path, ending), with(&aside, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(aside)
}

fn write_one(transaction: &Transaction, record: &Record) -> rusqlite::Result<()> {
    let execute = |sql: &str, params: &[(&str, &dyn rusqlite::ToSql)]| {
        transaction.prepare_cached(sql)?.execute(params).map(|_| ())
    };
    match record {
        Record::Accepted(entry) => execute(
            "INSERT INTO jobs (id, created_ms, job, terms) VALUES (:id, :at, :job, :terms)",
            named_params! {
                ":id": entry.id.to_string(),
                ":at": entry.arrived_ms,
                ":job": json(&entry.job)?,
                ":terms": json(&entry.terms)?,
            },
        ),
        Record::Begun { id, attempts, at_unix_ms } => execute(
            "UPDATE jobs SET state = 'running', attempts = :attempts, \
             started_ms = coalesce(started_ms, :at) WHERE id = :id",
            named_params! { ":id": id.to_string(), ":attempts": attempts, ":at": at_unix_ms },
        ),
        Record::PutBack { id, attempts } => execute(
            "UPDATE jobs SET state = 'queued', attempts = :attempts WHERE id = :id",
            named_params! { ":id": id.to_string(), ":attempts": attempts },
        ),
        Record::Ended { entry, ending, images: _ } => {
            let Ending { state, finished_unix_ms, drawing_unix_ms, result, report, image_bytes } =
                &**ending;
            let reason = match state {
                JobState::Failed { reason } => Some(reason),
                JobState::Queued
                | JobState::Loading { .. }
                | JobState::Running { .. }
                | JobState::Done
                | JobState::Cancelled => None,
            };
            execute(
                "UPDATE jobs SET state = :state, finished_ms = :at, drawing_ms = :drawing, job = :job, reason = :reason, \
                 result = :result, report = :report, image_bytes = :image_bytes WHERE id = :id",
                named_params! {
                    ":id": entry.id.to_string(),
                    ":state": state.name(),
                    ":at": finished_unix_ms,
                    ":drawing": drawing_unix_ms,
                    // Without the images that it was drawn over.
                    ":job": json(&entry.job)?,
                    ":reason": reason,
                    ":result": result.as_ref().map(json).transpose()?,
                    ":report": report.as_ref().map(json).transpose()?,
                    ":image_bytes": image_bytes,
                },
            )
        }
        Record::Forgotten(ids) => {
            for id in ids {
                execute(
                    "DELETE FROM jobs WHERE id = :id",
                    named_params! { ":id": id.to_string() },
                )?;
            }
            Ok(())
        }
        Record::ImagesForgotten(ids) => {
            for id in ids {
                execute(
                    "UPDATE jobs SET image_bytes = 0 WHERE id = :id",
                    named_params! { ":id": id.to_string() },
                )?;
            }
            Ok(())
        }
        Record::Notified(id) => execute(
            "UPDATE jobs SET notified = 1 WHERE id = :id",
            named_params! { ":id": id.to_string() },
        ),
        Record::Mark => Ok(()),
    }
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn remembered_of(row: &Row) -> Result<Remembered, Box<dyn Error>> {
    let text = |name: &str| row.get::<_, String>(name);
    let created_unix_ms = row.get("created_ms")?;
    let entry = Entry {
        id: JobId::from_str(&text("id")?)?,
        job: serde_json::from_str::<Job>(&text("job")?)?,
        terms: serde_json::from_str(&text("terms")?)?,
        arrived_ms: created_unix_ms,
    };
    let state = match text("state")?.as_str() {
        "queued" | "running" => None,
        "done" => Some(JobState::Done),
        "failed" => {
            let reason: Option<String> = row.get("reason")?;
            Some(JobState::Failed { reason: reason.unwrap_or_default() })
        }
        "cancelled" => Some(JobState::Cancelled),
        other => return Err(format!("'{other}' is no state").into()),
    };
    let optional = |name: &str| row.get::<_, Option<String>>(name);
    let ending = match state {
        None => None,
        Some(state) => Some(Ending {
            state,
            finished_unix_ms: row.get::<_, Option<u64>>("finished_ms")?.unwrap_or(created_unix_ms),
            drawing_unix_ms: row.get("drawing_ms")?,
            result: optional("result")?.map(|text| serde_json::from_str(&text)).transpose()?,
            report: optional("report")?.map(|text| serde_json::from_str(&text)).transpose()?,
            image_bytes: row.get("image_bytes")?,
        }),
    };
    Ok(Remembered {
        entry,
        attempts: row.get("attempts")?,
        started_unix_ms: row.get("started_ms")?,
        ending,
        notified: row.get("notified")?,
    })
}
