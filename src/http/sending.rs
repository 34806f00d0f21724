//! An answer with images on its way out: sent piece by piece, so that base64 never exists as a
//! whole, and in its place until the last piece is out.
//!
//! Every answer keeps a least [`Pace`], else slow readers would hold the places of all others.

use std::{
    fs::File,
    io,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes, HttpBody, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use futures_util::stream;
use tokio::io::AsyncReadExt;

use super::{
    budget::{Place, TEXTS},
    problem::Problem,
};

/// Divisible by three, so that pieces of base64 can be joined.
const PIECE_BYTES: usize = 48 << 10;

/// A shorter answer needs no place.
const FREE_BYTES: u64 = 64 << 10;
/// What a byte of a text takes: its buffer has grown by doubling.
const COPIES: u64 = 2;

/// How quickly an answer is taken. Pieces that the socket holds count as taken, and time in which
/// none is asked for counts as well: both are the reader's.
struct Pace {
    begun: Instant,
    least_per_sec: u64,
    sent: u64,
}

impl Pace {
    /// So long a reader may take nothing,
    const GRACE: Duration = Duration::from_secs(30);
    /// then so much each second on the average,
    const LEAST_PER_SEC: u64 = 16 << 10;
    /// and as much as brings an answer that holds memory to its end in this time.
    const LONGEST_SECS: u64 = 600;

    fn of_file() -> Self {
        Self { begun: Instant::now(), least_per_sec: Self::LEAST_PER_SEC, sent: 0 }
    }

    fn of_memory(bytes: u64) -> Self {
        let least_per_sec = Self::LEAST_PER_SEC.max(bytes / Self::LONGEST_SECS);
        Self { least_per_sec, ..Self::of_file() }
    }

    fn is_kept_at(&self, now: Instant) -> bool {
        let may_take = Self::GRACE.as_secs() + self.sent / self.least_per_sec;
        now.saturating_duration_since(self.begun) <= Duration::from_secs(may_take)
    }

    /// Before each piece; an error ends the body, and the connection with it.
    fn check(&self) -> io::Result<()> {
        let too_slow = || io::Error::new(io::ErrorKind::TimedOut, "the reader is too slow");
        if self.is_kept_at(Instant::now()) { Ok(()) } else { Err(too_slow()) }
    }
}

/// The layer that gives long answers their place that have none yet: those that are in memory as a
/// whole. It does not wait, so that no line of them can form in memory.
pub async fn in_place(request: Request, next: Next) -> Result<Response, Problem> {
    hold(next.run(request).await).await
}

async fn hold(response: Response) -> Result<Response, Problem> {
    let Some(length) = response.body().size_hint().exact().filter(|it| *it > FREE_BYTES) else {
        return Ok(response);
    };
    let place = TEXTS.take_leaving(COPIES * length, 0).ok_or_else(|| TEXTS.full())?;
    let (parts, body) = response.into_parts();
    // One piece, that is: nothing is copied.
    let bytes = to_bytes(body, usize::MAX).await.map_err(Problem::internal)?;
    let pieces = in_pieces(vec![(bytes, false)], place, Pace::of_memory(length));
    let mut response = Response::from_parts(parts, pieces);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// Pieces of parts, each of which may be wanted in base64, and none once the reader is too slow.
fn in_pieces(parts: Vec<(Bytes, bool)>, place: Place, pace: Pace) -> Body {
    let state = (parts.into_iter(), None, place, pace);
    let pieces = stream::try_unfold(state, |(mut parts, part, place, mut pace)| async move {
        let part: Option<(Bytes, bool)> = part.or_else(|| parts.next());
        let Some((mut rest, in_base64)) = part else { return Ok(None) };
        pace.check()?;
        let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
        // A copy, for the place is returned with the last piece, which may lie in the socket's
        // buffer for long and would hold the whole.
        let sent: Bytes =
            if in_base64 { BASE64.encode(piece).into() } else { Bytes::copy_from_slice(&piece) };
        pace.sent += sent.len() as u64;
        let part = (!rest.is_empty()).then_some((rest, in_base64));
        Ok::<_, io::Error>(Some((sent, (parts, part, place, pace))))
    });
    Body::from_stream(pieces)
}

/// Headers and a body that is in memory.
pub struct Answer {
    pub headers: HeaderMap,
    pub parts: Vec<Part>,
}

/// A part of a body.
pub enum Part {
    Bytes(Vec<u8>),
    /// Sent in base64.
    Base64(Vec<u8>),
}

impl Answer {
    /// What it takes in memory.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes().len() as u64).sum()
    }

    pub fn respond_in(self, place: Place) -> Response {
        let length: usize = self.parts.iter().map(Part::sent_bytes).sum();
        let parts = self.parts.into_iter().map(|part| match part {
            Part::Bytes(bytes) => (Bytes::from(bytes), false),
            Part::Base64(bytes) => (Bytes::from(bytes), true),
        });
        let pace = Pace::of_memory(length as u64);
        let pieces = in_pieces(parts.collect(), place, pace);
        respond(self.headers, length as u64, pieces)
    }
}

impl Part {
    fn bytes(&self) -> &[u8] {
        let (Self::Bytes(bytes) | Self::Base64(bytes)) = self;
        bytes
    }

    fn sent_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Base64(bytes) => 4 * bytes.len().div_ceil(3),
        }
    }
}

