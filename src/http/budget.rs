//! The memory that requests and answers may take together, whoever sends them.
//!
//! A [`Place`] is held by the work itself: it travels into the blocking task or the response's
//! body, and returns when the bytes are freed. A client that hangs up returns nothing early.
//!
//! Places are taken in one order, so that nobody who holds one waits for somebody who waits for
//! it: a body, then the images of an answer, its file, and at last the work on either. Nothing is
//! waited for while working.
//!
//! A finished image has cost minutes, so it waits for its file's place and for its encoder as long
//! as its client stays ([`Compartment::wait`]); a hang-up drops the wait and the image. Three things
//! keep that line short and moving. [`IMAGES`] bounds it: the one worker makes images one after the
//! other and cannot be held back from here, so an image that finds `IMAGES` full is refused (a small
//! one after 10 s). [`ENCODING`] is theirs alone, so uploads that are decoded do not delay it. And
//! slow readers give their places in [`ANSWERS`] back, since an answer has a least pace (`sending`).

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

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

/// Texts that are being made from many jobs, before anybody knows how long they are.
pub static TEXTS_IN_WORK: Compartment = Compartment::new(40 * MIB, 10, "lists in work");

/// Long answers that are no images, on their way to their readers. They are in memory when they ask
/// for a place, so they do not wait for it.
pub static TEXTS: Compartment = Compartment::new(64 * MIB, 0, "long answers");

/// Encoding of finished images. Only they enter: what clients can start at will is [`WORK`].
pub static ENCODING: Lanes = Lanes {
    small: Compartment::new(16 * MIB, 0, "small images that are encoded"),
    large: Compartment::new(96 * MIB, 0, "large images that are encoded"),
    small_most: 4 * MIB,
    least: 2 * MIB,
};

/// Decoding, and encoding of images that are kept. The least is charged for the processor's sake: eight small ones at once.
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
    /// Places that were given out, ever.
    places: AtomicU64,
}

/// Bytes of a compartment that are in use until this is dropped.
#[derive(Debug)]
pub struct Place(SemaphorePermit<'static>);

impl Compartment {
    pub const fn new(bytes: u64, patience_secs: u64, name: &'static str) -> Self {
        let free_kib = Semaphore::const_new((bytes / KIB) as usize);
        let patience = Duration::from_secs(patience_secs);
        Self { free_kib, bytes, patience, name, places: AtomicU64::new(0) }
    }

    /// What costs more than there is takes all of it, and so is alone.
    fn kib(&self, bytes: u64) -> u32 {
        bytes.min(self.bytes).div_ceil(KIB) as u32
    }

    /// Waits in line.
    pub async fn take(&'static self, bytes: u64) -> Result<Place, Problem> {
        let taking = timeout(self.patience, self.free_kib.acquire_many(self.kib(bytes)));
        match taking.await {
            Ok(Ok(permit)) => Ok(self.give(permit)),
            Ok(Err(_)) | Err(_) => Err(self.full()),
        }
    }

    /// Waits in line, without a limit.
    pub async fn wait(&'static self, bytes: u64) -> Result<Place, Problem> {
        let permit = self.free_kib.acquire_many(self.kib(bytes)).await;
        permit.map(|permit| self.give(permit)).map_err(Problem::internal) // nobody closes it
    }

    /// Bytes that are given out at the moment.
    pub fn used_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.free_kib.available_permits() as u64 * KIB)
    }

    fn usage(&self) -> Usage {
        Usage { bytes: self.used_bytes(), places: self.places.load(Relaxed) }
    }

    /// At once or not at all, and so that so many bytes stay free.
    pub fn take_leaving(&'static self, bytes: u64, free: u64) -> Option<Place> {
        let kib = self.kib(bytes);
        let needed = kib as usize + (free / KIB) as usize;
        let is_free = self.free_kib.available_permits() >= needed;
        let permit = is_free.then(|| self.free_kib.try_acquire_many(kib).ok()).flatten();
        permit.map(|permit| self.give(permit))
    }

    fn give(&self, permit: SemaphorePermit<'static>) -> Place {
        self.places.fetch_add(1, Relaxed);
        Place(permit)
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
        self.lane(bytes).take(bytes.max(self.least)).await
    }

    /// As [`Compartment::wait`].
    pub async fn wait(&'static self, bytes: u64) -> Result<Place, Problem> {
        self.lane(bytes).wait(bytes.max(self.least)).await
    }

    fn lane(&self, bytes: u64) -> &Compartment {
        if bytes <= self.small_most { &self.small } else { &self.large }
    }

    fn usage(&self) -> Usage {
        let [small, large] = [self.small.usage(), self.large.usage()];
        Usage { bytes: small.bytes + large.bytes, places: small.places + large.places }
    }
}

/// How much is given out at the moment, and how often that was done ever.
pub struct Usage {
    pub bytes: u64,
    pub places: u64,
}

/// Each part by its name in `/metrics`.
pub fn usage() -> [(&'static str, Usage); 7] {
    [
        ("bodies", BODIES.usage()),
        ("images", IMAGES.usage()),
        ("answers", ANSWERS.usage()),
        ("encoding", ENCODING.usage()),
        ("work", WORK.usage()),
        ("texts", TEXTS.usage()),
        ("texts_in_work", TEXTS_IN_WORK.usage()),
    ]
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
