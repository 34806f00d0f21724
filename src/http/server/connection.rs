//! One connection, from its acceptance to its end.

use std::{
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, header},
};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::Interest,
    net::{TcpStream, tcp::OwnedReadHalf},
    sync::watch,
    time::sleep,
};

use super::{
    activity::{Activity, WatchedBody, WatchedSocket},
    places::{Phase, Place},
};

/// A request that is younger is answered in spite of a hang-up, so that `printf … | nc -N` is.
const PATIENCE: Duration = Duration::from_millis(500);

/// Bytes that wait in a socket to be sent, at most about.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: libc::c_int = 64 << 10;

/// `prepare` is applied to each request before it goes to the router.
pub async fn serve(
    stream: TcpStream,
    router: Router,
    place: Place,
    prepare: impl Fn(&mut Request) + Send,
    activity: Arc<Activity>,
    mut stopped: watch::Receiver<bool>,
) {
    // Events are small, and each is to arrive at once. A socket that refuses works without it.
    let _ = stream.set_nodelay(true);
    limit_unsent(&stream);
    let (reader, writer) = stream.into_split();
    let reader = Arc::new(reader);
    let (reader_too, activity_too) = (reader.clone(), activity.clone());
    let socket = WatchedSocket { reader: reader_too, writer, activity: activity_too };
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: axum::http::Request<Incoming>| {
        let in_request = activity.begin_request();
        let mut request = request.map(Body::new);
        prepare(&mut request);
        let answer = router.call(request);
        async move {
            let mut response = answer.await?;
            if place == Place::Reserved {
                // One answer, whoever gave it: more could wait for a peer that reads none of them.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response.map(|body| WatchedBody { body, request: in_request }))
        }
    });
    // hyper would end the connection, and its request, as soon as it sees the peer's end; `hung_up`
    // decides that here, for requests with and without others behind them.
    let mut http = http1::Builder::new();
    http.half_close(true);
    let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
    let mut hung_up = pin!(hung_up(&reader, &activity));
    let mut is_stopping = false;
    loop {
        tokio::select! {
            // An error is the peer's: there is nobody to tell.
            _ = connection.as_mut() => break,
            () = &mut hung_up => break,
            _ = stopped.wait_for(|stopped| *stopped), if !is_stopping => {
                // After the last request, some of its answer may be unsent.
                let (phase, _, stalled) = activity.now();
                if phase == Phase::Waiting && stalled.is_none() {
                    break;
                }
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Resolves when the peer has closed its side during a request: at once, or, with unread bytes before
/// the end, within [`PATIENCE`]. Between requests hyper reads, and sees the end itself.
async fn hung_up(reader: &OwnedReadHalf, activity: &Activity) {
    loop {
        // Waits for news: `ready` alone would repeat what was so before hyper's last read.
        let _ = reader.as_ref().peek(&mut [0]).await;
        let ready = reader.ready(Interest::READABLE).await;
        let (phase, since, _) = activity.now();
        if phase == Phase::Request
            && since + PATIENCE <= Instant::now()
            && ready.is_ok_and(|ready| ready.is_read_closed())
        {
            return;
        }
        sleep(PATIENCE).await; // what has not been read stays ready
    }
}

/// Has Linux report a socket as writable as soon as little is unsent, and not when a third of its
/// buffer, which grows to megabytes, is free: who reads slowly would seem to read nothing. Where this
/// is refused, only that is lost.
#[cfg(target_os = "linux")]
fn limit_unsent(stream: &TcpStream) {
    use std::os::fd::AsRawFd;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT);
    let limit = UNSENT_BYTES;
    let size = size_of_val(&limit) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel reads one integer.
    unsafe {
        libc::setsockopt(stream.as_raw_fd(), level, name, (&raw const limit).cast(), size);
    }
}

/// Other systems say so for any free space.
#[cfg(not(target_os = "linux"))]
fn limit_unsent(_: &TcpStream) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Read;

    use tokio::{net::TcpListener, task::spawn_blocking, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_seen_to_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut reader = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (writer, _) = listener.accept().await.unwrap();
        limit_unsent(&writer);
        // Until it has taken nothing for a while.
        let piece = [0; 64 << 10];
        while timeout(Duration::from_millis(300), writer.writable()).await.is_ok() {
            let _ = writer.try_write(&piece);
        }
        let read = spawn_blocking(move || {
            reader.read_exact(&mut [0; 128 << 10]).unwrap();
            reader
        });
        let _reader = read.await.unwrap();
        let writable = timeout(Duration::from_secs(60), writer.writable()).await;
        assert!(writable.is_ok(), "128 KiB were read, and nothing may be written");
    }
}
