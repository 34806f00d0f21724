//! A configured command as a custom job: it gets the job's arguments as JSON on its standard input,
//! and its standard output is the result.
//!
//! Nothing goes through a shell, and of the environment it gets [`ENVIRONMENT`] alone. A process of
//! our own stands between the daemon and the command ([`supervisor`]): however the job or the daemon
//! ends, nothing that the command has started outlives it.

pub mod supervisor;

use std::{
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt},
    },
    process::{ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{ReadHalf, WriteHalf},
    },
    process::Child,
    sync::watch,
    time::{sleep, timeout},
};

use self::supervisor::{Reply, TERMINATE};
use crate::{
    job::JobId,
    modes::CustomCommand,
    request::parse_json,
    worker::process::{NAME, this_program},
};

/// What a command sees of the daemon's environment.
const ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];
const JOB_ID: &str = "DIFFUSED_JOB_ID";

/// How long a result may be.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// So much of the end of its standard error is kept.
const ERRORS_KEPT_BYTES: usize = 4 << 10;

/// How long a command has between being asked to end (TERM) and being ended (KILL).
pub const GRACE: Duration = Duration::from_secs(5);
/// A supervisor that has not ended its command by then is stuck: in a process of another user, say.
const SUPERVISOR_ENDS_WITHIN: Duration = Duration::from_secs(20);

/// Why a command has no result.
enum Trouble {
    NotStarted(std::io::Error),
    TimedOut,
    Stopped,
    TooMuch,
    Exited(ExitStatus),
    Lost(std::io::Error),
}

/// Runs a command to its end, or until `stop` says so.
pub async fn run(
    command: CustomCommand,
    id: JobId,
    args: Value,
    mut stop: watch::Receiver<bool>,
) -> Result<Value, String> {
    let mut supervised = match Supervised::spawn(&command, id) {
        Ok(supervised) => supervised,
        Err(error) => return Err(not_started(&command, id, &error)),
    };
    let errors = Tail::default();
    let ended = tokio::select! {
        ended = supervised.work(&args, &errors) => ended,
        () = sleep(command.timeout.duration()) => Err(Trouble::TimedOut),
        _ = stop.wait_for(|stop| *stop) => Err(Trouble::Stopped),
    };
    supervised.end(ended.is_err()).await;
    let said = errors.into_text();
    if !said.is_empty() {
        tracing::info!(job = %id, "the command says: {said}");
    }
    ended.map(result).map_err(|trouble| match trouble {
        Trouble::NotStarted(error) => not_started(&command, id, &error),
        trouble => reason(&trouble, &command, &said),
    })
}

fn not_started(command: &CustomCommand, id: JobId, error: &std::io::Error) -> String {
    tracing::error!(job = %id, program = %command.program.display(), "{error}");
    format!("the command cannot be started: {}", error.kind())
}

/// JSON if it is some, else text; text, too, where it would unfold to very many values.
fn result(output: Vec<u8>) -> Value {
    parse_json(&output).unwrap_or_else(|_| String::from_utf8_lossy(&output).into_owned().into())
}

fn reason(trouble: &Trouble, command: &CustomCommand, said: &str) -> String {
    let what = match trouble {
        Trouble::NotStarted(error) => format!("cannot be started: {}", error.kind()),
        Trouble::TimedOut => {
            format!("took longer than its timeout, {}, and was ended", command.timeout)
        }
        Trouble::Stopped => "was stopped".to_owned(),
        Trouble::TooMuch => {
            format!("wrote more than {} MiB and was ended", MAX_OUTPUT_BYTES >> 20)
        }
        Trouble::Exited(status) => format!("ended with {status}"),
        Trouble::Lost(error) => format!("was lost: {}", error.kind()),
    };
    let colon = if said.is_empty() { "" } else { ": " };
    format!("the command {what}{colon}{said}")
}

/// A command's supervisor. It ends the command as soon as `control` is closed, by whatever: so this is
/// dropped, or the daemon killed, at any time.
struct Supervised {
    child: Child,
    control: UnixStream,
    /// Whether it has got the arguments; only then has it started the command.
    has_args: bool,
}

