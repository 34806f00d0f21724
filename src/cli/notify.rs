//! What the service manager is told (sd_notify(3)): a datagram to the socket that `NOTIFY_SOCKET`
//! names, and nothing where it names none.

use std::{env, ffi::OsStr, io, os::unix::net::UnixDatagram};

/// The way to the service manager, if one waits for news.
pub struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    /// That of the environment. One that cannot be reached is no reason not to serve.
    pub fn of_environment() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
        else {
            return Self(None);
        };
        let socket = connect(&address);
        Self(socket.inspect_err(warn).ok())
    }

    /// The API answers; a reload has come to its end.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// With the time, so that the manager can tell this reload from one before.
    pub fn reloading(&self) {
        match monotonic_usec() {
            Ok(now) => self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}")),
            Err(error) => warn(&error),
        }
    }

    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, news: &str) {
        let sent = self.0.as_ref().map(|socket| socket.send(news.as_bytes()));
        if let Some(Err(error)) = sent {
            warn(&error);
        }
    }
}

fn warn(error: &io::Error) {
    tracing::warn!("the service manager cannot be told how things are: {error}");
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up the daemon.
    socket.set_nonblocking(true)?;
    match address.as_encoded_bytes().strip_prefix(b"@") {
        None => socket.connect(address)?,
        Some(name) => connect_abstract(&socket, name)?,
    }
    Ok(socket)
}

/// A name that is in no file system.
#[cfg(target_os = "linux")]
fn connect_abstract(socket: &UnixDatagram, name: &[u8]) -> io::Result<()> {
    use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
    socket.connect_addr(&SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn connect_abstract(_: &UnixDatagram, _: &[u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Microseconds of the clock that the manager compares with; `Instant` does not give its number.
fn monotonic_usec() -> io::Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec, and `now` is one.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000)
}
