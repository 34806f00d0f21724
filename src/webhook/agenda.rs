//! What is delivered next, and when. Pure: it is told what time it is.

use std::collections::{BTreeMap, HashMap};

/// So many attempts are under way at a time.
const MAX_AT_ONCE: usize = 8;
/// So many of them with one receiver: one that is slow delays no other.
const MAX_PER_RECEIVER: usize = 2;

/// Deliveries that wait for their first attempt or for another one. Times are in milliseconds of
/// whatever clock.
pub struct Agenda<T> {
    /// By when they are due, and then as they came.
    waiting: BTreeMap<(u64, u64), (String, T)>,
    added: u64,
    under_way: HashMap<String, usize>,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), added: 0, under_way: HashMap::new() }
    }
}

impl<T> Agenda<T> {
    pub fn add(&mut self, receiver: &str, delivery: T, due_ms: u64) {
        self.waiting.insert((due_ms, self.added), (receiver.to_owned(), delivery));
        self.added += 1;
    }

    /// Takes what can be begun now, if anything can; it is under way then.
    pub fn begin(&mut self, now_ms: u64) -> Option<(String, T)> {
        let (key, _) = self.first_free().filter(|((due_ms, _), _)| *due_ms <= now_ms)?;
        let (receiver, delivery) = self.waiting.remove(&key)?;
        *self.under_way.entry(receiver.clone()).or_default() += 1;
        Some((receiver, delivery))
    }

    /// An attempt has ended.
    pub fn end(&mut self, receiver: &str) {
        if let Some(count) = self.under_way.get_mut(receiver) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(receiver);
            }
        }
    }

    /// When something can be begun, if no attempt ends before that.
    pub fn next_ms(&self) -> Option<u64> {
        self.first_free().map(|((due_ms, _), _)| due_ms)
    }

    /// The first whose receiver has room for it.
    fn first_free(&self) -> Option<((u64, u64), &str)> {
        if self.under_way.values().sum::<usize>() >= MAX_AT_ONCE {
            return None;
        }
        let mut waiting = self.waiting.iter().map(|(key, (receiver, _))| (*key, &receiver[..]));
        waiting.find(|(_, receiver)| {
            self.under_way.get(*receiver).is_none_or(|count| *count < MAX_PER_RECEIVER)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(agenda: &mut Agenda<u32>, now_ms: u64) -> Vec<u32> {
        std::iter::from_fn(|| agenda.begin(now_ms).map(|(_, delivery)| delivery)).collect()
    }

    #[test]
    fn one_receiver_does_not_hold_up_another() {
        let mut agenda = Agenda::default();
        for (receiver, delivery) in [("slow", 1), ("slow", 2), ("slow", 3), ("quick", 4)] {
            agenda.add(receiver, delivery, 0);
        }
        assert_eq!(begun(&mut agenda, 0), [1, 2, 4]);
        assert_eq!(agenda.next_ms(), None, "it waits for one that ends");
        agenda.end("quick");
        assert_eq!(begun(&mut agenda, 0), [0; 0]);
        agenda.end("slow");
        assert_eq!(begun(&mut agenda, 0), [3]);
    }

    #[test]
    fn only_a_few_are_under_way() {
        let mut agenda = Agenda::default();
        (0..20).for_each(|delivery| agenda.add(&delivery.to_string(), delivery, 0));
        assert_eq!(begun(&mut agenda, 0).len(), MAX_AT_ONCE);
        agenda.end("3");
        assert_eq!(begun(&mut agenda, 0), [8]);
    }

    #[test]
    fn each_has_its_time() {
        let mut agenda = Agenda::default();
        for (delivery, due_ms) in [(1, 30), (2, 10), (3, 10), (4, 20)] {
            agenda.add(&delivery.to_string(), delivery, due_ms);
        }
        assert_eq!(begun(&mut agenda, 9), [0; 0]);
        assert_eq!(agenda.next_ms(), Some(10));
        assert_eq!(begun(&mut agenda, 20), [2, 3, 4]);
        assert_eq!(agenda.next_ms(), Some(30));
    }
}
