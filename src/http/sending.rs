//! An answer with images on its way out: sent piece by piece, so that base64 never exists as a
//! whole, and in its place until the last piece is out.

use std::{fs::File, io};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use futures_util::stream;
use tokio::io::AsyncReadExt;

use super::budget::Place;

/// Divisible by three, so that pieces of base64 can be joined.
const PIECE_BYTES: usize = 48 << 10;

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
        let state = (parts.collect::<Vec<_>>().into_iter(), None, place);
        let pieces = stream::unfold(state, |(mut parts, part, place)| async move {
            let (mut rest, in_base64): (Bytes, bool) = match part {
                Some(part) => part,
                None => parts.next()?,
            };
            let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
            let sent = if in_base64 { BASE64.encode(piece).into() } else { piece };
            let part = (!rest.is_empty()).then_some((rest, in_base64));
            Some((Ok::<_, io::Error>(sent), (parts, part, place)))
        });
        respond(self.headers, length as u64, Body::from_stream(pieces))
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
    let pieces = stream::unfold(tokio::fs::File::from_std(file), |mut file| async {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        match file.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Bytes::from(piece)), file)),
            Err(error) => Some((Err(error), file)),
        }
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
    use super::*;
    use crate::http::budget::ANSWERS;

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
}
