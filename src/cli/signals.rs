//! Signals → events of the daemon.

use std::{io, thread};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    iterator::Signals,
};
use tokio::sync::mpsc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Reload,
    Stop,
}

/// Begins to listen. From here on these signals no longer end the process by themselves; nor does
/// that of a file which has become too large: whoever writes it is told, as when the disk is full.
pub fn listen() -> io::Result<mpsc::UnboundedReceiver<Event>> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGXFSZ])?;
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let event = match signal {
                SIGXFSZ => continue,
                SIGHUP => Event::Reload,
                _ => Event::Stop,
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
