//! Dispatcher and worker as real processes, and what happens when one of them is killed.
//!
//! The processes are this test program again, told to run one of the ignored "tests" at the end:
//! the real worker, a scripted one that hangs on demand, and a parent that can be killed.

use std::{
    fs, io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use diffused::{
    dispatcher::{
        self, CustomJobs, DispatcherConfig, DispatcherShutdown, FailureKind, Handle, JobFailure,
        Outcome, Ticket,
    },
    engine::Backend,
    job::{Job, JobId, JobState},
    modes::{CheckpointRef, Memory, Modes, Order, PipelineSpec, SchedulerId, Size, Timeout, Watch},
    request::GenerateRequest,
    vram::ledger::{Computing, Estimate, Held, PipelineId},
    worker::{
        child,
        process::{Event, Process, WorkerCommand},
        protocol::{self, DrawnReport, FromWorker, LoadReport, ToWorker},
        sandbox::Granted,
    },
};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);
const SIZE: Size = Size { width: 8, height: 8 };

/// Where the processes of a test leave their notes.
const FOLDER: &str = "DIFFUSED_TEST_FOLDER";
const PID_FILE: &str = "pid";

/// This program in one of its other roles.
fn role(name: &str, folder: &Path) -> WorkerCommand {
    let program = std::env::current_exe().unwrap().into_os_string();
    let folder = format!("{FOLDER}={}", folder.display());
    let arguments = [folder.into(), program]
        .into_iter()
        .chain(["--exact", name, "--ignored", "--nocapture"].map(Into::into));
    (PathBuf::from("env"), arguments.collect())
}

/// A dispatcher over the scripted worker.
struct Daemon {
    handle: Handle,
    shutdown: DispatcherShutdown,
    folder: TempDir,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (handle, shutdown) = dispatcher::start(DispatcherConfig {
            queue_max: 64,
            worker_command: role("roles::scripted_worker", folder.path()),
            modes: modes(),
            switch_to_default: false,
            preload: Vec::new(),
            custom: CustomJobs::new(),
            drain_timeout: Duration::from_secs(60),
            journal: None,
            on_end: Box::new(|_| ()),
            stop_grace: DispatcherConfig::STOP_GRACE,
            // The scripted worker sends no heartbeats.
            worker_silence: Duration::from_secs(3600),
            confines_files: false,
            cards: Default::default(),
        })
        .unwrap();
        Self { handle, shutdown, folder }
    }

    async fn submit(&self, prompt: &str) -> Ticket {
        self.handle.submit(generation(prompt)).await.unwrap()
    }

    /// Waits until a worker is drawing that image, in that attempt.
    async fn until_drawing(&self, id: JobId, attempt: u32) {
        until(&format!("attempt {attempt} draws"), || {
            let view = self.handle.job(id).unwrap();
            view.attempts == attempt && view.state == JobState::Running { step: 1, steps: 4 }
        })
        .await;
    }

    fn worker_pid(&self) -> String {
        fs::read_to_string(self.folder.path().join(PID_FILE)).unwrap()
    }
}

fn cpu() -> Computing {
    let text = str::to_owned;
    let (engine, device, precision) = (text("candle"), text("cpu"), text("fp32"));
    Computing { engine, device, precision, name: None }
}

/// Waits until the worker is ready.
async fn ready(worker: &mut Process) -> Computing {
    loop {
        match worker.next().await {
            Event::Message(FromWorker::Alive, _) => {}
            Event::Message(FromWorker::Ready { computing }, _) => return computing,
            other => panic!("{other:?}"),
        }
    }
}

fn generation(prompt: &str) -> Job {
    let name = "a.safetensors".to_owned();
    let request = GenerateRequest { size: SIZE, seed: 1, ..GenerateRequest::of("a", prompt) };
    let checkpoint = CheckpointRef { path: name.clone().into(), name };
    Job::Generation { request, pipeline: PipelineSpec::of(checkpoint) }
}

fn modes() -> Arc<Modes> {
    Arc::new(Modes {
        default_mode: "a".to_owned(),
        model_root: "models".into(),
        lora_root: "loras".into(),
        max_pixels: 1 << 20,
        watch: Watch::Off,
        memory: Memory::default(),
        order: Order::default(),
        jobs: Default::default(),
        modes: Default::default(),
        custom_jobs: Default::default(),
        http: Default::default(),
        webhooks: Default::default(),
        superres: None,
        timeout: Timeout::Off,
        compute: Default::default(),
    })
}