/// A file, of which no more than a piece is in memory.
pub fn respond_with_file(headers: HeaderMap, file: File) -> io::Result<Response> {
    let length = file.metadata()?.len();
    let state = (tokio::fs::File::from_std(file), Pace::of_file());
    let pieces = stream::try_unfold(state, |(mut file, mut pace)| async move {
        pace.check()?;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = file.read_buf(&mut piece).await?;
        pace.sent += read as u64;
        Ok::<_, io::Error>((read > 0).then(|| (Bytes::from(piece), (file, pace))))
    });
    Ok(respond(headers, length, Body::from_stream(pieces)))
}

fn respond(headers: HeaderMap, length: u64, body: Body) -> Response {
    let mut response = (headers, body).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt;

    use super::*;
    use crate::http::budget::{ANSWERS, Compartment};

    #[tokio::test]
    async fn pieces_are_the_whole() {
        for length in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 2] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let parts = vec![
                Part::Bytes(b"{\"data\":\"".to_vec()),
                Part::Base64(bytes.clone()),
                Part::Bytes(b"\"}".to_vec()),
                Part::Bytes(bytes.clone()),
            ];
            let answer = Answer { headers: HeaderMap::new(), parts };
            let place = ANSWERS.take(answer.bytes()).await.unwrap();
            let response = answer.respond_in(place);
            let announced = response.headers()[header::CONTENT_LENGTH].to_str().unwrap().to_owned();
            let sent = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            let text = format!("{{\"data\":\"{}\"}}", BASE64.encode(&bytes));
            assert_eq!(sent, [text.as_bytes(), &bytes[..]].concat());
            assert_eq!(announced, sent.len().to_string());
        }
    }

    #[test]
    fn a_reader_keeps_up_a_pace() {
        const MIB: u64 = 1 << 20;
        // The answer's length, what was taken of it, and how long that may last in seconds.
        for (length, sent, most) in [
            (1000, 0, 30),
            (MIB, 0, 30),
            (MIB, MIB, 30 + 64),
            (4 * MIB, 2 * MIB, 30 + 128),
            (600 * MIB, 0, 30),
            (600 * MIB, 300 * MIB, 30 + 300),
        ] {
            let pace = Pace { sent, ..Pace::of_memory(length) };
            let is_kept = |secs| pace.is_kept_at(pace.begun + Duration::from_secs(secs));
            assert!(is_kept(most), "{length} {sent}");
            assert!(!is_kept(most + 1), "{length} {sent}");
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_gives_the_place_back() {
        static TEST: Compartment = Compartment::new(1 << 20, 0, "test");
        let place = TEST.take(100 << 10).await.unwrap();
        let now = Instant::now();
        let pace = Pace { begun: now - Duration::from_secs(60), ..Pace::of_memory(100 << 10) };
        let body = in_pieces(vec![(vec![0; 100 << 10].into(), false)], place, pace);
        assert_eq!(TEST.used_bytes(), 100 << 10);
        assert!(to_bytes(body, usize::MAX).await.is_err());
        assert_eq!(TEST.used_bytes(), 0);
    }

    #[tokio::test]
    async fn a_piece_does_not_hold_the_whole() {
        struct Whole(#[expect(dead_code, reason = "is counted")] Arc<()>);
        impl AsRef<[u8]> for Whole {
            fn as_ref(&self) -> &[u8] {
                &[7; 100]
            }
        }
        static TEST: Compartment = Compartment::new(1 << 20, 0, "test");
        let owners = Arc::new(());
        let bytes = Bytes::from_owner(Whole(owners.clone()));
        let place = TEST.take(100).await.unwrap();
        let body = in_pieces(vec![(bytes, false)], place, Pace::of_memory(100));
        let pieces: Vec<_> = body.into_data_stream().collect().await;
        assert_eq!((pieces.len(), Arc::strong_count(&owners)), (1, 1));
    }

    #[tokio::test]
    async fn a_long_text_has_a_place_and_a_short_one_needs_none() {
        let text = |length| "x".repeat(length).into_response();
        let short = hold(text(FREE_BYTES as usize)).await.unwrap();
        assert_eq!(TEXTS.used_bytes(), 0);
        let long = hold(text(20 << 20)).await.unwrap();
        assert_eq!(TEXTS.used_bytes(), COPIES * (20 << 20));
        assert_eq!(long.headers()[header::CONTENT_LENGTH], (20 << 20).to_string());
        assert!(hold(text(20 << 20)).await.is_err(), "there is no room for another");
        let sent = to_bytes(long.into_body(), usize::MAX).await.unwrap();
        assert_eq!(sent.len(), 20 << 20);
        assert_eq!(TEXTS.used_bytes(), 0);
        drop(short);
    }
}
