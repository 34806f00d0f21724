//! The memory that requests and answers may take together, whoever sends them.
//!
//! A [`Place`] is held by the work itself: it travels into the blocking task or the response's
//! body, and returns when the bytes are freed. A client that hangs up returns nothing early.
//!
//! Places are taken in one order, so that nobody who holds one waits for somebody who waits for
//! it: a body, then the images of an answer, its file, and at last the work on either. Nothing is
//! taken while working.

use std::time::Duration;

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::problem::{Kind, Problem};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Bodies that are being received or read, their values and images included.
pub static BODIES: Compartment = Compartment::new(224 * MIB, 10, "requests' bodies");
/// What bodies leave free that arrive side by side. One at a time may use it, and has room to its
/// end: else all could have a part of their places and wait for the rest.
pub const BODIES_RESERVE: u64 = 128 * MIB;

/// Finished images that wait to be encoded. A large one does not wait for its place: it is there
/// already, and a line of them would be as large as it is long.
pub static IMAGES: Lanes = Lanes {
    small: Compartment::new(32 * MIB, 10, "small finished images"),
    large: Compartment::new(96 * MIB, 0, "large finished images"),
    small_most: 4 * MIB,
    least: 0,
};

/// Files on their way to their readers.
pub static ANSWERS: Lanes = Lanes {
    small: Compartment::new(32 * MIB, 10, "small answers"),
    large: Compartment::new(160 * MIB, 10, "large answers"),
    small_most: 4 * MIB,
    least: 0,
};

/// Decoding and encoding. The least is charged for the processor's sake: eight small ones at once.
pub static WORK: Lanes = Lanes {
    small: Compartment::new(32 * MIB, 30, "small images in work"),
    large: Compartment::new(192 * MIB, 30, "large images in work"),
    small_most: 16 * MIB,
    least: 4 * MIB,
};

/// By then a slow reader has been disconnected, or an image has been encoded.
const RETRY_SECS: u64 = 10;

/// A number of bytes that are given out in places.
pub struct Compartment {
    free_kib: Semaphore,
    bytes: u64,
    /// How long a place may be waited for.
    patience: Duration,
    name: &'static str,
}

/// Bytes of a compartment that are in use until this is dropped.
#[derive(Debug)]
pub struct Place(SemaphorePermit<'static>);

impl Compartment {
    const fn new(bytes: u64, patience_secs: u64, name: &'static str) -> Self {
        let free_kib = Semaphore::const_new((bytes / KIB) as usize);
        Self { free_kib, bytes, patience: Duration::from_secs(patience_secs), name }
    }

    /// What costs more than there is takes all of it, and so is alone.
    fn kib(&self, bytes: u64) -> u32 {
        bytes.min(self.bytes).div_ceil(KIB) as u32
    }

    /// Waits in line.
    pub async fn take(&'static self, bytes: u64) -> Result<Place, Problem> {
        let taking = timeout(self.patience, self.free_kib.acquire_many(self.kib(bytes)));
        match taking.await {
            Ok(Ok(permit)) => Ok(Place(permit)),
            Ok(Err(_)) | Err(_) => Err(self.full()),
        }
    }

    /// At once or not at all, and so that so many bytes stay free.
    pub fn take_leaving(&'static self, bytes: u64, free: u64) -> Option<Place> {
        let kib = self.kib(bytes);
        let needed = kib as usize + (free / KIB) as usize;
        let is_free = self.free_kib.available_permits() >= needed;
        let permit = is_free.then(|| self.free_kib.try_acquire_many(kib).ok()).flatten();
        permit.map(Place)
    }

    pub fn full(&self) -> Problem {
        let detail = format!(
            "{} take {} MiB already, as much as they may together; try again later",
            self.name,
            self.bytes / MIB
        );
        Problem::new(Kind::Busy, detail).retry_after(RETRY_SECS)
    }
}

impl Place {
    /// Takes over what the other one holds of the same compartment.
    pub fn add(&mut self, other: Self) {
        self.0.merge(other.0);
    }

    #[cfg(test)]
    pub fn kib(&self) -> usize {
        self.0.num_permits()
    }

    /// Returns what is more than that.
    pub fn shrink_to(&mut self, bytes: u64) {
        let kib = bytes.div_ceil(KIB) as usize;
        drop(self.0.split(self.0.num_permits().saturating_sub(kib)));
    }
}

/// A compartment in two parts, so that what is small never stands in line behind what is large.
pub struct Lanes {
    small: Compartment,
    large: Compartment,
    small_most: u64,
    /// What each place costs at least.
    least: u64,
}

impl Lanes {
    pub async fn take(&'static self, bytes: u64) -> Result<Place, Problem> {
        let lane = if bytes <= self.small_most { &self.small } else { &self.large };
        lane.take(bytes.max(self.least)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static TEST: Lanes = Lanes {
        small: Compartment::new(8 * MIB, 0, "small ones"),
        large: Compartment::new(100 * MIB, 0, "large ones"),
        small_most: MIB,
        least: 4 * MIB,
    };

    #[tokio::test]
    async fn a_reserve_is_left() {
        static TEST: Compartment = Compartment::new(10 * MIB, 0, "test");
        let first = TEST.take_leaving(4 * MIB, 6 * MIB).unwrap();
        assert!(TEST.take_leaving(1, 6 * MIB).is_none());
        assert!(TEST.take(6 * MIB).await.is_ok());
        drop(first);
        assert!(TEST.take_leaving(4 * MIB, 6 * MIB).is_some());
    }

    #[tokio::test]
    async fn places_are_taken_shrunk_and_returned() {
        let mut most = TEST.take(90 * MIB).await.unwrap();
        let refused = TEST.take(20 * MIB).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy);
        // The small ones have a lane of their own, for two.
        let small = [TEST.take(1).await.unwrap(), TEST.take(MIB).await.unwrap()];
        assert!(TEST.take(1).await.is_err());
        drop(small);
        most.shrink_to(80 * MIB);
        most.shrink_to(85 * MIB);
        let rest = TEST.take(20 * MIB).await.unwrap();
        assert!(TEST.take(2 * MIB).await.is_err());
        drop((most, rest));
        let all = TEST.take(500 * MIB).await.unwrap();
        assert!(TEST.take(2 * MIB).await.is_err(), "what is too large is alone");
        drop(all);
        let mut place = TEST.large.take(40 * MIB).await.unwrap();
        place.add(TEST.large.take(60 * MIB).await.unwrap());
        assert!(TEST.large.take(1).await.is_err());
    }
}
