//! The threads that write: one makes files of images, one commits rows. An image is on disk before
//! the row that says so.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{
    JournalError, Opened, Receipt, Record, Results,
    opening::{self, Files},
    store::Store,
};

/// How many records are committed together at most.
const MAX_BATCH: usize = 1024;
/// When what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Where records are appended. With a journal that is off, each counts as written at once.
pub struct Journal<T> {
    threads: Option<Threads<T>>,
    receipts: UnboundedSender<Receipt<T>>,
}

struct Threads<T> {
    to_save: Sender<(Record, T)>,
    to_commit: Sender<(Record, T)>,
    running: [JoinHandle<()>; 2],
}

impl<T: Send + 'static> Journal<T> {
    /// Nothing is written: what is not done when the daemon ends is lost.
    pub fn off() -> Opened<T> {
        let (receipts, receiver) = unbounded_channel();
        let journal = Self { threads: None, receipts };
        Opened { journal, receipts: receiver, remembered: Vec::new(), results: None }
    }

    /// Opens the journal in that folder, or begins one.
    pub fn open(folder: &Path) -> Result<Opened<T>, JournalError> {
        let unusable =
            |error: io::Error| JournalError::Unusable { path: folder.into(), error: error.into() };
        let Files { store, results, contents } = opening::open(folder)?;
        let (receipts, receiver) = unbounded_channel();
        let (to_commit, inbox) = mpsc::channel();
        let (to_save, unsaved) = mpsc::channel();
        let committer = Committer {
            store,
            results: results.clone(),
            receipts: receipts.clone(),
            backlog: VecDeque::new(),
        };
        let saver = (results.clone(), to_commit.clone());
        let running = [
            spawn("results", move || save(unsaved, saver.0, saver.1)).map_err(unusable)?,
            spawn("journal", move || committer.run(inbox)).map_err(unusable)?,
        ];
        let threads = Some(Threads { to_save, to_commit, running });
        let journal = Self { threads, receipts };
        let remembered = contents.remembered;
        Ok(Opened { journal, receipts: receiver, remembered, results: Some(results) })
    }

    /// Has a record written; `token` comes back with the receipt.
    pub fn append(&self, record: Record, token: T) {
        let Some(threads) = &self.threads else {
            let _ = self.receipts.send(Receipt::Written { token, image_bytes: 0 });
            return;
        };
        let inbox = match &record {
            Record::Ended { images: Some(_), .. } => &threads.to_save,
            Record::Ended { images: None, .. }
            | Record::Accepted(_)
            | Record::Begun { .. }
            | Record::PutBack { .. }
            | Record::Forgotten(_)
            | Record::ImagesForgotten(_)
            | Record::Notified(_)
            | Record::Mark => &threads.to_commit,
        };
        // A thread that has panicked has said so; its receipts never come.
        let _ = inbox.send((record, token));
    }

    pub fn is_on(&self) -> bool {
        self.threads.is_some()
    }

    /// Waits until all that was appended is written, or cannot be. Blocks.
    pub fn close(self) {
        let Some(Threads { to_save, to_commit, running }) = self.threads else { return };
        drop((to_save, to_commit));
        for thread in running {
            if thread.join().is_err() {
                tracing::error!("a thread of the journal had panicked");
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// Makes files of images, and passes their records on.
fn save<T>(unsaved: Receiver<(Record, T)>, results: Results, to_commit: Sender<(Record, T)>) {
    for (mut record, token) in unsaved {
        // What cannot be saved now the committer tries again.
        if let Err(error) = save_images(&results, &mut record) {
            tracing::error!("images cannot be saved: {error}");
        }
        let _ = to_commit.send((record, token));
    }
}

fn save_images(results: &Results, record: &mut Record) -> io::Result<()> {
    if let Record::Ended { entry, ending, images } = record
        && let Some(unsaved) = images
    {
        ending.image_bytes = results.save(entry, unsaved)?;
        *images = None;
    }
    Ok(())
}

struct Committer<T> {
    store: Store,
    results: Results,
    receipts: UnboundedSender<Receipt<T>>,
    /// What has happened and could not be written, oldest first.
    backlog: VecDeque<Record>,
}

impl<T> Committer<T> {
    fn run(mut self, inbox: Receiver<(Record, T)>) {
        loop {
            let first = match self.backlog.is_empty() {
                true => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => inbox.recv_timeout(RETRY),
            };
            let is_last = matches!(first, Err(RecvTimeoutError::Disconnected));
            let batch: Vec<_> =
                first.into_iter().chain(inbox.try_iter().take(MAX_BATCH - 1)).collect();
            self.catch_up();
            self.commit(batch);
            if is_last {
                break;
            }
        }
        self.store.delete_tombstones();
        if !self.backlog.is_empty() {
            let count = self.backlog.len();
            tracing::error!("{count} records could not be written: their jobs are done again");
        }
    }

    /// Writes what could not be written before, if it can be now.
    fn catch_up(&mut self) {
        let was_behind = !self.backlog.is_empty();
        while let Some(record) = self.backlog.front_mut() {
            let saved = save_images(&self.results, record).map_err(|error| error.to_string());
            let written = saved
                .and_then(|()| self.store.write([&*record]).map_err(|error| error.to_string()));
            match written {
                Ok(()) => self.finish_last_of_backlog(),
                Err(error) => {
                    tracing::debug!("the journal still cannot be written: {error}");
                    return;
                }
            }
        }
        if was_behind {
            tracing::info!("the journal can be written again");
            let _ = self.receipts.send(Receipt::Recovered);
        }
    }

    fn finish_last_of_backlog(&mut self) {
        if let Some(record) = self.backlog.pop_front() {
            self.remove_images(&record);
        }
    }

    fn commit(&mut self, batch: Vec<(Record, T)>) {
        let can_be = |record: &Record| !matches!(record, Record::Ended { images: Some(_), .. });
        let all_can_be = batch.iter().all(|(record, _)| can_be(record));
        let together = self.backlog.is_empty()
            && all_can_be
            && self.store.write(batch.iter().map(|(record, _)| record)).is_ok();
        for (record, token) in batch {
            let written = match together {
                true => Ok(()),
                // One of them may be what is wrong.
                false if self.backlog.is_empty() && can_be(&record) => {
                    self.store.write([&record]).map_err(|error| error.to_string())
                }
                false => Err("what came before is not written yet".to_owned()),
            };
            match written {
                Ok(()) => self.written(record, token),
                Err(error) => self.refuse(record, token, &error),
            }
        }
    }

    fn written(&mut self, record: Record, token: T) {
        self.remove_images(&record);
        let image_bytes = match &record {
            Record::Ended { ending, .. } => ending.image_bytes,
            Record::Accepted(_)
            | Record::Begun { .. }
            | Record::PutBack { .. }
            | Record::Forgotten(_)
            | Record::ImagesForgotten(_)
            | Record::Notified(_)
            | Record::Mark => 0,
        };
        let _ = self.receipts.send(Receipt::Written { token, image_bytes });
    }

    fn refuse(&mut self, record: Record, token: T, error: &str) {
        match record {
            Record::Accepted(_) => {
                tracing::error!("a job was refused: it cannot be written down: {error}");
            }
            Record::Mark => {}
            Record::Begun { .. }
            | Record::PutBack { .. }
            | Record::Ended { .. }
            | Record::Forgotten(_)
            | Record::ImagesForgotten(_)
            | Record::Notified(_) => {
                if self.backlog.is_empty() {
                    tracing::error!(
                        "the journal cannot be written: {error}; it is tried again every second, \
                         and no job is accepted until then"
                    );
                }
                self.backlog.push_back(record);
            }
        }
        let _ = self.receipts.send(Receipt::Refused(token));
    }

    /// Files are deleted once their tombstones are written.
    fn remove_images(&mut self, record: &Record) {
        match record {
            Record::Forgotten(ids) | Record::ImagesForgotten(ids) => {
                for id in ids.iter().filter(|id| self.results.remove(**id)) {
                    self.store.bury(*id);
                }
            }
            Record::Accepted(_)
            | Record::Begun { .. }
            | Record::PutBack { .. }
            | Record::Ended { .. }
            | Record::Notified(_)
            | Record::Mark => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::UnboundedReceiver;

    use serde_json::Value;

    use super::*;
    use crate::{
        job::{Job, JobId, JobState, Terms},
        journal::Ending,
        queue::Entry,
    };

    fn committer(folder: &Path) -> (Committer<u32>, UnboundedReceiver<Receipt<u32>>) {
        let (receipts, receiver) = unbounded_channel();
        let (store, _) = Store::open(&folder.join("j")).unwrap();
        let results = Results::open(folder).unwrap();
        (Committer { store, results, receipts, backlog: VecDeque::new() }, receiver)
    }

    fn entry(bytes: usize) -> Entry {
        let job = Job::Custom { name: "x".to_owned(), args: Value::from("x".repeat(bytes)).into() };
        Entry { id: JobId::new(), job, terms: Terms::default(), arrived_ms: 0 }
    }

    fn accepted(entry: &Entry) -> Record {
        Record::Accepted(Box::new(entry.clone()))
    }

    fn said(receipts: &mut UnboundedReceiver<Receipt<u32>>) -> String {
        let mut said = String::new();
        while let Ok(receipt) = receipts.try_recv() {
            said += &match receipt {
                Receipt::Written { token, .. } => format!("{token} "),
                Receipt::Refused(token) => format!("!{token} "),
                Receipt::Recovered => "recovered ".to_owned(),
            };
        }
        said
    }

    #[test]
    fn when_the_disk_is_full_jobs_are_refused_and_what_has_happened_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let (mut committer, mut receipts) = committer(folder.path());
        let (old, new) = (entry(10), entry(1 << 20));
        committer.commit(vec![(accepted(&old), 1)]);
        assert_eq!(said(&mut receipts), "1 ");
        committer.store.limit_size(true);
        committer.commit(vec![(accepted(&new), 2), (Record::Mark, 3)]);
        assert_eq!(said(&mut receipts), "!2 3 ", "the one that is too large, alone");
        let ending = Ending {
            state: JobState::Done,
            finished_unix_ms: 0,
            drawing_unix_ms: None,
            result: Some("x".repeat(1 << 20).into()),
            report: None,
            image_bytes: 0,
        };
        let ended =
            Record::Ended { entry: Box::new(old.clone()), ending: Box::new(ending), images: None };
        committer.commit(vec![(ended, 4), (accepted(&entry(10)), 5)]);
        assert_eq!(said(&mut receipts), "!4 !5 ", "nothing is accepted behind what is missing");
        committer.catch_up();
        assert_eq!(said(&mut receipts), "");
        committer.store.limit_size(false);
        committer.catch_up();
        committer.commit(vec![(accepted(&entry(10)), 6)]);
        assert_eq!(said(&mut receipts), "recovered 6 ");
        drop(committer);
        let (_, contents) = Store::open(&folder.path().join("j")).unwrap();
        let remembered = contents.remembered;
        assert_eq!(remembered.len(), 2);
        assert_eq!(remembered[0].ending.as_ref().map(|it| &it.state), Some(&JobState::Done));
    }
}
