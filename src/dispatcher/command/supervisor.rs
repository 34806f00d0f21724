//! The process between the daemon and a command (`diffused supervise`): starts it, and ends it with
//! all that it has started.
//!
//! On Linux it adopts every descendant whose parent has ended (`PR_SET_CHILD_SUBREAPER`), whatever
//! session or process group that has moved to; elsewhere it ends the command's process group. Its
//! standard input is a socket to the daemon: from there come the length of the command's input, the
//! input, and perhaps [`TERMINATE`]; when it is closed, the daemon has gone or has lost interest.
//! Knows nothing of jobs.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use libc::pid_t;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::GRACE;

/// What the daemon calls this program with.
pub const SUBCOMMAND: &str = "supervise";
/// A variable that this program may need to be loaded, and no command gets.
pub const ITS_OWN: &str = "LD_LIBRARY_PATH";
/// Asks for the command's end: TERM, and after [`GRACE`] KILL.
pub const TERMINATE: u8 = b'T';

/// How often the command and the daemon are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What became of the command.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// As `wait` packs the status.
    Ended(i32),
    /// The number of the error.
    NotStarted(i32),
}

impl Reply {
    pub const BYTES: usize = 5;

    pub fn decode([kind, number @ ..]: [u8; Self::BYTES]) -> Self {
        let number = i32::from_le_bytes(number);
        if kind == 0 { Self::Ended(number) } else { Self::NotStarted(number) }
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, number) = match self {
            Self::Ended(status) => (0, status),
            Self::NotStarted(errno) => (1, errno),
        };
        [&[kind][..], &number.to_le_bytes()].concat()
    }
}

/// Runs a command to its end or the daemon's.
///
/// # Errors
/// The daemon could not be listened to; nothing was started.
pub fn supervise(program: &OsString, arguments: &[OsString]) -> io::Result<()> {
    // Whoever ends a whole control group or session begins with these: the command is ended by us.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    adopt_orphans()?;
    let mut control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let input = read_input(&mut control)?;
    let mut command = Command::new(program);
    command.args(arguments).env_remove(ITS_OWN).stdin(Stdio::piped()).process_group(0);
    end_with_us(&mut command);
    let reply = match command.spawn() {
        Ok(mut child) => {
            feed(&mut child, input);
            Reply::Ended(attend(child.id() as pid_t, &mut control))
        }
        Err(error) => Reply::NotStarted(error.raw_os_error().unwrap_or(libc::EIO)),
    };
    let _ = control.write_all(&reply.encode()); // the daemon may have gone
    Ok(())
}

fn read_input(control: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    control.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    let mut input = Vec::new();
    if Read::by_ref(control).take(len).read_to_end(&mut input)? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(input)
}

/// Writes the command's input, in a thread of its own: the command may never read it.
fn feed(child: &mut Child, input: Vec<u8>) {
    if let Some(mut stdin) = child.stdin.take() {
        thread::spawn(move || {
            let _ = stdin.write_all(&input); // a command need not read it
        });
    }
}

/// Waits for the leader's end, ends whatever it has left, and returns its status.
fn attend(leader: pid_t, control: &mut UnixStream) -> i32 {
    let mut kill_at = None;
    let mut hears = true;
    while !has_ended(leader) {
        match hears.then(|| order(control)) {
            Some(Order::Terminate) if kill_at.is_none() => {
                signal_group(leader, libc::SIGTERM);
                kill_at = Some(Instant::now() + GRACE);
            }
            Some(Order::Gone) => {
                hears = false;
                kill_at = Some(Instant::now());
            }
            Some(Order::Nothing | Order::Terminate) => {}
            None => thread::sleep(LOOK_EVERY),
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            signal_group(leader, libc::SIGKILL);
        }
    }
    // Its number is nobody else's until it is reaped.
    signal_group(leader, libc::SIGKILL);
    let status = reap(leader).unwrap_or(0);
    end_orphans();
    status
}

enum Order {
    Nothing,
    Terminate,
    Gone,
}

/// What the daemon says within [`LOOK_EVERY`].
fn order(control: &mut UnixStream) -> Order {
    let mut poll = libc::pollfd { fd: control.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: it is one descriptor, which is open.
    let ready = unsafe { libc::poll(&raw mut poll, 1, LOOK_EVERY.as_millis() as i32) };
    if ready <= 0 {
        return Order::Nothing;
    }
    let mut byte = [0];
    match control.read(&mut byte) {
        Ok(1) if byte == [TERMINATE] => Order::Terminate,
        Ok(1) => Order::Nothing,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Order::Nothing,
        Ok(_) | Err(_) => Order::Gone,
    }
}

/// Whether the leader has ended; it stays there to be reaped. Orphans that have ended are reaped.
fn has_ended(leader: pid_t) -> bool {
    loop {
        // SAFETY: all zeroes are a `siginfo_t`.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` is written, and nothing else.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
        // SAFETY: `waitid` sets the process id, to 0 where nothing has ended.
        match (result, unsafe { info.si_pid() }) {
            (0, 0) => return false,
            (0, pid) if pid != leader => {
                reap(pid);
            }
            // There is no child any more, which cannot be; or it is the leader.
            _ => return true,
        }
    }
}

/// The status of a child that has ended.
fn reap(pid: pid_t) -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` is written, and nothing else.
    (unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid).then_some(status)
}

/// Signals the leader and its group; the leader may have left for another one.
fn signal_group(leader: pid_t, signal: i32) {
    // SAFETY: no memory is touched. The leader is not reaped, so that the number is its own.
    unsafe {
        if libc::killpg(leader, signal) != 0 || signal == libc::SIGKILL {
            libc::kill(leader, signal);
        }
    }
}

#[cfg(target_os = "linux")]
fn adopt_orphans() -> io::Result<()> {
    // SAFETY: it sets a flag of this process.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn adopt_orphans() -> io::Result<()> {
    Ok(())
}

/// Has the kernel kill the command if this process is killed. It does so when the thread ends that has
/// spawned the command, which is the main one. What the command has started is left then.
#[cfg(target_os = "linux")]
fn end_with_us(command: &mut Command) {
    let us = std::process::id();
    let end_with_us = move || {
        // SAFETY: it sets a flag of this process.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // It may have been killed before that.
        match std::os::unix::process::parent_id() == us {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(end_with_us) };
}

#[cfg(not(target_os = "linux"))]
fn end_with_us(_: &mut Command) {}

/// Ends all children until there are none. The children of one that has ended become ours, so that
/// this goes down the tree; and only we can reap a child, so that its number is its own.
fn end_orphans() {
    let give_up = Instant::now() + GRACE;
    loop {
        for child in children() {
            // SAFETY: no memory is touched.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        // SAFETY: the status is not asked for.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        // SAFETY: the status is not asked for.
        let has_none = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } < 0;
        if has_none || Instant::now() > give_up {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The processes whose parent this is, by `/proc`.
fn children() -> Vec<pid_t> {
    let us = std::process::id().to_string();
    let is_ours = |pid: &pid_t| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The program's name, in parentheses, may be anything.
        let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        behind_name.split_ascii_whitespace().nth(1) == Some(&us)
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_read_back() {
        for reply in [Reply::Ended(0), Reply::Ended(9), Reply::Ended(-1), Reply::NotStarted(2)] {
            let bytes: [u8; Reply::BYTES] = reply.encode().try_into().unwrap();
            assert_eq!(Reply::decode(bytes), reply);
        }
    }
}