impl Supervised {
    fn spawn(command: &CustomCommand, job: JobId) -> std::io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut process = tokio::process::Command::new(this_program()?);
        process.arg0(NAME);
        process.args([supervisor::SUBCOMMAND, "--"]).arg(&command.program).args(&command.arguments);
        process.env_clear().env(JOB_ID, job.to_string());
        for name in ENVIRONMENT.into_iter().chain([supervisor::ITS_OWN]) {
            if let Some(value) = std::env::var_os(name) {
                process.env(name, value);
            }
        }
        process.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: an interrupt from the terminal is for the daemon.
        let child = process.process_group(0).spawn()?;
        Ok(Self { child, control: UnixStream::from_std(ours)?, has_args: false })
    }

    /// Feeds the command and reads what it says, to its end.
    async fn work(&mut self, args: &Value, errors: &Tail) -> Result<Vec<u8>, Trouble> {
        let (Some(stdout), Some(stderr)) = (self.child.stdout.take(), self.child.stderr.take())
        else {
            return Err(Trouble::Lost(std::io::Error::other("its streams are gone")));
        };
        let read_errors = async {
            errors.read(stderr).await;
            Ok(())
        };
        let (from, to) = self.control.split();
        let has_args = &mut self.has_args;
        let write_args = async {
            write_args(to, args).await?;
            *has_args = true;
            Ok(())
        };
        let (output, (), (), reply) =
            tokio::try_join!(read_output(stdout), read_errors, write_args, read_reply(from))?;
        match reply {
            Reply::NotStarted(errno) => {
                Err(Trouble::NotStarted(std::io::Error::from_raw_os_error(errno)))
            }
            Reply::Ended(status) => match ExitStatus::from_raw(status) {
                status if status.success() => Ok(output),
                status => Err(Trouble::Exited(status)),
            },
        }
    }

    /// Waits until nothing is left of the command; where it may still work, it is asked to end first.
    async fn end(mut self, may_still_work: bool) {
        // It may have ended.
        let _ = match (may_still_work, self.has_args) {
            (true, true) => self.control.write_all(&[TERMINATE]).await,
            (true, false) => self.control.shutdown().await,
            (false, _) => Ok(()),
        };
        if timeout(SUPERVISOR_ENDS_WITHIN, self.child.wait()).await.is_err() {
            tracing::error!("a command cannot be ended: processes of it may be left");
            let _ = self.child.start_kill(); // it may have ended
        }
    }
}

async fn write_args(mut to: WriteHalf<'_>, args: &Value) -> Result<(), Trouble> {
    let args = args.to_string();
    let sent = async {
        to.write_all(&(args.len() as u64).to_le_bytes()).await?;
        to.write_all(args.as_bytes()).await
    };
    sent.await.map_err(Trouble::Lost)
}

async fn read_reply(mut from: ReadHalf<'_>) -> Result<Reply, Trouble> {
    let mut reply = [0; Reply::BYTES];
    from.read_exact(&mut reply).await.map_err(Trouble::Lost)?;
    Ok(Reply::decode(reply))
}

async fn read_output(stdout: impl AsyncRead + Unpin) -> Result<Vec<u8>, Trouble> {
    let mut output = Vec::new();
    let mut stdout = stdout.take(MAX_OUTPUT_BYTES as u64 + 1);
    stdout.read_to_end(&mut output).await.map_err(Trouble::Lost)?;
    if output.len() > MAX_OUTPUT_BYTES { Err(Trouble::TooMuch) } else { Ok(output) }
}

/// The end of a stream, as far as it was read.
#[derive(Default)]
struct Tail(Mutex<Vec<u8>>);

impl Tail {
    async fn read(&self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = [0; ERRORS_KEPT_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..count]);
            let too_many = kept.len().saturating_sub(ERRORS_KEPT_BYTES);
            kept.drain(..too_many);
        }
    }

    fn into_text(self) -> String {
        let kept = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let start = if kept.len() == ERRORS_KEPT_BYTES { "…" } else { "" };
        format!("{start}{}", String::from_utf8_lossy(&kept).trim())
    }
}
