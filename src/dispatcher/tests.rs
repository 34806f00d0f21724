//! The dispatcher against a worker that the test itself plays, message by message, at the other
//! end of the socket. (With real processes, killed and all: `tests/worker_process.rs`.)

mod cancelling;
mod cards;
mod ends;
mod events;
mod faults;
mod limits;
mod order;
mod out_of_memory;
mod priority;
mod residency;
mod upscaling;

use std::{collections::BTreeMap, future::ready, io, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::UnixStream, sync::mpsc, task::JoinSet, time::timeout};

use super::*;
use crate::{
    job::{JobState, SwitchOrigin},
    modes::{
        CheckpointRef, Defaults, LoraRef, LoraReport, Memory, Mode, Order, PipelineSpec,
        SchedulerId, Size, Timeout, Watch,
    },
    request::{EncodedImage, GenerateRequest, Source},
    vram::ledger::{Component, Computing, Estimate, Held, PipelineId, Segment},
    worker::{
        process::{self, Process},
        protocol::{self, FromWorker, LoadReport, ToWorker, WorkerError, WorkerErrorKind},
        supervisor::Spawn,
    },
};

const STEPS: u32 = 4;
const SIZE: Size = Size { width: 8, height: 8 };

/// A dispatcher, and its workers as they are started.
struct Daemon {
    handle: Handle,
    shutdown: DispatcherShutdown,
    workers: mpsc::UnboundedReceiver<UnixStream>,
}

impl Daemon {
    fn start() -> Self {
        Self::start_with(|_| ())
    }

    fn start_with(change: impl FnOnce(&mut DispatcherConfig)) -> Self {
        let (started, workers) = mpsc::unbounded_channel();
        let spawn: Spawn = Box::new(move |_| {
            let (ours, theirs) = UnixStream::pair()?;
            started.send(theirs).map_err(io::Error::other)?;
            Ok(Process::attend(ours, None))
        });
        let mut config = config();
        change(&mut config);
        let (handle, shutdown) = start_with(config, Supervisor::with_spawn(spawn)).unwrap();
        Self { handle, shutdown, workers }
    }

    /// The worker that was started next, once it has said that it is ready.
    async fn worker(&mut self) -> Worker {
        self.worker_on("cpu").await
    }

    /// The same; it computes there.
    async fn worker_on(&mut self, device: &str) -> Worker {
        let socket = within(self.workers.recv()).await.expect("a worker is started");
        let mut worker = Worker { socket, held: BTreeMap::new(), prepared: None, reserved: 0 };
        worker.send(FromWorker::Ready { computing: computing("candle", device) }).await;
        worker
    }

    async fn submit(&self, job: Job) -> Ticket {
        within(self.handle.submit(job)).await.unwrap()
    }

    async fn cancel(&self, id: JobId) -> bool {
        within(self.handle.cancel(id)).await
    }

    fn state(&self, id: JobId) -> JobState {
        self.handle.job(id).expect("a known job").state
    }

    /// Waits until what is published is so.
    async fn until(&self, so: impl Fn(&Status) -> bool) {
        let mut status = self.handle.status.clone();
        within(status.wait_for(|status| so(status))).await.unwrap();
    }
}

/// The worker's end of the socket.
struct Worker {
    socket: UnixStream,
    /// Pipelines and their bytes.
    held: BTreeMap<PipelineId, u64>,
    prepared: Option<(PipelineId, u64)>,
    /// What its allocator has taken.
    reserved: u64,
}

impl Worker {
    async fn receive(&mut self) -> ToWorker {
        within(process::receive(&mut self.socket)).await.expect("a message").0
    }

    async fn send(&mut self, message: FromWorker) {
        self.send_with(message, &[]).await;
    }

    async fn send_with(&mut self, message: FromWorker, payload: &[u8]) {
        let frame = protocol::encode(&message, payload).unwrap();
        within(self.socket.write_all(&frame)).await.unwrap();
    }

    /// Is asked what that mode's pipeline would take.
    async fn expect_prepare(&mut self, mode: &str) -> JobId {
        match self.receive().await {
            ToWorker::Prepare { job, id, pipeline: asked, .. } if asked == pipeline(mode) => {
                self.prepared = Some((id, 0));
                job
            }
            other => panic!("{other:?} where '{mode}' was to be prepared"),
        }
    }