async fn outcome(ticket: Ticket) -> Outcome {
    tokio::time::timeout(DEADLINE, ticket.outcome()).await.expect("an outcome within 30 s")
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < DEADLINE, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kill(pid: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap();
    assert!(status.success(), "kill -9 {pid}");
}

/// Whether the process runs; one that is dead but not yet waited for does not.
fn is_alive(pid: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']))
}

fn is_image(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Images(drawn) if drawn.rgb.len() == 8 * 8 * 3)
}

#[tokio::test]
async fn a_worker_that_is_killed_in_mid_job_costs_a_retry_and_no_more() {
    let daemon = Daemon::start();
    let job = daemon.submit("hang once").await;
    let next = daemon.submit("draw").await;
    let id = job.id();
    daemon.until_drawing(id, 1).await;
    kill(&daemon.worker_pid());
    assert!(is_image(&outcome(job).await));
    assert_eq!(daemon.handle.job(id).unwrap().attempts, 2);
    assert!(is_image(&outcome(next).await));
    assert_eq!(daemon.handle.status().worker_restarts, 1);
    daemon.shutdown.drain().await;
}

#[tokio::test]
async fn a_job_whose_workers_are_killed_twice_fails_and_the_next_one_works() {
    let daemon = Daemon::start();
    let job = daemon.submit("hang").await;
    let next = daemon.submit("draw").await;
    let id = job.id();
    for attempt in 1..=2 {
        daemon.until_drawing(id, attempt).await;
        kill(&daemon.worker_pid());
    }
    let Outcome::Failed(JobFailure { kind, .. }) = outcome(job).await else { panic!("no failure") };
    assert_eq!(kind, FailureKind::WorkerDied);
    assert!(is_image(&outcome(next).await));
    daemon.shutdown.drain().await;
}

#[tokio::test]
async fn a_caller_that_goes_stops_the_worker_at_its_next_step() {
    let daemon = Daemon::start();
    let job = daemon.submit("hang").await;
    let id = job.id();
    daemon.until_drawing(id, 1).await;
    drop(job);
    until("the job is cancelled", || daemon.handle.job(id).unwrap().state == JobState::Cancelled)
        .await;
    assert!(is_image(&outcome(daemon.submit("draw").await).await));
    assert_eq!(daemon.handle.status().worker_restarts, 0);
    daemon.shutdown.drain().await;
}

#[tokio::test]
async fn a_drained_dispatcher_leaves_no_worker_behind() {
    let daemon = Daemon::start();
    assert!(is_image(&outcome(daemon.submit("draw").await).await));
    let pid = daemon.worker_pid();
    assert!(is_alive(&pid));
    daemon.shutdown.drain().await;
    assert!(!is_alive(&pid));
}

#[tokio::test]
async fn the_worker_offers_itself_to_the_oom_killer_and_keeps_its_memory_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Process::spawn(&role("roles::worker", folder.path())).unwrap();
    assert_eq!(ready(&mut worker).await, cpu());
    let pid = worker.pid().unwrap();
    let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    assert_eq!(proc("oom_score_adj").trim(), "1000");
    // glibc cuts the setting up where it lies, so that it is looked for in pieces.
    let environment = proc("environ");
    let set_by_user = std::env::var("GLIBC_TUNABLES").ok();
    let expected = match &set_by_user {
        Some(tunables) => tunables.split(':').collect(),
        None => vec!["glibc.malloc.mmap_max=0", "glibc.malloc.hugetlb=1"],
    };
    for setting in expected {
        assert!(environment.contains(setting), "{setting} in {environment:?}");
    }
    worker.kill().await.unwrap();
    assert!(!is_alive(&pid.to_string()));
}

#[tokio::test]
async fn the_worker_goes_when_the_daemon_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (program, arguments) = role("roles::parent", folder.path());
    let mut parent = Command::new(program).args(arguments).stdout(Stdio::null()).spawn().unwrap();
    let pid_file = folder.path().join(PID_FILE);
    until("the parent's worker is ready", || pid_file.exists()).await;
    let pid = fs::read_to_string(pid_file).unwrap();
    assert!(is_alive(&pid));
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("the worker is gone", || !is_alive(&pid)).await;
}

