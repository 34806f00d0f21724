//! A configured command as a custom job: a process group of its own that gets the job's arguments
//! as JSON on its standard input, and whose standard output is the result.
//!
//! Nothing goes through a shell, and of the environment it gets [`ENVIRONMENT`] alone. However the
//! job ends, nothing of its group outlives its turn.

use std::{
    collections::BTreeSet,
    process::{ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin},
    sync::watch,
    time::{Instant, sleep},
};

use crate::{job::JobId, modes::CustomCommand, request::parse_json};

/// What a command sees of the daemon's environment.
const ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];
const JOB_ID: &str = "DIFFUSED_JOB_ID";

/// How long a result may be.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// So much of the end of its standard error is kept.
const ERRORS_KEPT_BYTES: usize = 4 << 10;

/// How long a group has between being asked to end (TERM) and being ended (KILL).
pub const GRACE: Duration = Duration::from_secs(5);
/// How often a group that ends is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The groups whose leaders are not reaped: these numbers are theirs.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Ends all commands at once: for a process that will exit without dropping anything.
pub fn end_all() {
    let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    groups.iter().for_each(|id| signal(*id, libc::SIGKILL));
}

fn signal(group: i32, signal: i32) {
    // SAFETY: no memory is touched. The callers know that the number is a group of ours.
    unsafe { libc::killpg(group, signal) };
}

/// Why a command has no result.
enum Trouble {
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
    let mut group = match Group::spawn(&command, id) {
        Ok(group) => group,
        Err(error) => {
            tracing::error!(job = %id, program = %command.program.display(), "{error}");
            return Err(format!("the command cannot be started: {}", error.kind()));
        }
    };
    let errors = Tail::default();
    let ended = tokio::select! {
        ended = group.work(&args, &errors) => ended,
        () = sleep(command.timeout.duration()) => Err(Trouble::TimedOut),
        _ = stop.wait_for(|stop| *stop) => Err(Trouble::Stopped),
    };
    group.end(ended.is_err()).await;
    let said = errors.into_text();
    if !said.is_empty() {
        tracing::info!(job = %id, "the command says: {said}");
    }
    ended.map(result).map_err(|trouble| reason(&trouble, &command, &said))
}

/// JSON if it is some, else text; text, too, where it would unfold to very many values.
fn result(output: Vec<u8>) -> Value {
    parse_json(&output).unwrap_or_else(|_| String::from_utf8_lossy(&output).into_owned().into())
}

fn reason(trouble: &Trouble, command: &CustomCommand, said: &str) -> String {
    let what = match trouble {
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

/// A process and all that it starts.
struct Group {
    child: Child,
    /// Of the leader and the group. It is nobody else's until the leader is reaped.
    id: i32,
}

impl Group {
    fn spawn(command: &CustomCommand, job: JobId) -> std::io::Result<Self> {
        let mut process = tokio::process::Command::new(&command.program);
        process.args(&command.arguments).env_clear().env(JOB_ID, job.to_string());
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                process.env(name, value);
            }
        }
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = process.process_group(0).kill_on_drop(true).spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let id = id.ok_or_else(|| std::io::Error::other("it has no process id"))?;
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Ok(Self { child, id })
    }

    /// Feeds it and reads what it says, to its end. It is not reaped then.
    async fn work(&mut self, args: &Value, errors: &Tail) -> Result<Vec<u8>, Trouble> {
        let (stdin, stdout, stderr) =
            (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(Trouble::Lost(std::io::Error::other("its streams are gone")));
        };
        let read_errors = async {
            errors.read(stderr).await;
            Ok(())
        };
        let (output, (), ()) =
            tokio::try_join!(read_output(stdout), read_errors, write_args(stdin, args))?;
        while !self.has_ended() {
            sleep(LOOK_EVERY).await;
        }
        match self.exit_status() {
            Some(status) if status.success() => Ok(output),
            Some(status) => Err(Trouble::Exited(status)),
            None => Err(Trouble::Lost(std::io::Error::other("its end was not seen"))),
        }
    }

    /// Ends what is left of it; where it still works, it is asked to first.
    async fn end(mut self, still_works: bool) {
        if still_works {
            signal(self.id, libc::SIGTERM);
            let limit = Instant::now() + GRACE;
            while !self.has_ended() && Instant::now() < limit {
                sleep(LOOK_EVERY).await;
            }
        }
        self.kill();
        let _ = self.child.wait().await; // its status is known
    }

    /// The leader's end, if it has come; it stays there to be reaped.
    fn peek(&self) -> Option<libc::siginfo_t> {
        // SAFETY: all zeroes are a `siginfo_t`.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` is written, and nothing else.
        let result =
            unsafe { libc::waitid(libc::P_PID, self.id as libc::id_t, &raw mut info, flags) };
        // SAFETY: `waitid` sets the process id, to 0 where nothing has ended.
        (result == 0 && unsafe { info.si_pid() } == self.id).then_some(info)
    }

    fn has_ended(&self) -> bool {
        self.peek().is_some()
    }

    fn exit_status(&self) -> Option<ExitStatus> {
        let info = self.peek()?;
        // SAFETY: `waitid` has set it.
        let status = unsafe { info.si_status() };
        // As `wait` packs it.
        let raw =
            if info.si_code == libc::CLD_EXITED { (status & 0xff) << 8 } else { status & 0x7f };
        Some(std::os::unix::process::ExitStatusExt::from_raw(raw))
    }

    /// Ends it, once; from then on it may be reaped.
    fn kill(&self) {
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.remove(&self.id) {
            signal(self.id, libc::SIGKILL);
        }
    }
}

impl Drop for Group {
    /// The job's task was ended before it could end the group.
    fn drop(&mut self) {
        self.kill();
    }
}

async fn write_args(mut stdin: ChildStdin, args: &Value) -> Result<(), Trouble> {
    // Who does not want to read it need not.
    let _ = stdin.write_all(args.to_string().as_bytes()).await;
    Ok(())
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