    /// Says that it would take so much.
    async fn send_prepared(&mut self, job: JobId, bytes: u64) {
        let (id, prepared) = self.prepared.as_mut().expect("something was prepared");
        *prepared = bytes;
        let (id, component) = (*id, "unet".to_owned());
        let (stored, dtype) = ("fp32".to_owned(), "fp32".to_owned());
        let mut segments = segments(&self.held);
        segments.push(Segment { component: component.clone(), users: vec![id], bytes });
        let component = Component { name: component, stored, dtype, file_bytes: bytes, bytes };
        let estimate =
            Estimate { components: vec![component], segments, working_bytes: 0, other_bytes: 0 };
        self.send(FromWorker::Prepared { job, estimate }).await;
    }

    /// Is told to load that mode's pipeline, and who goes first.
    async fn expect_load_of(&mut self, mode: &str, bytes: u64) -> (JobId, usize) {
        let job = self.expect_prepare(mode).await;
        self.send_prepared(job, bytes).await;
        match self.receive().await {
            ToWorker::Load { job: read, unload, .. } if read == job => {
                unload.iter().for_each(|id| assert!(self.held.remove(id).is_some(), "{id:?}"));
                (job, unload.len())
            }
            other => panic!("{other:?} where '{mode}' was to be read"),
        }
    }

    async fn expect_load(&mut self, mode: &str) -> JobId {
        let (job, gone) = self.expect_load_of(mode, 1).await;
        assert_eq!(gone, 0, "there is room");
        job
    }

    async fn load(&mut self, mode: &str) {
        let job = self.expect_load(mode).await;
        self.send_loaded(job).await;
    }

    /// Is told to draw a step that nobody looks at.
    async fn expect_probe(&mut self) -> JobId {
        match self.receive().await {
            ToWorker::Probe { job, pipeline, .. } if self.held.contains_key(&pipeline) => job,
            other => panic!("{other:?} where a step was to be drawn"),
        }
    }

    async fn send_loaded(&mut self, job: JobId) {
        self.send_loaded_with(job, vec![]).await;
    }

    async fn send_loaded_with(&mut self, job: JobId, loras: Vec<LoraReport>) {
        self.held.extend(self.prepared.take());
        let report = LoadReport {
            family: "SD1.x".to_owned(),
            measured_bytes: 7,
            load_ms: 1,
            merge_ms: 0,
            loras,
        };
        self.send(FromWorker::Loaded { job, report, held: self.holding() }).await;
    }

    fn holding(&self) -> Held {
        let segments = segments(&self.held);
        let allocated_bytes = self.held.values().sum();
        let pipelines = self.held.keys().copied().collect();
        let reserved_bytes = self.reserved;
        Held { pipelines, segments, allocated_bytes, reserved_bytes, ..Held::default() }
    }

    /// Is told to let so many pipelines go, and does.
    async fn unload(&mut self, count: usize) {
        match self.receive().await {
            ToWorker::Unload { pipelines, .. } if pipelines.len() == count => {
                pipelines.iter().for_each(|id| assert!(self.held.remove(id).is_some(), "{id:?}"));
            }
            other => panic!("{other:?} where {count} pipelines were to go"),
        }
        self.send(FromWorker::Unloaded { held: self.holding() }).await;
    }

    /// Its files are refused.
    async fn fail_to_prepare(&mut self, mode: &str) {
        let job = self.expect_prepare(mode).await;
        self.send(FromWorker::Failed { job, error: bad(mode), held: None }).await;
    }

    /// It cannot be read, after so many had to go for it.
    async fn fail_to_load(&mut self, mode: &str, bytes: u64, gone: usize) {
        let (job, unloaded) = self.expect_load_of(mode, bytes).await;
        assert_eq!(unloaded, gone);
        let held = Some(self.holding());
        self.send(FromWorker::Failed { job, error: bad(mode), held }).await;
    }

    async fn expect_generate(&mut self, mode: &str) -> JobId {
        match self.receive().await {
            ToWorker::Generate { job, pipeline, request, .. } if request.mode == mode => {
                assert!(self.held.contains_key(&pipeline), "{pipeline:?} is not loaded");
                job
            }
            other => panic!("{other:?} where '{mode}' was to be drawn"),
        }
    }

    async fn draw(&mut self, mode: &str) {
        let job = self.expect_generate(mode).await;
        self.send_image(job).await;
    }

    async fn send_image(&mut self, job: JobId) {
        self.send_with(FromWorker::Image { job, drawn: report() }, &[1; 8 * 8 * 3]).await;
    }

