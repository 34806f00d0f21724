//! The worker process from the inside: one loop around the engine.
//!
//! Owns the device and the loaded pipeline, and does what it is told. Knows nothing of the queue,
//! of modes or of HTTP. The only part of the daemon that may use the engine.

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    ops::ControlFlow,
    os::{fd::AsFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::protocol::{
    self, DrawnReport, FromWorker, LoadReport, ToWorker, WorkerError, WorkerErrorKind,
};
use crate::{
    engine::{DrawError, Drawn, Pipeline, Prepared, Step, checkpoint, lora::LoraCache},
    job::JobId,
    modes::{LoraReport, PipelineSpec},
    request::GenerateRequest,
};

#[cfg(test)]
mod tests;

/// What the engine of this version computes on.
const DEVICE: &str = "cpu";

/// How often a load reports its progress at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Does what the daemon at the other end of the standard input says, until it hangs up.
pub fn run() -> ExitCode {
    volunteer_for_the_oom_killer();
    let socket = match socket_on_stdin() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!(
                "the worker is started by the daemon, with a socket as its standard input: {error}"
            );
            return ExitCode::FAILURE;
        }
    };
    // Where the daemon is gone there is nobody to work for, whatever the engine is doing just
    // now. This serves where PR_SET_PDEATHSIG would not: that signal comes when the *thread* that
    // spawned the child ends, which in the daemon is one of a pool's.
    match serve(socket, || std::process::exit(0)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the worker lost its connection to the daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

/// If memory runs out, this process shall go and not the daemon with its queue. Best effort.
fn volunteer_for_the_oom_killer() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::debug!("oom_score_adj stays as it is: {error}");
    }
}

fn socket_on_stdin() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Refused by anything that is not a socket of this kind.
    socket.peer_addr()?;
    Ok(socket)
}

/// Works until the connection ends; `on_hang_up` is called at once then, on another thread.
fn serve(socket: UnixStream, on_hang_up: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let reading = socket.try_clone()?;
    let (tasks, to_do) = mpsc::channel();
    thread::Builder::new().name("commands".to_owned()).spawn(move || {
        let end = read_commands(reading, &tasks);
        tracing::debug!("the daemon hung up: {end}");
        on_hang_up();
    })?;
    let mut worker = Worker { socket, pipeline: None, loras: LoraCache::new() };
    worker.send(&FromWorker::Ready { device: DEVICE.to_owned() }, &[])?;
    // The engine works on the main thread: what that one frees stays mapped (see
    // `process::ALLOCATOR`), while glibc gives other threads arenas of their own, with small heaps.
    to_do.into_iter().try_for_each(|task| worker.work(task))
}

/// Something to do that takes its time.
enum Task {
    Load { job: JobId, pipeline: PipelineSpec },
    Generate { job: JobId, request: GenerateRequest, cancelled: Arc<AtomicBool> },
}

/// Hands tasks on and raises the flags of those that are cancelled. Returns why it ended.
fn read_commands(mut from: UnixStream, tasks: &mpsc::Sender<Task>) -> io::Error {
    let mut flags: HashMap<JobId, Weak<AtomicBool>> = HashMap::new();
    loop {
        let task = match protocol::read::<ToWorker>(&mut from) {
            Ok((ToWorker::Load { job, pipeline }, _)) => Task::Load { job, pipeline },
            Ok((ToWorker::Generate { job, request }, _)) => {
                let cancelled = Arc::new(AtomicBool::new(false));
                flags.retain(|_, flag| flag.strong_count() > 0);
                flags.insert(job, Arc::downgrade(&cancelled));
                Task::Generate { job, request, cancelled }
            }
            Ok((ToWorker::Cancel { job }, _)) => {
                if let Some(flag) = flags.get(&job).and_then(Weak::upgrade) {
                    flag.store(true, Ordering::Relaxed);
                }
                continue;
            }
            Err(error) => return error,
        };
        if tasks.send(task).is_err() {
            return io::Error::other("the engine's thread has stopped");
        }
    }
}

/// The engine's side: what is loaded, and where the answers go.
struct Worker {
    socket: UnixStream,
    pipeline: Option<Pipeline>,
    loras: LoraCache,
}

impl Worker {
    /// Does one task. Fails only where the daemon cannot be told of it any more.
    fn work(&mut self, task: Task) -> io::Result<()> {
        match task {
            Task::Load { job, pipeline } => self.load(job, &pipeline),
            Task::Generate { job, request, cancelled } => self.generate(job, &request, &cancelled),
        }
    }

    fn load(&mut self, job: JobId, spec: &PipelineSpec) -> io::Result<()> {
        let started = Instant::now();
        let prepared = match guarded(|| open(spec, &mut self.loras)) {
            Ok(prepared) => prepared,
            Err(error) => {
                return self.send(&FromWorker::Failed { job, error, still_loaded: true }, &[]);
            }
        };
        // Both do not fit into memory at once; what they have in common stays.
        let old = self.pipeline.take();
        let on_progress = progress(&self.socket, job);
        let loaded = guarded(|| {
            let kept = old.map(|old| old.layers().in_common_with(prepared.layers()));
            let loaded = prepared.load(kept.unwrap_or_default(), &on_progress);
            loaded.map_err(|error| unusable(spec, &error))
        });
        // Before the daemon measures what the pipeline costs: the file's pages are not part of it.
        drop(prepared);
        match loaded {
            Ok(pipeline) => {
                let report = LoadReport {
                    family: pipeline.facts().family.name().to_owned(),
                    weights_bytes: pipeline.weights_bytes(),
                    load_ms: millis(started.elapsed()),
                    merge_ms: millis(pipeline.cost().merging),
                    loras: pipeline.loras().to_vec(),
                };
                self.pipeline = Some(pipeline);
                self.send(&FromWorker::Loaded { job, report }, &[])
            }
            Err(error) => self.send(&FromWorker::Failed { job, error, still_loaded: false }, &[]),
        }
    }

