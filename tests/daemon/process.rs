//! The daemon's worker, as the kernel shows it.

use std::{fs, process::Command};

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
        self.signal("-9");
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.pid.to_string()]).status().unwrap();
        assert!(status.success(), "kill {name} {}", self.pid);
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
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// A field of `/proc/PID/stat`, counted from the state on; `None` if the process is gone.
    fn stat(&self, field: usize) -> Option<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let (_, fields) = stat.rsplit_once(')')?; // the name before may hold anything
        fields.split_whitespace().nth(field).map(str::to_owned)
    }
}