    /// Does what it is told, for as long as it is told anything.
    async fn work(mut self) {
        while let Ok((message, _)) = process::receive(&mut self.socket).await {
            match message {
                ToWorker::Prepare { job, id, .. } => {
                    self.prepared = Some((id, 1));
                    self.send_prepared(job, 1).await;
                }
                ToWorker::Load { job, .. } => self.send_loaded(job).await,
                ToWorker::Unload { .. } => panic!("there is room for all"),
                ToWorker::Generate { job, .. } | ToWorker::Upscale { job, .. } => {
                    self.send_image(job).await;
                }
                ToWorker::Probe { job, .. } => self.send(FromWorker::Probed { job }).await,
                ToWorker::Cancel { .. } => {}
            }
        }
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(20), future).await.expect("an answer within 20 s")
}

fn segments(held: &BTreeMap<PipelineId, u64>) -> Vec<Segment> {
    let segment = |(id, bytes): (&PipelineId, &u64)| Segment {
        component: "unet".to_owned(),
        users: vec![*id],
        bytes: *bytes,
    };
    held.iter().map(segment).collect()
}

fn computing(engine: &str, device: &str) -> Computing {
    let text = str::to_owned;
    Computing { engine: text(engine), device: text(device), precision: text("fp32"), name: None }
}

fn bad(mode: &str) -> WorkerError {
    WorkerError { kind: WorkerErrorKind::UnusableModel, message: format!("{mode} is bad") }
}

fn config() -> DispatcherConfig {
    DispatcherConfig {
        queue_max: 64,
        worker_command: ("/nowhere/diffused".into(), Vec::new()),
        modes: modes(Memory::default(), &[]),
        switch_to_default: false,
        preload: Vec::new(),
        custom: CustomJobs::new(),
        drain_timeout: Duration::from_secs(60),
        journal: None,
        on_end: Box::new(|_| ()),
        stop_grace: DispatcherConfig::STOP_GRACE,
        // The worker of these tests sends no heartbeats.
        worker_silence: Duration::from_secs(3600),
        confines_files: false,
        cards: Default::default(),
    }
}

/// The modes a, a2, b, c and d, of which some are pinned.
fn modes(memory: Memory, pinned: &[&str]) -> Arc<Modes> {
    let mode = |name: &str| {
        let mode = Mode {
            name: name.to_owned(),
            pipeline: pipeline(name),
            defaults: Defaults::default(),
            pinned: pinned.contains(&name),
            preload: false,
            metadata: serde_json::Map::new(),
            timeout: Timeout::Off,
        };
        (mode.name.clone(), Arc::new(mode))
    };
    Arc::new(Modes {
        default_mode: "a".to_owned(),
        model_root: "models".into(),
        lora_root: "loras".into(),
        max_pixels: 1 << 20,
        watch: Watch::Off,
        memory,
        order: Order::default(),
        jobs: Default::default(),
        modes: ["a", "a2", "b", "c", "d"].map(mode).into(),
        custom_jobs: Default::default(),
        webhooks: Default::default(),
        http: Default::default(),
        superres: None,
        timeout: Timeout::Off,
        compute: Default::default(),
    })
}

fn pipeline(mode: &str) -> PipelineSpec {
    // "a" and "a2" are two modes over one file.
    let name = format!("{}.safetensors", mode.trim_end_matches('2'));
    PipelineSpec::of(CheckpointRef { path: name.clone().into(), name })
}

fn generation(mode: &str) -> Job {
    let request = GenerateRequest {
        size: SIZE,
        steps: STEPS,
        seed: 1,
        ..GenerateRequest::of(mode, "a lighthouse")
    };
    Job::Generation { request, pipeline: pipeline(mode) }
}

fn switch(mode: &str) -> Job {
    let asked_by = SwitchOrigin::User;
    let (mode, pipeline) = (mode.to_owned(), pipeline(mode));
    Job::ModeSwitch { mode, pipeline, asked_by, timeout_secs: None }
}

fn custom(name: &str, args: Value) -> Job {
    Job::Custom { name: name.to_owned(), args: args.into() }
}

fn report() -> DrawnReport {
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
        peak_bytes: 11,
        steps: STEPS,
        superres: None,
    }
}

fn drawn() -> Outcome {
    Outcome::Images(Arc::new(DrawnImages { rgb: vec![1; 8 * 8 * 3], report: report() }))
}

fn failed_with(outcome: Outcome) -> (FailureKind, String) {
    match outcome {
        Outcome::Failed(failure) => (failure.kind, failure.message),
        other => panic!("{other:?} where a failure was due"),
    }
}

async fn until(so: impl Fn() -> bool) {
    let look = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within(look).await;
}

async fn outcome(ticket: Ticket) -> Outcome {
    within(ticket.outcome()).await
}
