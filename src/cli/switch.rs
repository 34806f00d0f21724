//! `diffused switch`: makes a mode of a daemon that runs the current one.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    client::{Address, Answer, Client, ClientError},
    key::{KeyError, admin_key},
};

/// How often the job is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// What takes no longer needs no word on how far it is.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Arguments {
    /// The mode, as `diffused models` lists it
    #[arg(value_name = "NAME")]
    mode: String,
    /// Do not wait for its end: the switch is done when the jobs before it are
    #[arg(long)]
    no_wait: bool,
    /// How long the switch may wait for the jobs before it; if they take longer, nothing is switched
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: Option<u32>,
    #[command(flatten)]
    address: Address,
    /// A file with the admin key, where the daemon has one; the variable DIFFUSED_ADMIN_KEY has the
    /// key itself
    #[arg(long, value_name = "FILE", env = "DIFFUSED_ADMIN_KEY_FILE")]
    admin_key_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum SwitchError {
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Failed(String),
}

pub fn run(arguments: &Arguments) -> ExitCode {
    super::print(switch(arguments))
}

fn switch(arguments: &Arguments) -> Result<String, SwitchError> {
    let Arguments { mode, no_wait, timeout, address, admin_key_file } = arguments;
    let client = Client::new(address, admin_key(admin_key_file.as_deref())?);
    let mut body = json!({"mode": mode});
    if let Some(secs) = timeout {
        body["timeout_secs"] = (*secs).into();
    }
    let Answer { body, job } = client.post("/api/modes/switch", &body)?;
    let message = body["message"].as_str().unwrap_or_default();
    match job {
        Some(job) if *no_wait => Ok(format!("{message} (job {job})\n")),
        Some(job) => wait(&client, &job, mode),
        None => Ok(format!("{message}\n")),
    }
}

fn wait(client: &Client, job: &str, mode: &str) -> Result<String, SwitchError> {
    let began = Instant::now();
    let mut line = ProgressLine { is_terminal: io::stderr().is_terminal(), shown: false };
    loop {
        let job = client.get(&format!("/api/jobs/{job}"))?;
        match job["state"].as_str() {
            Some("done") => {
                line.clear();
                let took = began.elapsed().as_secs_f64();
                return Ok(format!("mode '{mode}' is the current one ({took:.1} s)\n"));
            }
            Some("failed") => {
                let reason = job["reason"].as_str().unwrap_or("the switch failed");
                return Err(SwitchError::Failed(reason.to_owned()));
            }
            Some("cancelled") => {
                return Err(SwitchError::Failed("the switch was cancelled".to_owned()));
            }
            _ if began.elapsed() >= PATIENCE => line.show(&progress(mode, &job)),
            _ => {}
        }
        thread::sleep(INTERVAL);
    }
}

/// How far the switch is.
fn progress(mode: &str, job: &Value) -> String {
    match (job["state"].as_str(), job["jobs_before"].as_u64(), job["percent"].as_u64()) {
        (Some("queued"), Some(1), _) => format!("mode '{mode}' waits for one job"),
        (Some("queued"), Some(jobs), _) => format!("mode '{mode}' waits for {jobs} jobs"),
        (Some("loading"), _, Some(percent)) => format!("mode '{mode}' is loaded: {percent} %"),
        _ => format!("mode '{mode}' is on its way"),
    }
}

/// One line on stderr that is written over, where somebody looks at it.
struct ProgressLine {
    is_terminal: bool,
    shown: bool,
}

impl ProgressLine {
    fn show(&mut self, text: &str) {
        if self.is_terminal {
            // Where nobody can be told, nobody is.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
            self.shown = true;
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_words() {
        for (job, expected) in [
            (json!({"state": "queued", "jobs_before": 1}), "mode 'a' waits for one job"),
            (json!({"state": "queued", "jobs_before": 3}), "mode 'a' waits for 3 jobs"),
            (json!({"state": "loading", "percent": 42}), "mode 'a' is loaded: 42 %"),
            (json!({"state": "running"}), "mode 'a' is on its way"),
        ] {
            assert_eq!(progress("a", &job), expected);
        }
    }
}
