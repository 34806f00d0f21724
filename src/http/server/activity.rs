//! What a connection is doing, as its socket and its requests tell it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Instant,
};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
};

use super::places::Phase;

/// Shared by the connection, which changes it, and the accept loop, which looks at it.
pub struct Activity(Mutex<Now>);

#[derive(Clone, Copy)]
struct Now {
    phase: Phase,
    since: Instant,
    stalled: Option<Instant>,
}

impl Activity {
    pub fn new() -> Self {
        Self(Mutex::new(Now { phase: Phase::Waiting, since: Instant::now(), stalled: None }))
    }

    /// The phase, its beginning, and since when the peer has taken nothing of what there is to send.
    pub fn now(&self) -> (Phase, Instant, Option<Instant>) {
        let Now { phase, since, stalled } = *self.lock();
        (phase, since, stalled)
    }

    /// A request's head is there; the request ends when what is returned is dropped.
    pub fn begin_request(self: &Arc<Self>) -> InRequest {
        self.enter(Phase::Request);
        InRequest(self.clone())
    }

    fn received(&self) {
        if self.now().0 == Phase::Waiting {
            self.enter(Phase::Head);
        }
    }

    fn enter(&self, phase: Phase) {
        let mut now = self.lock();
        (now.phase, now.since) = (phase, Instant::now());
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        let mut now = self.lock();
        match written {
            Poll::Pending => now.stalled = now.stalled.or_else(|| Some(Instant::now())),
            Poll::Ready(_) => {
                now.stalled = None;
                // The body ends when hyper has it, and not when the peer does.
                if now.phase == Phase::Waiting {
                    now.since = Instant::now();
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct InRequest(Arc<Activity>);

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.enter(Phase::Waiting);
    }
}

/// An answer's body; with its end the request ends.
pub struct WatchedBody {
    pub body: Body,
    #[expect(dead_code, reason = "dropped with the body")]
    pub request: InRequest,
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that reports when bytes arrive and when they cannot leave.
pub struct WatchedSocket {
    /// Shared with the task that looks whether the peer has hung up.
    pub reader: Arc<OwnedReadHalf>,
    pub writer: OwnedWriteHalf,
    pub activity: Arc<Activity>,
}

impl AsyncRead for WatchedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!((*self.reader).as_ref().poll_read_ready(cx))?;
            match self.reader.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    if read > 0 {
                        self.activity.received();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for WatchedSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.writer).poll_write(cx, bytes);
        self.activity.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.writer).poll_write_vectored(cx, slices);
        self.activity.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
