//! The limit of open files and sockets of this process.

use std::io;

use crate::modes::Http;

/// A connection's own, and the file that is its answer.
const PER_CONNECTION: u64 = 2;
/// Beside the most connections that can be configured: what `http/server/places.rs` keeps back.
const OTHERS: u64 = 256;
/// What macOS grants a process at most.
const MOST_OF_MACOS: u64 = 10_240;

/// Raises the soft limit as far as connections may need it, and returns it. (Not to the hard one,
/// which may be a billion: programs that the daemon starts inherit it, and some close every number.)
pub fn raise_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one struct, which outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        tracing::warn!("the limit of open files cannot be read: {}", io::Error::last_os_error());
        return LEAST;
    }
    let most = PER_CONNECTION * u64::from(Http::MAX_CONNECTIONS) + OTHERS;
    for wanted in [most, MOST_OF_MACOS].map(|wanted| wanted.min(limit.rlim_max)) {
        if limit.rlim_cur >= wanted {
            return limit.rlim_cur;
        }
        let raised = libc::rlimit { rlim_cur: wanted, rlim_max: limit.rlim_max };
        // SAFETY: the kernel reads one struct.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
            return wanted;
        }
    }
    let error = io::Error::last_os_error();
    tracing::warn!("the limit of open files stays at {}: {error}", limit.rlim_cur);
    limit.rlim_cur
}

/// What macOS grants by default; other systems grant more.
const LEAST: u64 = 256;
