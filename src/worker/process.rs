//! One worker process, from the daemon's side: spawned, written to, read from, ended.
//!
//! Owns the child and our end of its socket. Knows nothing of jobs or restarts.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixStream as StdUnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::PathBuf,
    process::{ExitStatus, Stdio},
};

use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::Child,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    environment,
    protocol::{self, FromWorker, ToWorker},
};

/// A program and its arguments that speak the protocol over their standard input, a socket.
pub type WorkerCommand = (PathBuf, Vec<OsString>);

/// How glibc shall allocate in the worker, unless the user has said so. A denoising step frees and
/// allocates the same hundreds of megabytes: given back to the kernel each time, they cost a page
/// fault for every 4 KiB, a third of a step. So nothing is mapped singly (`mmap_max`), nothing is
/// given back (`trim_threshold`), and huge pages are asked for (`hugetlb=1` is madvise; from glibc
/// 2.35 on). Names that a C library does not know it ignores.
pub const ALLOCATOR: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=0x7fffffffffffffff:glibc.malloc.hugetlb=1",
);

/// Cards are counted as their driver's management library counts them, by which the daemon knows how
/// much memory they have; CUDA's own order puts the fastest first.
const CARDS: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");

/// What this program is called in lists of processes.
pub const NAME: &str = env!("CARGO_PKG_NAME");

/// The file that runs, even if it was replaced or removed since: an upgrade in place must stop no job,
/// and no other version's worker must be started.
#[cfg(target_os = "linux")]
pub fn this_program() -> io::Result<PathBuf> {
    Ok("/proc/self/exe".into())
}

#[cfg(not(target_os = "linux"))]
pub fn this_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Names this process, which would be called `exe` after the file that it was started by. Best effort.
pub fn take_name() {
    if let Err(error) = std::fs::write("/proc/self/comm", NAME) {
        tracing::debug!("the process keeps its name: {error}");
    }
}

/// Messages that may wait for the dispatcher before the worker has to.
const INBOX_MESSAGES: usize = 16;

/// A running worker process. It is killed when this is dropped.
pub struct Process {
    pid: Option<u32>,
    outbox: mpsc::UnboundedSender<ToWorker>,
    inbox: mpsc::Receiver<Event>,
    /// Dropping it kills the process.
    kill: oneshot::Sender<()>,
    attendant: JoinHandle<()>,
}

/// What a process has to say.
#[derive(Debug)]
pub enum Event {
    /// A message and its frame's raw bytes.
    Message(FromWorker, Vec<u8>),
    /// The process is gone: why, in words for the log.
    Gone(String),
}

impl Process {
    /// Starts the worker with one end of a socket pair as its standard input.
    pub fn spawn((program, arguments): &WorkerCommand) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = std::process::Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // A group of its own: an interrupt from the terminal is for the daemon, which lets
            // the running job finish.
            .process_group(0);
        if this_program().is_ok_and(|it| it == *program) {
            command.arg0(NAME);
        }
        prepare(&mut command);
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        Ok(Self::attend(UnixStream::from_std(ours)?, Some(child)))
    }

    /// A worker at the other end of that socket; `child` is its process, if it is one of ours.
    pub fn attend(socket: UnixStream, child: Option<Child>) -> Self {
        let (outbox, to_send) = mpsc::unbounded_channel();
        let (received, inbox) = mpsc::channel(INBOX_MESSAGES);
        let (kill, killed) = oneshot::channel();
        let pid = child.as_ref().and_then(Child::id);
        let attendant = tokio::spawn(attend(socket, child, to_send, received, killed));
        Self { pid, outbox, inbox, kill, attendant }
    }

    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Sends a message, without waiting. A process that is gone does not get it: [`Event::Gone`]
    /// is on its way then.
    pub fn send(&self, message: ToWorker) {
        let _ = self.outbox.send(message);
    }

    /// The next event. Losing interest in the middle loses nothing.
    pub async fn next(&mut self) -> Event {
        let gone = || Event::Gone("its attendant stopped".to_owned());
        self.inbox.recv().await.unwrap_or_else(gone)
    }

    /// Kills the process. The handle resolves once the process is gone, which may be never: a
    /// process in an uninterruptible system call outlives even SIGKILL.
    pub fn kill(self) -> JoinHandle<()> {
        drop(self.kill);
        self.attendant
    }
}

/// The environment that a worker needs: what it inherits, and settings that the user has not made.
pub fn prepare(worker: &mut std::process::Command) {
    let is_inherited = |name: &OsString| name.to_str().is_some_and(environment::is_inherited);
    worker.env_clear().envs(std::env::vars_os().filter(|(name, _)| is_inherited(name)));
    for (name, value) in [ALLOCATOR, CARDS] {
        if std::env::var_os(name).is_none() {
            worker.env(name, value);
        }
    }
}

/// Carries messages both ways until the worker is gone or nobody wants it any more.
async fn attend(
    socket: UnixStream,
    child: Option<Child>,
    to_send: mpsc::UnboundedReceiver<ToWorker>,
    received: mpsc::Sender<Event>,
    mut killed: oneshot::Receiver<()>,
) {
    let (from, to) = socket.into_split();
    let end = tokio::select! {
        error = receive_all(from, &received) => error,
        () = send_all(to, to_send) => None,
        // Also while a message waits for a worker that does not read.
        _ = &mut killed => None,
    };
    let mut reason = match end {
        Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => String::new(),
        Some(error) => format!("unreadable message: {error}; "),
        None => String::new(),
    };
    match child {
        Some(mut child) => {
            // It may be alive still: a peer that sends rubbish, or one that is no longer wanted.
            let _ = child.start_kill();
            match child.wait().await {
                Ok(status) => reason += &describe(status),
                Err(error) => reason += &format!("its exit status is unknown: {error}"),
            }
        }
        None => reason += "its connection is closed",
    }
    let _ = received.send(Event::Gone(reason)).await;
}

/// Reads until it cannot; `None` if nobody listens any more.
async fn receive_all(mut from: OwnedReadHalf, received: &mpsc::Sender<Event>) -> Option<io::Error> {
    loop {
        let (message, payload) = match receive(&mut from).await {
            Ok(frame) => frame,
            Err(error) => return Some(error),
        };
        if received.send(Event::Message(message, payload)).await.is_err() {
            return None;
        }
    }
}

/// Reads one frame.
pub async fn receive<M: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<(M, Vec<u8>)> {
    let mut header = [0; 8];
    from.read_exact(&mut header).await?;
    let (json_len, payload_len) = protocol::decode_header(header)?;
    let mut json = vec![0; json_len];
    from.read_exact(&mut json).await?;
    let mut payload = vec![0; payload_len];
    from.read_exact(&mut payload).await?;
    Ok((serde_json::from_slice(&json)?, payload))
}

/// Writes until nobody has more to send. A worker that cannot be written to is left to the
/// reading side, which may find last messages before the end.
async fn send_all(mut to: OwnedWriteHalf, mut to_send: mpsc::UnboundedReceiver<ToWorker>) {
    while let Some(message) = to_send.recv().await {
        let sent = match protocol::encode(&message, &[]) {
            Ok(frame) => to.write_all(&frame).await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            tracing::debug!("a message to the worker was not sent: {error}");
        }
    }
}

/// How a process ended, in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with status {code}"),
        (None, Some(9)) => {
            "it was killed by signal 9, as the kernel does when memory runs out".to_owned()
        }
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => format!("it ended with {status}"),
    }
}
