//! The dispatcher against a worker that the test itself plays, message by message, at the other
//! end of the socket. (With real processes, killed and all: `tests/worker_process.rs`.)

mod cancelling;
mod ends;
mod faults;
mod order;

use std::{convert::Infallible, future::ready, io, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::UnixStream, sync::mpsc, task::JoinSet, time::timeout};

use super::*;
use crate::{
    job::{JobState, SwitchOrigin},
    modes::{CheckpointRef, LoraRef, LoraReport, SchedulerId, Size},
    request::{EncodedImage, GenerateRequest, Source},
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
        let spawn: Spawn = Box::new(move || {
            let (ours, theirs) = UnixStream::pair()?;
            started.send(theirs).map_err(io::Error::other)?;
            Ok(Process::attend(ours, None))
        });
        let mut config = config();
        change(&mut config);
        let (handle, shutdown) = start_with(config, Supervisor::with_spawn(spawn));
        Self { handle, shutdown, workers }
    }

    /// The worker that was started next, once it has said that it is ready.
    async fn worker(&mut self) -> Worker {
        let mut worker = Worker(within(self.workers.recv()).await.expect("a worker is started"));
        worker.send(FromWorker::Ready { device: "cpu".to_owned() }).await;
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
struct Worker(UnixStream);

impl Worker {
    async fn receive(&mut self) -> ToWorker {
        within(process::receive(&mut self.0)).await.expect("a message").0
    }

    async fn send(&mut self, message: FromWorker) {
        self.send_with(message, &[]).await;
    }

    async fn send_with(&mut self, message: FromWorker, payload: &[u8]) {
        let frame = protocol::encode(&message, payload).unwrap();
        within(self.0.write_all(&frame)).await.unwrap();
    }

    /// Is told to load that mode's pipeline.
    async fn expect_load(&mut self, mode: &str) -> JobId {
        match self.receive().await {
            ToWorker::Load { job, pipeline: asked } if asked == pipeline(mode) => job,
            other => panic!("{other:?} where '{mode}' was to be loaded"),
        }
    }

    async fn load(&mut self, mode: &str) {
        let job = self.expect_load(mode).await;
        self.send_loaded(job).await;
    }

    async fn send_loaded(&mut self, job: JobId) {
        self.send_loaded_with(job, vec![]).await;
    }

    async fn send_loaded_with(&mut self, job: JobId, loras: Vec<LoraReport>) {
        let report = LoadReport {
            family: "SD1.x".to_owned(),
            weights_bytes: 7,
            load_ms: 1,
            merge_ms: 0,
            loras,
        };
        self.send(FromWorker::Loaded { job, report }).await;
    }

    async fn fail_to_load(&mut self, mode: &str, still_loaded: bool) {
        let job = self.expect_load(mode).await;
        let error =
            WorkerError { kind: WorkerErrorKind::UnusableModel, message: format!("{mode} is bad") };
        self.send(FromWorker::Failed { job, error, still_loaded }).await;
    }

    async fn expect_generate(&mut self, mode: &str) -> JobId {
        match self.receive().await {
            ToWorker::Generate { job, request } if request.mode == mode => job,
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
        while let Ok((message, _)) = process::receive(&mut self.0).await {
            match message {
                ToWorker::Load { job, .. } => self.send_loaded(job).await,
                ToWorker::Generate { job, .. } => self.send_image(job).await,
                ToWorker::Cancel { .. } => {}
            }
        }
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(20), future).await.expect("an answer within 20 s")
}

fn config() -> DispatcherConfig {
    DispatcherConfig {
        queue_max: 64,
        worker_command: ("/nowhere/diffused".into(), Vec::new()),
        selected_mode: "a".to_owned(),
        preload: None,
        custom: CustomJobs::new(),
    }
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
    Job::ModeSwitch { mode: mode.to_owned(), pipeline: pipeline(mode), asked_by }
}

fn custom(name: &str, args: Value) -> Job {
    Job::Custom { name: name.to_owned(), args }
}

fn report() -> DrawnReport {
    let (size, scheduler) = (SIZE, SchedulerId::Ddim);
    DrawnReport {
        size,
        images: 1,
        prompt_truncated: None,
        skipped_loras: vec![],
        scheduler,
        encode_ms: 1,
        denoise_ms: 2,
        decode_ms: 3,
    }
}

fn drawn() -> Outcome {
    Outcome::Images(DrawnImages { rgb: vec![1; 8 * 8 * 3], report: report() })
}

fn failed_with(outcome: Outcome) -> (FailureKind, String) {
    match outcome {
        Outcome::Failed(failure) => (failure.kind, failure.message),
        other => panic!("{other:?} where a failure was due"),
    }
}

async fn outcome(ticket: Ticket) -> Outcome {
    within(ticket.outcome()).await
}
