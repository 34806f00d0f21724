//! What is delivered next, and when. Pure: it is told what time it is.
//!
//! An attempt is a thread that mostly waits, so many may be under way. What must not happen is that
//! slow receivers take all places: each has two, one once an attempt has timed out, and all that are
//! known to be slow share a part of the places. An address has a share, too, by however many names it
//! is called; and so have the names of one domain, since a name server that says nothing leaves them
//! without an address. Receivers that have never taken a delivery leave some places to those that have.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{address::network, url::domain};

/// So many attempts are under way at a time.
const MAX_AT_ONCE: usize = 128;
/// So many of them with receivers that are known to be slow.
const MAX_SLOW_AT_ONCE: usize = 32;
/// So many of them with one receiver.
const MAX_PER_RECEIVER: usize = 2;
/// So many of them with one address.
const MAX_PER_ADDRESS: usize = 32;
/// So many of them with the names of one domain.
const MAX_PER_DOMAIN: usize = 32;
/// So many of them with receivers that have never taken a delivery.
const MAX_NEW_AT_ONCE: usize = 96;
/// How long a receiver counts as slow after an attempt that timed out.
const SLOW_FOR_MS: u64 = 10 * 60 * 1000;
/// So many slow receivers are remembered.
const MAX_SLOW_KNOWN: usize = 1000;
/// So many receivers that have taken a delivery are remembered.
const MAX_PROVEN: usize = 1000;

/// Deliveries that wait for their first attempt or for another one. Times are in milliseconds of
/// whatever clock.
pub struct Agenda<T> {
    /// Those that were never attempted come before all others.
    first: Line<T>,
    again: Line<T>,
    added: u64,
    under_way: HashMap<String, usize>,
    /// Until when these receivers count as slow.
    slow: HashMap<String, u64>,
    /// When these receivers last took a delivery.
    proven: HashMap<String, u64>,
}

/// By when they are due, and then as they came.
type Line<T> = BTreeMap<(u64, u64), Waiting<T>>;

struct Waiting<T> {
    receiver: String,
    /// The address that had no place for it.
    turned_away_by: Option<IpAddr>,
    delivery: T,
}

/// Whether a delivery was attempted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempted {
    Never,
    Before,
}

/// What an attempt tells of its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// It failed, but soon.
    Failed,
    /// The receiver took all the time that there was.
    TimedOut,
    /// The receiver was not asked.
    NotAsked,
}

/// How many attempts are under way with each address.
#[derive(Default)]
pub struct Addresses(HashMap<IpAddr, usize>);

impl Addresses {
    /// Takes a place, if there is one.
    pub fn take(&mut self, address: IpAddr) -> bool {
        let is_free = !self.is_full(address);
        if is_free {
            *self.0.entry(network(address)).or_default() += 1;
        }
        is_free
    }

    pub fn release(&mut self, address: IpAddr) {
        let network = network(address);
        if let Some(count) = self.0.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&network);
            }
        }
    }

    fn is_full(&self, address: IpAddr) -> bool {
        self.0.get(&network(address)).is_some_and(|count| *count >= MAX_PER_ADDRESS)
    }
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            first: BTreeMap::new(),
            again: BTreeMap::new(),
            added: 0,
            under_way: HashMap::new(),
            slow: HashMap::new(),
            proven: HashMap::new(),
        }
    }
}

impl<T> Agenda<T> {
    pub fn add(&mut self, receiver: &str, delivery: T, due_ms: u64, attempted: Attempted) {
        self.put(receiver, delivery, due_ms, attempted, None);
    }

    /// Puts back what an address had no place for.
    pub fn put_back(
        &mut self,
        receiver: &str,
        delivery: T,
        now_ms: u64,
        attempted: Attempted,
        address: IpAddr,
    ) {
        self.put(receiver, delivery, now_ms, attempted, Some(address));
    }

    fn put(
        &mut self,
        receiver: &str,
        delivery: T,
        due_ms: u64,
        attempted: Attempted,
        turned_away_by: Option<IpAddr>,
    ) {
        let waiting = Waiting { receiver: receiver.to_owned(), turned_away_by, delivery };
        let key = (due_ms, self.added);
        self.line(attempted).insert(key, waiting);
        self.added += 1;
    }

