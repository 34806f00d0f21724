//! The worker's end of the socket. Owns that frames arrive whole, though two threads write them:
//! the engine's, and the one of the heartbeat.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Arc, Mutex, PoisonError, TryLockError, Weak},
    thread,
    time::Duration,
};

use crate::worker::protocol::{self, FromWorker};

const HEARTBEAT: Duration = Duration::from_secs(1);

pub struct Connection(Mutex<UnixStream>);

impl Connection {
    /// Sends heartbeats until the connection is dropped or broken.
    pub fn start(socket: UnixStream) -> io::Result<Arc<Self>> {
        let connection = Arc::new(Self(Mutex::new(socket)));
        let weak = Arc::downgrade(&connection);
        thread::Builder::new().name("heartbeat".to_owned()).spawn(move || beat(&weak))?;
        Ok(connection)
    }

    pub fn send(&self, message: &FromWorker, payload: &[u8]) -> io::Result<()> {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::write(&mut *socket, message, payload)
    }

    /// Sends a heartbeat unless that would make the engine wait: another frame is being written, or
    /// the daemon does not read and the socket's buffer is full.
    fn send_heartbeat(&self) -> io::Result<()> {
        let mut socket = match self.0.try_lock() {
            Ok(socket) => socket,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        match has_room(&socket) {
            true => protocol::write(&mut *socket, &FromWorker::Alive, &[]),
            false => Ok(()),
        }
    }
}

fn beat(connection: &Weak<Connection>) {
    while let Some(connection) = connection.upgrade() {
        if connection.send_heartbeat().is_err() {
            return;
        }
        drop(connection);
        thread::sleep(HEARTBEAT);
    }
}

/// Whether a short frame can be written without waiting.
fn has_room(socket: &UnixStream) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: the kernel reads and writes the one struct that it is told of.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_heartbeat_never_waits_for_a_daemon_that_does_not_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let connection = Connection(Mutex::new(theirs.try_clone().unwrap()));
        connection.send_heartbeat().unwrap();
        let mut ours = ours;
        assert_eq!(protocol::read::<FromWorker>(&mut ours).unwrap().0, FromWorker::Alive);

        let mut filling = theirs;
        filling.set_nonblocking(true).unwrap();
        while filling.write(&[0; 4096]).is_ok() {}
        filling.set_nonblocking(false).unwrap();
        connection.send_heartbeat().unwrap();
        // Nor for the engine, which writes.
        let _engine = connection.0.lock().unwrap();
        connection.send_heartbeat().unwrap();
    }
}
