//! The accept loop: takes connections, keeps their number within bounds and ends slow ones.
//!
//! `axum::serve` has neither limits nor timeouts. The decisions are pure ([`places`]); a connection
//! says what it is doing through its [`Activity`]. A few places beyond the limit are reserved: there
//! `/health` is answered, and everything else is told to come back. The loop itself waits for nobody:
//! who is slow must be ended meanwhile, and `stop` must be heard.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, extract::Request, middleware::Next, response::Response};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, Id, JoinSet},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    Api, is_health,
    problem::{Kind, Problem},
    router,
    throttle::Throttle,
};
use activity::Activity;
use places::{Admission, Limits, Place};

mod activity;
mod connection;
mod places;

/// How often overdue connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How long the loop waits before it tries again to accept, or to find a place.
const PAUSE: Duration = Duration::from_millis(5);
const RETRY_AFTER_SECS: u64 = 5;

static FULL: Throttle = Throttle::new(Duration::from_secs(60));
static NOT_ACCEPTED: Throttle = Throttle::new(Duration::from_secs(60));

/// The address of the client, among a request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Marks the requests of a connection in a reserved place.
#[derive(Debug, Clone, Copy)]
struct Reserved;

/// Answers requests until `stop`, and then those that have begun. `descriptors`: how many files and
/// sockets this process may have open.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    descriptors: u64,
    stop: impl Future<Output = ()>,
) {
    let config = api.config.clone();
    let limits = || Limits::new(config.current().http.max_connections, descriptors);
    if limits().places < config.current().http.max_connections as usize {
        let (wanted, places) = (config.current().http.max_connections, limits().places);
        tracing::warn!(
            "at most {places} connections at a time, not {wanted} (http.max_connections): this \
             process may open {descriptors} files (ulimit -n, systemd's LimitNOFILE)"
        );
    }
    let (stopping, stopped) = watch::channel(false);
    let mut connections = Connections::new(router(api), stopped);
    // One that has no place yet; those behind it wait in the backlog.
    let mut newcomer: Option<Newcomer> = None;
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = sweep.tick() => connections.close_overdue(),
            accepted = listener.accept(), if newcomer.is_none() => match accepted {
                Ok((stream, peer)) => {
                    let arrived = Instant::now();
                    newcomer = connections.add(Newcomer { stream, peer, arrived }, limits());
                }
                Err(error) => connections.not_accepted(error).await,
            },
            () = sleep(PAUSE), if newcomer.is_some() => {
                newcomer = newcomer.and_then(|newcomer| connections.add(newcomer, limits()));
            }
        }
    }
    drop((listener, newcomer));
    let _ = stopping.send(true); // no receiver: no connection
    while !connections.is_empty() {
        tokio::select! {
            _ = sweep.tick() => connections.close_overdue(),
            () = connections.one_ended() => {}
        }
    }
}

/// All open connections. Owned by the accept loop alone.
struct Connections {
    router: Router,
    stopped: watch::Receiver<bool>,
    tasks: JoinSet<()>,
    open: HashMap<Id, Open>,
}

struct Newcomer {
    stream: TcpStream,
    peer: SocketAddr,
    arrived: Instant,
}

struct Open {
    place: Place,
    opened: Instant,
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Connections {
    fn new(router: Router, stopped: watch::Receiver<bool>) -> Self {
        Self { router, stopped, tasks: JoinSet::new(), open: HashMap::new() }
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Serves the newcomer, or returns it if it is to wait.
    fn add(&mut self, newcomer: Newcomer, limits: Limits) -> Option<Newcomer> {
        self.forget_ended();
        let open = self.open.iter().map(|(id, open)| (*id, open.seen()));
        let now = Instant::now();
        match places::admit(open, limits, now >= newcomer.arrived + places::GRACE, now) {
            Admission::Free(place) => self.serve(newcomer, place, limits),
            Admission::Instead { of, place } => {
                self.close(of);
                self.serve(newcomer, place, limits);
            }
            Admission::Later => return Some(newcomer),
        }
        None
    }

    fn serve(&mut self, newcomer: Newcomer, place: Place, limits: Limits) {
        let Newcomer { stream, peer, .. } = newcomer;
        if let (Place::Reserved, Some(held_back)) = (place, FULL.pass(Instant::now())) {
            tracing::warn!(
                "all {} connections are busy: more get 503 ({held_back} more since the last such \
                 line); http.max_connections in modes.yaml sets the number",
                limits.places
            );
        }
        let activity = Arc::new(Activity::new());
        let router = self.router.clone();
        let prepare = move |request: &mut Request| {
            request.extensions_mut().insert(Peer(peer));
            if place == Place::Reserved {
                request.extensions_mut().insert(Reserved);
            }
        };
        let (activity_too, stopped) = (activity.clone(), self.stopped.clone());
        let serving = connection::serve(stream, router, place, prepare, activity_too, stopped);
        let task = self.tasks.spawn(serving);
        let open = Open { place, opened: Instant::now(), activity, task };
        self.open.insert(open.task.id(), open);
    }

    fn close_overdue(&mut self) {
        self.forget_ended();
        let now = Instant::now();
        let overdue = self.open.iter().filter(|(_, open)| open.seen().is_overdue(now));
        let overdue: Vec<Id> = overdue.map(|(id, _)| *id).collect();
        overdue.into_iter().for_each(|id| self.close(id));
    }

    /// Dropping a connection's task closes its socket, and cancels the request that it waits for.
    fn close(&mut self, id: Id) {
        if let Some(open) = self.open.remove(&id) {
            open.task.abort();
        }
    }

    fn forget_ended(&mut self) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.forget(ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
    }

    async fn one_ended(&mut self) {
        if let Some(ended) = self.tasks.join_next_with_id().await {
            self.forget(ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
    }

    fn forget(&mut self, id: Id) {
        self.open.remove(&id);
    }

    /// Makes room if there are no descriptors left; what is wrong with one client is its own affair.
    async fn not_accepted(&mut self, error: io::Error) {
        use io::ErrorKind as Of;
        if matches!(error.kind(), Of::ConnectionAborted | Of::ConnectionReset) {
            return;
        }
        if let Some(held_back) = NOT_ACCEPTED.pass(Instant::now()) {
            tracing::error!(
                "cannot accept a connection: {error} ({held_back} more since the last such line)"
            );
        }
        self.forget_ended();
        let open = self.open.iter().map(|(id, open)| (*id, open.seen()));
        if let Some((id, _)) = places::longest_idle(open) {
            self.close(id);
        }
        sleep(PAUSE).await;
    }
}

impl Open {
    fn seen(&self) -> places::Seen {
        let (phase, since, stalled) = self.activity.now();
        places::Seen { place: self.place, opened: self.opened, phase, since, stalled }
    }
}

/// The layer that answers in a reserved place.
pub async fn refuse_in_reserve(request: Request, next: Next) -> Response {
    if request.extensions().get::<Reserved>().is_none() {
        return next.run(request).await;
    }
    let path = request.uri().path();
    if is_health(path) {
        return next.run(request).await;
    }
    let detail = "all connections of this daemon are busy; try again later";
    let mut problem = Problem::new(Kind::TooManyConnections, detail);
    problem.retry_after_secs = Some(RETRY_AFTER_SECS);
    problem.to_response(path)
}
