//! A body on its way in: how large it may be, how slow, and how much memory it takes meanwhile.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    http::{HeaderMap, header},
};
use futures_util::{StreamExt, stream};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard},
    time::{Instant, timeout},
};

use super::{
    budget::{BODIES, BODIES_RESERVE, Place},
    problem::{Kind, Problem},
};

/// The beginning of a body needs no place, so that requests of a few words always get in.
const FREE_BYTES: usize = 64 << 10;
/// What a byte of a body takes until it has become an image or a value: itself and a copy.
const COPIES: u64 = 2;

/// The body that may use the reserve.
static FIRST_IN_LINE: AsyncMutex<()> = AsyncMutex::const_new(());
/// How long a body waits to be that.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a body may be on its way.
const LONGEST: Duration = Duration::from_secs(120);
/// The pace is measured over this time.
const WINDOW: Duration = Duration::from_secs(10);
/// What must arrive in a window: 16 KiB a second,
const LEAST_IN_WINDOW: usize = 160 << 10;
/// and a part of what has arrived before, so that no large body holds its place by a trickle. A
/// steady pace meets this for longer than [`LONGEST`].
const LEAST_OF_RECEIVED: usize = 16;

/// The same for the body that may use the reserve: whoever keeps others waiting is quick.
const QUICK_WINDOW: Duration = Duration::from_secs(2);
const QUICK_LEAST: usize = 1 << 20;

/// Reads a body piece by piece.
pub struct Intake {
    body: BodyDataStream,
    limit: usize,
    /// By what it says itself.
    is_too_large: bool,
    room: Room,
    pace: Pace,
    first_in_line: Option<MutexGuard<'static, ()>>,
}

/// The place of a body that is still being read.
#[derive(Clone, Default)]
pub struct Room(Arc<Mutex<Option<Place>>>);

impl Room {
    fn add(&self, place: Place) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(held) => held.add(place),
            None => *held = Some(place),
        }
    }

    /// The whole place.
    pub fn take(&self) -> Option<Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// How quickly a body arrives. Time that it waits for its place does not count.
struct Pace {
    received: usize,
    /// What is left of [`LONGEST`],
    longest: Duration,
    /// and of the window,
    window: Duration,
    /// and what must arrive in that.
    missing: usize,
    /// Whether the window is the short one.
    quick: bool,
}

impl Pace {
    const BEGUN: Self = Self {
        received: 0,
        longest: LONGEST,
        window: WINDOW,
        missing: LEAST_IN_WINDOW,
        quick: false,
    };

    /// How long the next piece may take.
    fn patience(&self) -> Duration {
        self.longest.min(self.window)
    }

    fn arrived(&mut self, after: Duration, bytes: usize) {
        self.received += bytes;
        self.longest = self.longest.saturating_sub(after);
        self.window = self.window.saturating_sub(after);
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0 {
            self.begin_window();
        }
    }

    fn begin_window(&mut self) {
        (self.window, self.missing) = if self.quick {
            (QUICK_WINDOW, QUICK_LEAST)
        } else {
            (WINDOW, LEAST_IN_WINDOW.max(self.received / LEAST_OF_RECEIVED))
        };
    }

    /// From now on.
    fn be_quick(&mut self) {
        self.quick = true;
        self.begin_window();
    }
}

/// A [`Problem`] on its way through a stream.
#[derive(Debug, thiserror::Error)]
#[error("the body was refused")]
struct Refused(Problem);

/// The problem that ended a body's stream, if one did.
pub fn refusal(error: &(dyn Error + 'static)) -> Option<Problem> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(Refused(problem)) = error.downcast_ref() {
            return Some(problem.clone());
        }
        cause = error.source();
    }
    None
}

impl Intake {
    /// Refuses what can be told from the headers, before a client that waits to be asked for the
    /// body (`Expect: 100-continue`) is asked.
    pub fn new(headers: &HeaderMap, body: Body, limit: usize) -> Result<Self, Problem> {
        let encoding = headers.get(header::CONTENT_ENCODING);
        if let Some(encoding) =
            encoding.filter(|it| !it.as_bytes().eq_ignore_ascii_case(b"identity"))
        {
            let detail =
                format!("bodies are sent as they are, without content-encoding: {encoding:?}");
            return Err(Problem::new(Kind::UnsupportedMediaType, detail));
        }
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let is_too_large =
            length.and_then(|it| it.parse().ok()).is_some_and(|length: usize| length > limit);
        if is_too_large && headers.contains_key(header::EXPECT) {
            return Err(too_large(limit));
        }
        Ok(Self {
            body: body.into_data_stream(),
            limit,
            is_too_large,
            room: Room::default(),
            pace: Pace::BEGUN,
            first_in_line: None,
        })
    }

