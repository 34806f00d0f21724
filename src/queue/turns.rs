//! Which client was served when.

use std::collections::HashMap;

/// Of more clients than these, those that were served longest ago count as new.
const MAX_CLIENTS: usize = 1000;

/// The clients that were served, by [`Terms::client`](crate::job::Terms::client).
#[derive(Debug, Default)]
pub struct Turns {
    served: HashMap<Option<String>, u64>,
    last: u64,
}

impl Turns {
    /// That client had its turn.
    pub fn take(&mut self, client: &Option<String>) {
        self.last += 1;
        self.served.insert(client.clone(), self.last);
        if self.served.len() > MAX_CLIENTS
            && let Some(oldest) = self.served.values().min().copied()
        {
            self.served.retain(|_, at| *at != oldest);
        }
    }

    /// The less, the longer ago that client was served; 0: never.
    pub fn last_of(&self, client: &Option<String>) -> u64 {
        self.served.get(client).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_clients_the_last_ones_are_remembered() {
        let client = |i: usize| (i > 0).then(|| i.to_string());
        let mut turns = Turns::default();
        (0..=MAX_CLIENTS).for_each(|i| turns.take(&client(i)));
        assert_eq!((turns.last_of(&client(0)), turns.last_of(&client(1))), (0, 2));
        turns.take(&client(1));
        turns.take(&client(0));
        let known = [0, 1, 2, 3].map(|i| turns.last_of(&client(i)) > 0);
        assert_eq!(known, [true, true, false, true]);
        assert!(turns.last_of(&client(3)) < turns.last_of(&client(1)));
    }
}
