//! Which images and results are kept of jobs that have ended, on disk or in memory, and which of
//! them must go.

use std::{collections::VecDeque, sync::Arc};

use crate::{job::JobId, worker::protocol::DrawnImages};

/// What those may take together that are in memory: where there is no journal, or the disk is full.
const MAX_MEMORY_BYTES: u64 = 512 << 20;

/// What the results of custom jobs may take together, as JSON.
const MAX_RESULT_BYTES: u64 = 64 << 20;

#[derive(Default)]
pub struct Kept {
    in_memory: Line<Arc<DrawnImages>>,
    on_disk: Line<()>,
    results: Line<()>,
}

/// Where a job's images are.
pub enum Place {
    Memory(Arc<DrawnImages>),
    Disk,
}

impl Kept {
    /// The oldest in memory go where these need room.
    pub fn in_memory(&mut self, id: JobId, images: Arc<DrawnImages>) {
        self.in_memory.push(id, images.rgb.len() as u64, images);
        while self.in_memory.bytes > MAX_MEMORY_BYTES && self.in_memory.pop().is_some() {}
    }

    pub fn on_disk(&mut self, id: JobId, bytes: u64) {
        self.on_disk.push(id, bytes, ());
    }

    /// Says whose results, the oldest, must make room for this one.
    pub fn result(&mut self, id: JobId, bytes: u64) -> Vec<JobId> {
        self.results.push(id, bytes, ());
        let results = &mut self.results;
        std::iter::from_fn(|| (results.bytes > MAX_RESULT_BYTES).then(|| results.pop()).flatten())
            .collect()
    }

    pub fn find(&self, id: JobId) -> Option<Place> {
        let memory = self.in_memory.find(id).cloned().map(Place::Memory);
        memory.or_else(|| self.on_disk.find(id).map(|()| Place::Disk))
    }

    /// Takes the oldest off the disk until the rest takes no more than that; says whose they are.
    pub fn shrink(&mut self, max_bytes: u64) -> Vec<JobId> {
        let mut gone = Vec::new();
        while self.on_disk.bytes > max_bytes
            && let Some(id) = self.on_disk.pop()
        {
            gone.push(id);
        }
        gone
    }

    pub fn forget(&mut self, id: JobId) {
        self.in_memory.remove(id);
        self.on_disk.remove(id);
        self.results.remove(id);
    }
}

/// Jobs and what each takes, oldest first.
pub struct Line<T> {
    jobs: VecDeque<(JobId, u64, T)>,
    bytes: u64,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { jobs: VecDeque::new(), bytes: 0 }
    }
}

impl<T> Line<T> {
    pub fn push(&mut self, id: JobId, bytes: u64, what: T) {
        self.bytes += bytes;
        self.jobs.push_back((id, bytes, what));
    }

    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn front(&self) -> Option<(JobId, &T)> {
        self.jobs.front().map(|(id, _, what)| (*id, what))
    }

    pub fn pop(&mut self) -> Option<JobId> {
        let (id, bytes, _) = self.jobs.pop_front()?;
        self.bytes -= bytes;
        Some(id)
    }

    fn find(&self, id: JobId) -> Option<&T> {
        self.jobs.iter().find(|(of, ..)| *of == id).map(|(.., what)| what)
    }

    fn remove(&mut self, id: JobId) {
        if let Some(at) = self.jobs.iter().position(|(of, ..)| *of == id)
            && let Some((_, bytes, _)) = self.jobs.remove(at)
        {
            self.bytes -= bytes;
        }
    }
}
