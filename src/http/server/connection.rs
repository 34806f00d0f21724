//! One connection, from its acceptance to its end.

use std::{
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Request};
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
    places::Phase,
};

/// A request that is younger is answered in spite of a hang-up, so that `printf … | nc -N` is.
const PATIENCE: Duration = Duration::from_millis(500);

/// `prepare` is applied to each request before it goes to the router.
pub async fn serve(
    stream: TcpStream,
    router: Router,
    prepare: impl Fn(&mut Request) + Send,
    activity: Arc<Activity>,
    mut stopped: watch::Receiver<bool>,
) {
    // Events are small, and each is to arrive at once. A socket that refuses works without it.
    let _ = stream.set_nodelay(true);
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
            let response = answer.await?;
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
                if activity.now().0 == Phase::Waiting {
                    break;
                }
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Resolves when the peer has closed its side during a request.
async fn hung_up(reader: &OwnedReadHalf, activity: &Activity) {
    loop {
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
