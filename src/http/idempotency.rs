//! `Idempotency-Key`: who asks again because no answer came gets the job of the first time.
//!
//! A key stands for a job as long as it is among the last 10,000 and the job is known, also by the
//! next daemon: it is written down with its job. The same key with another body is refused: one of
//! the two is a mistake.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::HeaderMap;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use super::problem::{Kind, Problem};
use crate::{
    dispatcher::Handle,
    job::{IdempotencyKey, JobId},
};

pub const HEADER: &str = "idempotency-key";
const MAX_KEYS: usize = 10_000;
const MAX_KEY_BYTES: usize = 255;

/// The keys that were used, and for what.
#[derive(Default)]
pub struct IdempotencyKeys(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    slots: HashMap<String, Arc<Slot>>,
    /// Oldest first.
    order: VecDeque<String>,
}

struct Slot {
    fingerprint: String,
    /// Empty while the first of those who ask is at it.
    job: OnceCell<JobId>,
}

/// The request's key, if it has one, with what stands for its body: the parts in their order.
pub fn of_parts<'a>(
    headers: &HeaderMap,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<IdempotencyKey>, Problem> {
    let key = key(headers)?;
    Ok(key.map(|key| IdempotencyKey { key, fingerprint: fingerprint(parts) }))
}

fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    format!("{:x}", hash.finalize())
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get(HEADER) else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= MAX_KEY_BYTES => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => {
            let detail = format!("Idempotency-Key has 1 to {MAX_KEY_BYTES} plain characters");
            Err(Problem::new(Kind::MalformedRequest, detail))
        }
    }
}

impl IdempotencyKeys {
    /// Those of the jobs that an earlier daemon has left.
    pub fn of_jobs(dispatcher: &Handle) -> Self {
        let keys = Self::default();
        for view in dispatcher.all_jobs() {
            if let Some(IdempotencyKey { key, fingerprint }) = view.terms.idempotency {
                let job = OnceCell::new_with(Some(view.id));
                keys.lock().insert(key, Slot { fingerprint, job });
            }
        }
        keys
    }

    /// The job of that key; the first time, the one that `submit` makes. Of several at once with
    /// the same key one submits and the others wait for it.
    pub async fn submit_once(
        &self,
        key: Option<IdempotencyKey>,
        submit: impl Future<Output = Result<JobId, Problem>>,
    ) -> Result<JobId, Problem> {
        let Some(IdempotencyKey { key, fingerprint }) = key else { return submit.await };
        let known = self.lock().slots.get(&key).cloned();
        let slot = match known {
            Some(slot) if slot.fingerprint == fingerprint => slot,
            Some(_) => {
                let detail = "this Idempotency-Key was used for another request";
                return Err(Problem::new(Kind::IdempotencyKeyReused, detail));
            }
            None => self.lock().insert(key.clone(), Slot { fingerprint, job: OnceCell::new() }),
        };
        let job = slot.job.get_or_try_init(|| submit).await.copied();
        if job.is_err() {
            self.lock().forget(&key, &slot);
        }
        job
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn insert(&mut self, key: String, slot: Slot) -> Arc<Slot> {
        let slot = Arc::new(slot);
        self.order.push_back(key.clone());
        self.slots.insert(key, slot.clone());
        if self.order.len() > MAX_KEYS
            && let Some(oldest) = self.order.pop_front()
        {
            self.slots.remove(&oldest);
        }
        slot
    }

    /// Nothing was submitted: the key is as good as new.
    fn forget(&mut self, key: &str, slot: &Arc<Slot>) {
        if self.slots.get(key).is_some_and(|known| Arc::ptr_eq(known, slot)) {
            self.slots.remove(key);
            self.order.retain(|known| known != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str, body: &str) -> Option<IdempotencyKey> {
        let fingerprint = fingerprint([body.as_bytes()]);
        Some(IdempotencyKey { key: key.to_owned(), fingerprint })
    }

    async fn submit(keys: &IdempotencyKeys, name: &str, body: &str) -> Result<JobId, Kind> {
        let submit = async { Ok(JobId::new()) };
        let submitted = keys.submit_once(key(name, body), submit).await;
        submitted.map_err(|problem| problem.kind())
    }

    #[tokio::test]
    async fn a_key_stands_for_one_job() {
        let keys = IdempotencyKeys::default();
        let first = submit(&keys, "a", "x").await.unwrap();
        assert_eq!(submit(&keys, "a", "x").await, Ok(first));
        assert_eq!(submit(&keys, "a", "y").await, Err(Kind::IdempotencyKeyReused));
        assert_ne!(submit(&keys, "b", "x").await, Ok(first));
    }

    #[tokio::test]
    async fn a_submission_that_failed_can_be_tried_again() {
        let keys = IdempotencyKeys::default();
        let full = async { Err(Problem::new(Kind::QueueFull, "")) };
        assert!(keys.submit_once(key("a", "other"), full).await.is_err());
        assert!(submit(&keys, "a", "x").await.is_ok());
    }

    #[tokio::test]
    async fn old_keys_are_forgotten() {
        let keys = IdempotencyKeys::default();
        let first = submit(&keys, "first", "x").await.unwrap();
        for number in 0..MAX_KEYS {
            submit(&keys, &number.to_string(), "x").await.unwrap();
        }
        assert_ne!(submit(&keys, "first", "x").await, Ok(first));
        assert_eq!(keys.lock().slots.len(), MAX_KEYS);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let of = |parts: &[&str]| fingerprint(parts.iter().map(|part| part.as_bytes()));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a", ""]), of(&["a"]));
    }
}