    fn line(&mut self, attempted: Attempted) -> &mut Line<T> {
        match attempted {
            Attempted::Never => &mut self.first,
            Attempted::Before => &mut self.again,
        }
    }

    /// Takes what can be begun now, if anything can; it is under way then.
    pub fn begin(&mut self, now_ms: u64, addresses: &Addresses) -> Option<(String, T)> {
        let of_line = |line| self.first_free(line, now_ms, addresses).filter(|key| key.0 <= now_ms);
        let (attempted, key) = match (of_line(&self.first), of_line(&self.again)) {
            (Some(key), _) => (Attempted::Never, key),
            (None, Some(key)) => (Attempted::Before, key),
            (None, None) => return None,
        };
        let Waiting { receiver, delivery, .. } = self.line(attempted).remove(&key)?;
        *self.under_way.entry(receiver.clone()).or_default() += 1;
        Some((receiver, delivery))
    }

    /// An attempt has ended.
    pub fn end(&mut self, receiver: &str, outcome: Outcome, now_ms: u64) {
        if let Some(count) = self.under_way.get_mut(receiver) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(receiver);
            }
        }
        match outcome {
            Outcome::NotAsked => {}
            Outcome::Failed => {
                self.slow.remove(receiver);
            }
            Outcome::Delivered => {
                self.slow.remove(receiver);
                self.proven.insert(receiver.to_owned(), now_ms);
                let oldest = self.proven.iter().min_by_key(|(_, at_ms)| **at_ms);
                let oldest = oldest.map(|(receiver, _)| receiver.clone());
                if let Some(oldest) = oldest.filter(|_| self.proven.len() > MAX_PROVEN) {
                    self.proven.remove(&oldest);
                }
            }
            Outcome::TimedOut => {
                self.proven.remove(receiver);
                self.slow.retain(|_, until_ms| *until_ms > now_ms);
                if self.slow.len() < MAX_SLOW_KNOWN {
                    self.slow.insert(receiver.to_owned(), now_ms + SLOW_FOR_MS);
                }
            }
        }
    }

    /// When something can be begun, if no attempt ends before that.
    pub fn next_ms(&self, now_ms: u64, addresses: &Addresses) -> Option<u64> {
        let lines = [&self.first, &self.again].into_iter();
        let keys = lines.filter_map(|line| self.first_free(line, now_ms, addresses));
        keys.map(|(due_ms, _)| due_ms).min()
    }

    /// The first of a line that there is a place for.
    fn first_free(&self, line: &Line<T>, now_ms: u64, addresses: &Addresses) -> Option<(u64, u64)> {
        let (mut all, mut slow, mut new) = (0, 0, 0);
        let mut of_domains = HashMap::<&str, usize>::new();
        for (receiver, count) in &self.under_way {
            all += count;
            slow += if self.is_slow(receiver, now_ms) { *count } else { 0 };
            new += if self.proven.contains_key(receiver) { 0 } else { *count };
            *of_domains.entry(domain(receiver)).or_default() += count;
        }
        if all >= MAX_AT_ONCE {
            return None;
        }
        let is_free = |waiting: &Waiting<T>| {
            let receiver = waiting.receiver.as_str();
            let count = self.under_way.get(receiver).copied().unwrap_or(0);
            let receiver_has_place = match self.is_slow(receiver, now_ms) {
                true => count == 0 && slow < MAX_SLOW_AT_ONCE,
                false => count < MAX_PER_RECEIVER,
            };
            receiver_has_place
                && (new < MAX_NEW_AT_ONCE || self.proven.contains_key(receiver))
                && of_domains.get(domain(receiver)).is_none_or(|count| *count < MAX_PER_DOMAIN)
                && waiting.turned_away_by.is_none_or(|it| !addresses.is_full(it))
        };
        line.iter().find(|(_, waiting)| is_free(waiting)).map(|(key, _)| *key)
    }

    fn is_slow(&self, receiver: &str, now_ms: u64) -> bool {
        self.slow.get(receiver).is_some_and(|until_ms| *until_ms > now_ms)
    }
}

#[cfg(test)]
mod tests;
