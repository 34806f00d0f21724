//! `Idempotency-Key`: who asks again because no answer came gets the job of the first time.
//!
//! A key stands for a job as long as it is among the last 10,000. The same key with another body
//! is refused: one of the two is a mistake.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
};

use axum::http::HeaderMap;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::problem::{Kind, Problem};
use crate::job::JobId;

const MAX_KEYS: usize = 10_000;
const MAX_KEY_BYTES: usize = 255;

/// The keys that were used, and for what.
#[derive(Default)]
pub struct IdempotencyKeys(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    jobs: HashMap<String, (Fingerprint, JobId)>,
    /// Oldest first.
    order: VecDeque<String>,
}

/// Stands for a body: equal ones have the same.
pub type Fingerprint = [u8; 32];

/// Of the parts of a body, in their order.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Fingerprint {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The request's key, if it has one.
pub fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= MAX_KEY_BYTES => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => {
            let detail = format!("Idempotency-Key has 1 to {MAX_KEY_BYTES} plain characters");
            Err(Problem::new(Kind::MalformedRequest, detail))
        }
    }
}

impl IdempotencyKeys {
    /// The job of that key; the first time, the one that `submit` makes. Of several at once with
    /// the same key one submits and the others wait for it.
    pub async fn submit_once(
        &self,
        key: Option<String>,
        body: Fingerprint,
        submit: impl Future<Output = Result<JobId, Problem>>,
    ) -> Result<JobId, Problem> {
        let Some(key) = key else { return submit.await };
        let mut keys = self.0.lock().await;
        match keys.jobs.get(&key) {
            Some((known, id)) if *known == body => Ok(*id),
            Some(_) => {
                let detail = "this Idempotency-Key was used for another request";
                Err(Problem::new(Kind::IdempotencyKeyReused, detail))
            }
            None => {
                let id = submit.await?;
                keys.remember(key, body, id);
                Ok(id)
            }
        }
    }
}

impl Keys {
    fn remember(&mut self, key: String, body: Fingerprint, id: JobId) {
        self.order.push_back(key.clone());
        self.jobs.insert(key, (body, id));
        if self.order.len() > MAX_KEYS
            && let Some(oldest) = self.order.pop_front()
        {
            self.jobs.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn submit(keys: &IdempotencyKeys, key: &str, body: &str) -> Result<JobId, Kind> {
        let submit = async { Ok(JobId::new()) };
        let body = fingerprint([body.as_bytes()]);
        let submitted = keys.submit_once(Some(key.to_owned()), body, submit).await;
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
        let body = fingerprint([]);
        let full = async { Err(Problem::new(Kind::QueueFull, "")) };
        assert!(keys.submit_once(Some("a".to_owned()), body, full).await.is_err());
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
        assert_eq!(keys.0.lock().await.jobs.len(), MAX_KEYS);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let of = |parts: &[&str]| fingerprint(parts.iter().map(|part| part.as_bytes()));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a", ""]), of(&["a"]));
    }
}