    /// The whole body, and its place.
    pub async fn read(mut self) -> Result<(Vec<u8>, Option<Place>), Problem> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok((bytes, self.room.take()))
    }

    /// The same as a body again, and where its place will be.
    pub fn into_body(self) -> (Body, Room) {
        let room = self.room.clone();
        let pieces = stream::unfold(self, |mut intake| async {
            let piece = intake.next().await.map_err(Refused).transpose()?;
            Some((piece, intake))
        });
        (Body::from_stream(pieces), room)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        if self.is_too_large {
            // Read and dropped: most clients do not listen before they have sent it.
            while self.piece().await?.is_some() {}
            return Err(too_large(self.limit));
        }
        let before = self.pace.received;
        let Some(piece) = self.piece().await? else { return Ok(None) };
        let received = self.pace.received;
        let paid = received.saturating_sub(FREE_BYTES) - before.saturating_sub(FREE_BYTES);
        if paid > 0 {
            let place = self.place(COPIES * paid as u64).await?;
            self.room.add(place);
        }
        Ok(Some(piece))
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Problem> {
        let begun = Instant::now();
        let waiting = timeout(self.pace.patience(), self.body.next());
        // Somebody who is too slow for the reserve alone may come back when it is not needed.
        let late = |_| if self.pace.quick { BODIES.full() } else { too_slow() };
        let Some(piece) = waiting.await.map_err(late)? else { return Ok(None) };
        let piece = piece.map_err(|_| {
            Problem::new(Kind::MalformedRequest, "the body could not be read to its end")
        })?;
        self.pace.arrived(begun.elapsed(), piece.len());
        if self.pace.received > self.limit {
            return Err(too_large(self.limit));
        }
        Ok(Some(piece))
    }

    async fn place(&mut self, bytes: u64) -> Result<Place, Problem> {
        if let Some(place) = BODIES.take_leaving(bytes, BODIES_RESERVE) {
            return Ok(place);
        }
        if self.first_in_line.is_none() {
            let waiting = timeout(PATIENCE, FIRST_IN_LINE.lock());
            self.first_in_line = Some(waiting.await.map_err(|_| BODIES.full())?);
            self.pace.be_quick();
        }
        BODIES.take(bytes).await
    }
}

fn too_slow() -> Problem {
    let detail = format!(
        "the body was too slow: it has {} s, and at least {} KiB must arrive every {} s",
        LONGEST.as_secs(),
        LEAST_IN_WINDOW >> 10,
        WINDOW.as_secs()
    );
    Problem::new(Kind::BodyTooSlow, detail)
}

fn too_large(limit: usize) -> Problem {
    let limit = limit >> 20;
    Problem::new(Kind::BodyTooLarge, format!("a body has at most {limit} MiB here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether such pieces arrive in time, each so many seconds after the one before.
    fn is_in_time(pieces: impl IntoIterator<Item = (u64, usize)>) -> bool {
        let mut pace = Pace::BEGUN;
        pieces.into_iter().all(|(seconds, bytes)| {
            let after = Duration::from_secs(seconds);
            let in_time = after <= pace.patience();
            pace.arrived(after, bytes);
            in_time
        })
    }

    #[test]
    fn a_body_keeps_up_a_pace() {
        let kib = 1 << 10;
        assert!(is_in_time([(3, 10); 3]));
        assert!(!is_in_time([(11, 10)]));
        assert!(!is_in_time([(1, 1); 12]));
        assert!(is_in_time([(1, 17 * kib); 110]));
        assert!(!is_in_time([(1, 17 * kib); 130]), "longer than the longest");
        let trickle = [(1, 17 * kib); 12];
        assert!(is_in_time([(0, 1 << 20)].into_iter().chain(trickle)));
        assert!(!is_in_time([(0, 8 << 20)].into_iter().chain(trickle)), "a part of what it has");
    }

    #[test]
    fn who_is_first_in_line_is_quick() {
        let mut pace = Pace::BEGUN;
        pace.arrived(Duration::from_secs(1), 8 << 20);
        assert_eq!(pace.patience(), WINDOW);
        pace.be_quick();
        assert_eq!(pace.patience(), QUICK_WINDOW);
        pace.arrived(Duration::from_secs(1), QUICK_LEAST - 1);
        assert_eq!(pace.patience(), QUICK_WINDOW - Duration::from_secs(1), "not enough yet");
        pace.arrived(Duration::ZERO, 1);
        assert_eq!(pace.patience(), QUICK_WINDOW, "again");
    }

    fn sent(pieces: usize, bytes: usize) -> Intake {
        let pieces = stream::iter(0..pieces)
            .map(move |_| Ok::<_, std::io::Error>(Bytes::from(vec![0; bytes])));
        Intake::new(&HeaderMap::new(), Body::from_stream(pieces), 8 << 20).unwrap()
    }

    #[tokio::test]
    async fn a_place_is_taken_as_bytes_arrive_and_the_beginning_is_free() {
        for (bytes, expected) in [(FREE_BYTES, None), (FREE_BYTES + (1 << 20), Some(2 << 10))] {
            let (_, place) = sent(1, bytes).read().await.unwrap();
            assert_eq!(place.map(|place| place.kib()), expected);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_found_behind_a_stream() {
        let (body, _) = sent(9, 1 << 20).into_body();
        let error = axum::body::to_bytes(body, usize::MAX).await.unwrap_err();
        assert_eq!(refusal(&error).map(|problem| problem.kind()), Some(Kind::BodyTooLarge));
    }
}
