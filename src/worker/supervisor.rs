//! A worker that comes back: starts the process, and starts it again when it died.
//!
//! Owns when a restart is due. Knows nothing of jobs: who asked the worker for something learns
//! from [`Event::Died`] that no answer will come.

use std::{io, path::PathBuf, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    process::{self, Process, WorkerCommand},
    protocol::{FromWorker, ToWorker},
    sandbox::{self, Readable},
};
use crate::vram::ledger::Computing;

/// Starts one worker process, which may read these files and folders.
pub type Spawn = Box<dyn FnMut(&[PathBuf]) -> io::Result<Process> + Send>;

/// The worker, whether it lives at the moment or not.
pub struct Supervisor {
    spawn: Spawn,
    /// What the next process may read; `None` without a sandbox for files.
    readable: Option<Readable>,
    state: State,
    /// Deaths in a row, with no job done in between.
    deaths: u32,
    /// How many times a process was started, but for those that were asked for.
    starts: u64,
    /// What was looked up last.
    resolved: Option<Vec<PathBuf>>,
    /// A look-up that a disk does not answer, and that cannot be ended.
    stuck: Option<JoinHandle<Vec<PathBuf>>>,
}

enum State {
    Alive {
        process: Process,
        ready: bool,
    },
    /// The process was killed. Its memory is the next one's, so its end is awaited, but not for
    /// ever.
    Leaving {
        gone: JoinHandle<()>,
        until: Instant,
        restart_at: Instant,
    },
    Dead {
        restart_at: Instant,
    },
    /// What the next process may read is looked up on disk, which may be slow, or a network share
    /// that never answers.
    Resolving {
        paths: JoinHandle<Vec<PathBuf>>,
        until: Instant,
    },
}

/// How long a killed process may take to go before the next one is started beside it.
const LEAVING: Duration = Duration::from_secs(2);

/// How long looking up what it may read may take. Without an answer the worker may read what the last
/// one might: a job that needs more has it started again.
const RESOLVING: Duration = Duration::from_secs(10);

/// What happens to the worker.
#[derive(Debug)]
pub enum Event {
    /// It is up, and that computes.
    Ready { computing: Computing },
    /// It answers; with the frame's raw bytes.
    Message(FromWorker, Vec<u8>),
    /// It is gone, with all that it held, or could not be started. It will be started again.
    Died,
}

impl Supervisor {
    /// A worker that [`Supervisor::next`] starts at once.
    pub fn new((program, arguments): WorkerCommand) -> Self {
        Self::with_spawn(Box::new(move |readable| {
            let readable = sandbox::arguments(readable);
            let arguments = arguments.iter().cloned().chain(readable).collect();
            Process::spawn(&(program.clone(), arguments))
        }))
    }

    /// As [`Supervisor::new`], over any way to get a process.
    pub fn with_spawn(spawn: Spawn) -> Self {
        let state = State::Dead { restart_at: Instant::now() };
        Self { spawn, readable: None, state, deaths: 0, starts: 0, resolved: None, stuck: None }
    }

    /// Confines the worker to these files, from its next start on.
    pub fn confine(&mut self, readable: Readable) {
        self.readable = Some(readable);
    }

    /// The same for a worker that is confined.
    pub fn readable_mut(&mut self) -> Option<&mut Readable> {
        self.readable.as_mut()
    }