#[test]
fn a_worker_without_a_socket_says_what_it_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let (program, arguments) = role("roles::worker", folder.path());
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("is started by the daemon"), "{stderr}");
}

/// Not tests: what the processes do that the tests above start.
mod roles {
    use super::*;

    #[test]
    #[ignore = "a process of other tests"]
    fn worker() {
        child::run(Granted::everything, || Ok(Backend::Cpu));
    }

    /// Starts a worker, notes its process id and waits to be killed.
    #[tokio::test]
    #[ignore = "a process of other tests"]
    async fn parent() {
        let Some(folder) = folder() else { return };
        let mut worker = Process::spawn(&role("roles::worker", &folder)).unwrap();
        ready(&mut worker).await;
        note(&folder, worker.pid().unwrap());
        std::future::pending().await
    }

    /// Speaks the protocol without an engine. The prompt says what to do: "draw", or "hang" until
    /// cancelled or killed, or "hang once".
    #[test]
    #[ignore = "a process of other tests"]
    fn scripted_worker() {
        let Some(folder) = folder() else { return };
        note(&folder, std::process::id());
        let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
        let mut answers = socket.try_clone().unwrap();
        let mut say = |message: FromWorker, payload: &[u8]| {
            protocol::write(&mut answers, &message, payload).unwrap();
        };
        say(FromWorker::Ready { computing: cpu() }, &[]);
        let mut prepared = PipelineId::default();
        while let Ok((message, _)) = protocol::read::<ToWorker>(&mut socket) {
            match message {
                ToWorker::Prepare { job, id, .. } => {
                    prepared = id;
                    say(FromWorker::Prepared { job, estimate: Estimate::default() }, &[]);
                }
                ToWorker::Load { job, .. } => say(loaded(job, prepared), &[]),
                ToWorker::Unload { .. } => say(FromWorker::Unloaded { held: Held::default() }, &[]),
                ToWorker::Upscale { .. } => panic!("nothing is to be made larger"),
                ToWorker::Generate { job, request, .. } => {
                    say(FromWorker::Step { job, step: 1, steps: 4 }, &[]);
                    if !hangs(&request.prompt, &folder) {
                        say(FromWorker::Image { job, drawn: drawn() }, &[0; 8 * 8 * 3]);
                    }
                }
                ToWorker::Probe { job, .. } => say(FromWorker::Probed { job }, &[]),
                ToWorker::Cancel { job } => say(FromWorker::Cancelled { job }, &[]),
            }
        }
    }

    fn folder() -> Option<PathBuf> {
        std::env::var_os(FOLDER).map(PathBuf::from)
    }

    /// Notes a process id where the test finds it, whole or not at all.
    fn note(folder: &Path, pid: u32) {
        let draft = folder.join("draft");
        fs::write(&draft, pid.to_string()).unwrap();
        fs::rename(draft, folder.join(PID_FILE)).unwrap();
    }

    fn loaded(job: JobId, id: PipelineId) -> FromWorker {
        let report = LoadReport {
            family: "SD1.x".to_owned(),
            measured_bytes: 7,
            load_ms: 1,
            merge_ms: 0,
            loras: vec![],
        };
        let held = Held { pipelines: vec![id], ..Held::default() };
        FromWorker::Loaded { job, report, held }
    }

    fn drawn() -> DrawnReport {
        let (size, scheduler) = (SIZE, SchedulerId::Ddim);
        DrawnReport {
            size: size.into(),
            images: 1,
            prompt_truncated: None,
            skipped_loras: vec![],
            scheduler: Some(scheduler),
            encode_ms: 1,
            denoise_ms: 2,
            decode_ms: 3,
            peak_bytes: 0,
            steps: 4,
            superres: None,
        }
    }

    fn hangs(prompt: &str, folder: &Path) -> bool {
        let once = folder.join("has hung");
        match prompt {
            "hang" => true,
            "hang once" => !once.exists() && fs::write(once, []).is_ok(),
            _ => false,
        }
    }
}
