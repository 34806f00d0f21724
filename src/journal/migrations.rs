//! The tables, version by version. A version that was released is never changed again.

/// The first makes version 1 of an empty file, each next one another version of the one before.
pub const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY,              -- the order in which they were accepted
        id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL DEFAULT 'queued', -- running, done, failed, cancelled
        attempts INTEGER NOT NULL DEFAULT 0,
        created_ms INTEGER NOT NULL,          -- since 1970, as all times
        started_ms INTEGER,
        drawing_ms INTEGER,                   -- of the last attempt
        finished_ms INTEGER,
        job TEXT NOT NULL,                    -- JSON: what is to be done
        terms TEXT NOT NULL,                  -- JSON: on which terms
        reason TEXT,                          -- why it failed
        result TEXT,                          -- JSON: what a custom job returned
        report TEXT,                          -- JSON: how its images came about
        image_bytes INTEGER NOT NULL DEFAULT 0,
        notified INTEGER NOT NULL DEFAULT 0   -- 1: its webhook knows, or never will
    ) STRICT;
",
    // Written in the transaction that forgets the images, and deleted once their files are gone:
    // nothing else allows a start to delete an image.
    "
    CREATE TABLE tombstones (
        id TEXT PRIMARY KEY                   -- of the job whose images are to be deleted
    ) STRICT;
",
];
