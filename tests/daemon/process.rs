//! The daemon's worker, as the kernel shows it.

use std::{fs, io, process::Command, ptr};

use crate::support::wait_for;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    pid: u32,
}

impl Worker {
    /// The child of that process.
    pub fn of(daemon: u32) -> Option<Self> {
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok());
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.map(|pid| Self { pid }).find(|worker| worker.stat(1) == Some(daemon.to_string()))
    }

    pub fn kill(&self) {
        assert!(self.is_killed(), "kill -9 {}", self.pid);
    }

    /// The same, of one that may be gone already.
    pub fn is_killed(&self) -> bool {
        self.is_signalled("-9")
    }

    pub fn signal(&self, name: &str) {
        assert!(self.is_signalled(name), "kill {name} {}", self.pid);
    }

    fn is_signalled(&self, name: &str) -> bool {
        Command::new("kill").args([name, &self.pid.to_string()]).status().unwrap().success()
    }

    /// Whether it runs; one that is dead but not yet waited for does not.
    pub fn is_alive(&self) -> bool {
        self.stat(0).is_some_and(|state| state != "Z" && state != "X")
    }

    /// Waits until it has computed for a while from now on.
    pub fn wait_for_work(&self) {
        const TICKS: u64 = 10; // of a hundredth of a second each
        let before = self.cpu_ticks();
        wait_for("the worker to compute", || (self.cpu_ticks() >= before + TICKS).then_some(()));
    }

    fn cpu_ticks(&self) -> u64 {
        [11, 12].map(|field| self.stat(field).unwrap().parse::<u64>().unwrap()).iter().sum()
    }

    /// What it has in RAM that is not a file's.
    pub fn anonymous_bytes(&self) -> Option<u64> {
        let kib = self.field_of_status("RssAnon")?;
        kib.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// A field of `/proc/PID/status`.
    pub fn status(&self, name: &str) -> String {
        self.field_of_status(name).unwrap_or_else(|| panic!("{name} of {}", self.pid))
    }

    fn field_of_status(&self, name: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let mut fields = status.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| *field == name).map(|(_, value)| value.trim().to_owned())
    }

    /// The variables that it was started with.
    pub fn environment(&self) -> Vec<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).unwrap();
        String::from_utf8_lossy(&environment).split('\0').map(str::to_owned).collect()
    }

    /// A field of `/proc/PID/stat`, counted from the state on; `None` if the process is gone.
    fn stat(&self, field: usize) -> Option<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let (_, fields) = stat.rsplit_once(')')?; // the name before may hold anything
        fields.split_whitespace().nth(field).map(str::to_owned)
    }
}

/// As if the disk were full for that process: it can make no file longer than so many bytes. Unix's
/// own limit on files; `None` takes it back.
pub fn limit_file_size(pid: u32, bytes: Option<u64>) {
    let soft = bytes.unwrap_or(libc::RLIM_INFINITY);
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel reads one struct, and writes none.
    let done =
        unsafe { libc::prlimit(pid as libc::pid_t, libc::RLIMIT_FSIZE, &limit, ptr::null_mut()) };
    assert_eq!(done, 0, "prlimit: {}", io::Error::last_os_error());
}