    /// Whether it can be given work.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Alive { ready: true, .. })
    }

    /// Whether there is a process, ready or not.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Alive { .. })
    }

    /// The process's id, while it lives.
    pub fn pid(&self) -> Option<u32> {
        match &self.state {
            State::Alive { process, .. } => process.pid(),
            State::Leaving { .. } | State::Dead { .. } | State::Resolving { .. } => None,
        }
    }

    /// How many times the worker was started again after it had died.
    pub fn restarts(&self) -> u64 {
        self.starts.saturating_sub(1)
    }

    /// Ends the process, which has nothing to do, and starts another one.
    pub fn start_anew(&mut self) {
        self.starts = self.starts.saturating_sub(1);
        self.replace();
    }

    /// Kills the process, which does not do what it is told, and starts another one.
    pub fn replace(&mut self) {
        self.kill(Duration::ZERO);
    }

    /// Kills the process, which has hung. That counts as a death: a worker that hangs again and
    /// again is started more and more slowly.
    pub fn replace_hung(&mut self, reason: &str) {
        self.deaths = self.deaths.saturating_add(1);
        let delay = restart_delay(self.deaths);
        tracing::error!(
            delay_ms = delay.as_millis() as u64,
            "the worker is killed, and started again: {reason}"
        );
        self.kill(delay);
    }

    fn kill(&mut self, delay: Duration) {
        let restart_at = Instant::now() + delay;
        self.state = match std::mem::replace(&mut self.state, State::Dead { restart_at }) {
            State::Alive { process, .. } => {
                let until = Instant::now() + LEAVING;
                State::Leaving { gone: process.kill(), until, restart_at }
            }
            State::Leaving { gone, until, .. } => State::Leaving { gone, until, restart_at },
            State::Dead { .. } | State::Resolving { .. } => State::Dead { restart_at },
        };
    }

    /// Sends a message, without waiting; a dead worker does not get it.
    pub fn send(&self, message: ToWorker) {
        if let State::Alive { process, .. } = &self.state {
            process.send(message);
        }
    }

    /// It has done a job: the next restart need not wait long.
    pub fn has_proved_itself(&mut self) {
        self.deaths = 0;
    }

    /// The next event; also what starts the worker when that is due. Losing interest in the
    /// middle loses nothing.
    pub async fn next(&mut self) -> Event {
        loop {
            match &mut self.state {
                State::Alive { process, ready } => match process.next().await {
                    process::Event::Message(FromWorker::Ready { computing }, _) => {
                        *ready = true;
                        return Event::Ready { computing };
                    }
                    process::Event::Message(message, payload) => {
                        return Event::Message(message, payload);
                    }
                    process::Event::Gone(reason) => return self.died(&reason),
                },
                State::Leaving { gone, until, restart_at } => {
                    let restart_at = *restart_at;
                    if timeout_at(*until, gone).await.is_err() {
                        tracing::warn!(
                            "the killed worker is not gone yet; the next one is started"
                        );
                    }
                    self.state = State::Dead { restart_at };
                }
                State::Dead { restart_at } => {
                    sleep_until(*restart_at).await;
                    // It holds a thread: there is no second beside it.
                    if self.stuck.as_ref().is_some_and(|stuck| !stuck.is_finished()) {
                        match self.start() {
                            Some(died) => return died,
                            None => continue,
                        }
                    }
                    let until = Instant::now() + RESOLVING;
                    let readable = self.readable.clone().unwrap_or_default();
                    let paths = spawn_blocking(move || readable.resolve());
                    self.state = State::Resolving { paths, until };
                }
                State::Resolving { paths, until } => {
                    match timeout_at(*until, paths).await {
                        Ok(paths) => self.resolved = paths.ok().or(self.resolved.take()),
                        Err(_) => self.give_up_resolving(),
                    }
                    if let Some(died) = self.start() {
                        return died;
                    }
                }
            }
        }
    }

    /// The disk does not answer.
    fn give_up_resolving(&mut self) {
        tracing::warn!("a folder of models does not answer; the worker is started all the same");
        let restart_at = Instant::now();
        if let State::Resolving { paths, .. } =
            std::mem::replace(&mut self.state, State::Dead { restart_at })
        {
            self.stuck = Some(paths);
        }
    }

    /// Starts a process that may read what was looked up, else the roots alone.
    fn start(&mut self) -> Option<Event> {
        self.starts += 1;
        let roots = || self.readable.as_ref().map(Readable::roots).unwrap_or_default();
        let paths = self.resolved.clone().unwrap_or_else(roots);
        match (self.spawn)(&paths) {
            Ok(process) => {
                self.state = State::Alive { process, ready: false };
                None
            }
            Err(error) => Some(self.died(&format!("it cannot be started: {error}"))),
        }
    }

    /// Ends the worker for good.
    pub async fn end(self) {
        let gone = match self.state {
            State::Alive { process, .. } => process.kill(),
            State::Leaving { gone, .. } => gone,
            State::Dead { .. } | State::Resolving { .. } => return,
        };
        if timeout(LEAVING, gone).await.is_err() {
            tracing::warn!("the killed worker is not gone yet");
        }
    }

    fn died(&mut self, reason: &str) -> Event {
        self.deaths = self.deaths.saturating_add(1);
        let delay = restart_delay(self.deaths);
        tracing::warn!(
            delay_ms = delay.as_millis() as u64,
            "the worker is gone, it will be started again: {reason}"
        );
        self.state = State::Dead { restart_at: Instant::now() + delay };
        Event::Died
    }
}

/// How long to wait before the restart after that many deaths in a row: 100 ms, doubling to 10 s.
fn restart_delay(deaths: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(10);
    let doublings = deaths.saturating_sub(1).min(16);
    (FIRST * 2u32.pow(doublings)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn restarts_back_off() {
        for (deaths, millis) in
            [(0, 100), (1, 100), (2, 200), (3, 400), (7, 6400), (8, 10_000), (u32::MAX, 10_000)]
        {
            assert_eq!(restart_delay(deaths), Duration::from_millis(millis), "{deaths} deaths");
        }
    }

    #[tokio::test]
    async fn a_job_done_ends_the_row_of_deaths() {
        let mut worker = Supervisor::new(("/nowhere/diffused".into(), Vec::new()));
        for deaths in 1..=2 {
            assert!(matches!(worker.next().await, Event::Died));
            assert_eq!((worker.deaths, worker.restarts()), (deaths, u64::from(deaths) - 1));
        }
        worker.has_proved_itself();
        assert!(matches!(worker.next().await, Event::Died));
        assert_eq!((worker.deaths, worker.restarts()), (1, 2));
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_keeps_no_worker_from_starting() {
        let started = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&started);
        let mut worker = Supervisor::with_spawn(Box::new(move |paths| {
            seen.lock().unwrap().push(paths.to_vec());
            Err(io::ErrorKind::NotFound.into())
        }));
        let models = vec![PathBuf::from("/models")];
        worker.resolved = Some(models.clone());
        let paths = tokio::spawn(std::future::pending());
        worker.state = State::Resolving { paths, until: Instant::now() };
        assert!(matches!(worker.next().await, Event::Died));
        // It is stuck still, and not waited for again.
        assert!(matches!(worker.next().await, Event::Died));
        assert_eq!(*started.lock().unwrap(), [models.clone(), models]);
        assert!(worker.stuck.is_some());
    }
}
