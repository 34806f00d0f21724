//! A worker that comes back: starts the process, and starts it again when it died.
//!
//! Owns when a restart is due. Knows nothing of jobs: who asked the worker for something learns
//! from [`Event::Died`] that no answer will come.

use std::{io, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    process::{self, Process, WorkerCommand},
    protocol::{FromWorker, ToWorker},
};
use crate::vram::ledger::Computing;

/// Starts one worker process.
pub type Spawn = Box<dyn FnMut() -> io::Result<Process> + Send>;

/// The worker, whether it lives at the moment or not.
pub struct Supervisor {
    spawn: Spawn,
    state: State,
    /// Deaths in a row, with no job done in between.
    deaths: u32,
    /// How many times a process was started, but for those that were asked for.
    starts: u64,
}

enum State {
    Alive { process: Process, ready: bool },
    Dead { restart_at: Instant },
}

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
    pub fn new(command: WorkerCommand) -> Self {
        Self::with_spawn(Box::new(move || Process::spawn(&command)))
    }

    /// As [`Supervisor::new`], over any way to get a process.
    pub fn with_spawn(spawn: Spawn) -> Self {
        Self { spawn, state: State::Dead { restart_at: Instant::now() }, deaths: 0, starts: 0 }
    }

    /// Whether it can be given work.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Alive { ready: true, .. })
    }

    /// The process's id, while it lives.
    pub fn pid(&self) -> Option<u32> {
        match &self.state {
            State::Alive { process, .. } => process.pid(),
            State::Dead { .. } => None,
        }
    }

    /// How many times the worker was started again after it had died.
    pub fn restarts(&self) -> u64 {
        self.starts.saturating_sub(1)
    }

    /// Ends the process, which has nothing to do, and starts another one.
    pub fn start_anew(&mut self) {
        self.starts = self.starts.saturating_sub(1);
        self.state = State::Dead { restart_at: Instant::now() };
    }

    /// Ends the process, which does not do what it is told, and starts another one.
    pub fn replace(&mut self) {
        self.state = State::Dead { restart_at: Instant::now() };
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
                State::Dead { restart_at } => {
                    sleep_until(*restart_at).await;
                    self.starts += 1;
                    match (self.spawn)() {
                        Ok(process) => self.state = State::Alive { process, ready: false },
                        Err(error) => return self.died(&format!("it cannot be started: {error}")),
                    }
                }
            }
        }
    }

    /// Ends the worker for good.
    pub async fn end(self) {
        if let State::Alive { process, .. } = self.state {
            process.end().await;
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
}