    fn generate(
        &mut self,
        job: JobId,
        request: &GenerateRequest,
        cancelled: &AtomicBool,
    ) -> io::Result<()> {
        let Some(pipeline) = &self.pipeline else {
            let error = internal("no pipeline is loaded");
            return self.send(&FromWorker::Failed { job, error, still_loaded: true }, &[]);
        };
        let socket = &self.socket;
        let mut on_step = |Step { step, steps }| {
            if cancelled.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            // If the daemon is gone, the other thread ends the process.
            let _ = send(socket, &FromWorker::Step { job, step, steps }, &[]);
            ControlFlow::Continue(())
        };
        match guarded(|| Ok(pipeline.draw(request, &mut on_step))) {
            Ok(Ok(drawn)) => {
                let (drawn, rgb) = report(drawn, pipeline.loras());
                self.send(&FromWorker::Image { job, drawn }, &rgb)
            }
            Ok(Err(DrawError::Cancelled)) => self.send(&FromWorker::Cancelled { job }, &[]),
            Ok(Err(error)) => {
                let error = draw_error(job, &error);
                self.send(&FromWorker::Failed { job, error, still_loaded: true }, &[])
            }
            Err(error) => {
                // What a panic left of the pipeline's buffers is anybody's guess.
                self.pipeline = None;
                self.send(&FromWorker::Failed { job, error, still_loaded: false }, &[])
            }
        }
    }

    fn send(&self, message: &FromWorker, payload: &[u8]) -> io::Result<()> {
        send(&self.socket, message, payload)
    }
}

fn send(mut to: &UnixStream, message: &FromWorker, payload: &[u8]) -> io::Result<()> {
    protocol::write(&mut to, message, payload)
}

/// Runs a piece of the engine; a panic in it (which the log has by then) costs the job alone.
fn guarded<T>(engine: impl FnOnce() -> Result<T, WorkerError>) -> Result<T, WorkerError> {
    // Unwind safe: the callers drop the pipeline that was worked on.
    catch_unwind(AssertUnwindSafe(engine))
        .unwrap_or_else(|_| Err(internal("the engine failed; the daemon's log says why")))
}

fn internal(message: &str) -> WorkerError {
    WorkerError { kind: WorkerErrorKind::Internal, message: message.to_owned() }
}

/// Opens a pipeline's files and looks through all that will be needed of it, without reading weights:
/// what is refused here costs nothing that is loaded.
fn open(spec: &PipelineSpec, loras: &mut LoraCache) -> Result<Prepared, WorkerError> {
    Prepared::open(spec, loras).map_err(|error| unusable(spec, &error))
}

/// The engine's reason; it names the file as the user does, and the log has its place as well.
fn unusable(spec: &PipelineSpec, error: &checkpoint::Error) -> WorkerError {
    tracing::error!("{}: {error}", spec.checkpoint.path.display());
    let kind = if let checkpoint::Error::Lora { index, .. } = error {
        WorkerErrorKind::UnusableLora { index: *index }
    } else {
        WorkerErrorKind::UnusableModel
    };
    WorkerError { kind, message: error.to_string() }
}

fn draw_error(job: JobId, error: &DrawError) -> WorkerError {
    let kind = match (error, error.field()) {
        (_, Some(field)) => WorkerErrorKind::InvalidRequest { field },
        (DrawError::NotFinite, None) => WorkerErrorKind::UnusableModel,
        (_, None) => {
            tracing::error!(%job, "drawing failed: {error}");
            return internal("drawing failed; the daemon's log says why");
        }
    };
    WorkerError { kind, message: error.to_string() }
}

/// Tells the daemon how far a load is, now and then.
fn progress(socket: &UnixStream, job: JobId) -> impl Fn(f32) {
    let reported = Cell::new(Instant::now());
    move |fraction| {
        if reported.get().elapsed() >= PROGRESS_INTERVAL {
            reported.set(Instant::now());
            // If the daemon is gone, the other thread ends the process.
            let _ = send(socket, &FromWorker::Loading { job, fraction }, &[]);
        }
    }
}

fn report(drawn: Drawn, loras: &[LoraReport]) -> (DrawnReport, Vec<u8>) {
    let skipped = loras.iter().filter(|lora| lora.skipped.is_some());
    let report = DrawnReport {
        size: drawn.size,
        images: drawn.images.len() as u32,
        prompt_truncated: drawn.prompt_truncated,
        skipped_loras: skipped.map(|lora| lora.name.clone()).collect(),
        scheduler: drawn.scheduler,
        encode_ms: millis(drawn.encode),
        denoise_ms: millis(drawn.denoise),
        decode_ms: millis(drawn.decode),
    };
    (report, drawn.images.concat())
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
