//! Records and jobs as rows.

use std::{error::Error, str::FromStr};

use rusqlite::{Row, Transaction, named_params};

use super::{Ending, Record, Remembered};
use crate::{
    job::{Job, JobId, JobState},
    queue::Entry,
};

/// All columns of a job, its place first.
pub const COLUMNS: &str = "seq, id, state, attempts, created_ms, started_ms, drawing_ms, \
    finished_ms, job, terms, reason, result, report, image_bytes, notified";

/// Writes what a record says.
pub fn write_one(transaction: &Transaction, record: &Record) -> rusqlite::Result<()> {
    let execute = |sql: &str, params: &[(&str, &dyn rusqlite::ToSql)]| {
        transaction.prepare_cached(sql)?.execute(params).map(|_| ())
    };
    let forget = |ids: &[JobId], sql: &str| {
        ids.iter().try_for_each(|id| {
            let id = id.to_string();
            execute(sql, named_params! { ":id": id })?;
            execute(
                "INSERT OR IGNORE INTO tombstones (id) VALUES (:id)",
                named_params! { ":id": id },
            )
        })
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
        Record::Forgotten(ids) => forget(ids, "DELETE FROM jobs WHERE id = :id"),
        Record::ImagesForgotten(ids) => {
            forget(ids, "UPDATE jobs SET image_bytes = 0 WHERE id = :id")
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

/// The job that a row describes.
pub fn remembered_of(row: &Row) -> Result<Remembered, Box<dyn Error>> {
    let text = |name: &str| row.get::<_, String>(name);
    let created_unix_ms = row.get("created_ms")?;
    let id = JobId::from_str(&text("id")?)?;
    let entry = Entry {
        id,
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
    let finished: Option<u64> = row.get("finished_ms")?;
    let optional = |name: &str| row.get::<_, Option<String>>(name);
    let ending = match state {
        None => None,
        Some(state) => Some(Ending {
            state,
            // Whatever a damaged row says: no job ended before its id was made.
            finished_unix_ms: finished.unwrap_or(created_unix_ms).max(id.unix_ms().unwrap_or(0)),
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
