//! The worker process from the inside: one loop around the engine.
//!
//! Owns the device and the loaded pipelines, and does what it is told. Knows nothing of the queue,
//! of modes or of HTTP, nor who should leave for whom. The only part of the daemon that may use
//! the engine.

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    ops::ControlFlow,
    os::{fd::AsFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    process,
    protocol::{self, DrawnReport, FromWorker, ToWorker, WorkerError, WorkerErrorKind},
    sandbox::{self, Granted},
};
use crate::{
    engine::{
        Backend, Step, nn,
        preview::{Glimpse, Preview},
    },
    job::JobId,
    modes::{Keep, PipelineSpec},
    request::{EncodedImage, GenerateRequest, Superres},
    vram::ledger::PipelineId,
};
use answers::{draw_error, internal, millis, report, unusable, unusable_file};
use connection::Connection;
use device::device_memory;
use residents::Residents;

mod answers;
mod connection;
mod device;
mod host_cache;
mod residents;
mod upscaling;

#[cfg(test)]
mod tests;

/// How often an image is shown on its way at most. Nobody may be looking; it costs next to nothing.
const PREVIEW_INTERVAL: Duration = Duration::from_millis(500);

/// How often a load reports its progress at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Opens the device and does what the daemon at the other end of the standard input says, until it
/// hangs up. `confine` enters the sandbox. `open` returns the exit code if there is no such device.
pub fn run(
    confine: impl FnOnce() -> Granted,
    open: impl FnOnce() -> Result<Backend, ExitCode>,
) -> ExitCode {
    process::take_name();
    volunteer_for_the_oom_killer();
    let granted = confine();
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
    match serve(socket, granted, open, || std::process::exit(0)) {
        Ok(code) => code,
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
fn serve(
    socket: UnixStream,
    granted: Granted,
    open: impl FnOnce() -> Result<Backend, ExitCode>,
    on_hang_up: impl FnOnce() + Send + 'static,
) -> io::Result<ExitCode> {
    let reading = socket.try_clone()?;
    let (tasks, to_do) = mpsc::channel();
    thread::Builder::new().name("commands".to_owned()).spawn(move || {
        let end = read_commands(reading, &tasks);
        tracing::debug!("the daemon hung up: {end}");
        on_hang_up();
    })?;
    // Before the device is opened, which may take many seconds.
    let connection = Connection::start(socket)?;
    let backend = match open() {
        Ok(backend) => backend,
        Err(code) => return Ok(code),
    };
    let mut worker = Worker { connection, granted, residents: Residents::new(backend) };
    worker.send(&FromWorker::Ready { computing: device::computing(backend) }, &[])?;
    // The engine works on the main thread: what that one frees stays mapped (see
    // `process::ALLOCATOR`), while glibc gives other threads arenas of their own, with small heaps.
    to_do.into_iter().try_for_each(|task| worker.work(task))?;
    Ok(ExitCode::SUCCESS)
}

/// Something to do that takes its time.
enum Task {
    Prepare { job: JobId, id: PipelineId, pipeline: PipelineSpec, keep: Keep },
    Load(Load),
    Unload { pipelines: Vec<PipelineId>, upscaler: bool },
    Generate(Generate),
    Probe { job: JobId, pipeline: PipelineId, limit_bytes: u64 },
    Upscale(Upscale),
}

struct Load {
    job: JobId,
    unload: Vec<PipelineId>,
    limit_bytes: u64,
    verify: bool,
    cancelled: Arc<AtomicBool>,
}

struct Generate {
    job: JobId,
    pipeline: PipelineId,
    request: GenerateRequest,
    limit_bytes: u64,
    cancelled: Arc<AtomicBool>,
}

struct Upscale {
    job: JobId,
    image: EncodedImage,
    superres: Superres,
    limit_bytes: u64,
    cancelled: Arc<AtomicBool>,
}

/// Hands tasks on and raises the flags of those that are cancelled. Returns why it ended.
fn read_commands(mut from: UnixStream, tasks: &mpsc::Sender<Task>) -> io::Error {
    let mut flags: HashMap<JobId, Weak<AtomicBool>> = HashMap::new();
    let flag_of = |job: JobId, flags: &mut HashMap<JobId, Weak<AtomicBool>>| {
        let cancelled = Arc::new(AtomicBool::new(false));
        flags.retain(|_, flag| flag.strong_count() > 0);
        flags.insert(job, Arc::downgrade(&cancelled));
        cancelled
    };
    loop {
        let task = match protocol::read::<ToWorker>(&mut from) {
            Ok((ToWorker::Prepare { job, id, pipeline, keep }, _)) => {
                Task::Prepare { job, id, pipeline, keep }
            }
            Ok((ToWorker::Load { job, unload, limit_bytes, verify }, _)) => {
                let cancelled = flag_of(job, &mut flags);
                Task::Load(Load { job, unload, limit_bytes, verify, cancelled })
            }
            Ok((ToWorker::Unload { pipelines, upscaler }, _)) => {
                Task::Unload { pipelines, upscaler }
            }
            Ok((ToWorker::Generate { job, pipeline, request, limit_bytes }, _)) => {
                let cancelled = flag_of(job, &mut flags);
                Task::Generate(Generate { job, pipeline, request, limit_bytes, cancelled })
            }
            Ok((ToWorker::Probe { job, pipeline, limit_bytes }, _)) => {
                Task::Probe { job, pipeline, limit_bytes }
            }
            Ok((ToWorker::Upscale { job, image, superres, limit_bytes }, _)) => {
                let cancelled = flag_of(job, &mut flags);
                Task::Upscale(Upscale { job, image, superres, limit_bytes, cancelled })
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
    connection: Arc<Connection>,
    granted: Granted,
    residents: Residents,
}

impl Worker {
    /// Does one task. Fails only where the daemon cannot be told of it any more.
    fn work(&mut self, task: Task) -> io::Result<()> {
        let answer = match task {
            Task::Prepare { job, id, pipeline, keep } => {
                if let Some(error) = self.outside(sandbox::files_of(&pipeline)) {
                    return self.send(&FromWorker::Failed { job, error, held: None }, &[]);
                }
                self.let_go_of_upscaler()?;
                match self.residents.prepare(id, pipeline, keep) {
                    Ok(estimate) => FromWorker::Prepared { job, estimate },
                    Err(error) => FromWorker::Failed { job, error, held: None },
                }
            }
            Task::Load(load) => return self.load(&load),
            Task::Unload { pipelines, upscaler } => {
                if upscaler {
                    self.residents.upscaler.let_go();
                }
                self.residents.unload(&pipelines);
                FromWorker::Unloaded { held: self.residents.held() }
            }
            Task::Generate(generate) => return self.generate(&generate),
            Task::Probe { job, pipeline, limit_bytes } => {
                nn::set_limit(self.residents.backend(), limit_bytes);
                match self.residents.probe(pipeline) {
                    Ok(()) => FromWorker::Probed { job },
                    Err(error) => {
                        FromWorker::Failed { job, error, held: Some(self.residents.held()) }
                    }
                }
            }
            Task::Upscale(upscale) => return self.upscale(&upscale),
        };
        self.send(&answer, &[])
    }

    /// Says no to models that lie outside of the sandbox, before anything has to go for them.
    fn outside<'m>(&self, models: impl IntoIterator<Item = &'m Path>) -> Option<WorkerError> {
        let model = self.granted.outside(models)?;
        tracing::info!("{} is, or leads, outside of the worker's sandbox", model.display());
        let message = "the worker's sandbox does not allow reading this model's files; restart with \
                       --sandbox off";
        let (kind, message) = (WorkerErrorKind::OutsideSandbox, message.to_owned());
        Some(WorkerError { kind, message })
    }

    fn load(&mut self, load: &Load) -> io::Result<()> {
        let Load { job, unload, limit_bytes, verify, cancelled } = load;
        let job = *job;
        nn::set_limit(self.residents.backend(), *limit_bytes);
        nn::reset_peak(self.residents.backend());
        let watch = progress(&self.connection, job, cancelled);
        let loaded = self.residents.load(unload, *verify, &watch);
        let held = self.residents.held();
        match loaded {
            Ok(report) => self.send(&FromWorker::Loaded { job, report, held }, &[]),
            Err(_) if cancelled.load(Ordering::Relaxed) => {
                self.send(&FromWorker::Holds { held }, &[])?;
                self.send(&FromWorker::Cancelled { job }, &[])
            }
            Err(error) => self.send(&FromWorker::Failed { job, error, held: Some(held) }, &[]),
        }
    }

    fn generate(&mut self, generate: &Generate) -> io::Result<()> {
        let Generate { job, pipeline: id, request, limit_bytes, cancelled } = generate;
        let (job, id) = (*job, *id);
        nn::set_limit(self.residents.backend(), *limit_bytes);
        // First, so that a file which cannot be used costs no drawing.
        if let Err(error) = self.load_upscaler(request.superres.as_ref())? {
            return self.send(&FromWorker::Failed { job, error, held: None }, &[]);
        }
        let Some(pipeline) = self.residents.get(id) else {
            let error = internal("the pipeline is not loaded");
            return self.send(&FromWorker::Failed { job, error, held: None }, &[]);
        };
        let network = request.superres.as_ref().and_then(|superres| superres.model.as_ref());
        let upscaler = network.and(self.residents.upscaler.get());
        let backend = self.residents.backend();
        let allocated = device_memory(backend).allocated;
        nn::reset_peak(backend);
        let connection = &self.connection;
        let mut previewed: Option<Instant> = None;
        let mut watch = |Step { step, steps }, glimpse: Option<&Glimpse<'_>>| {
            if cancelled.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            // If the daemon is gone, the other thread ends the process.
            let _ = connection.send(&FromWorker::Step { job, step, steps }, &[]);
            let is_due = previewed.is_none_or(|at| at.elapsed() >= PREVIEW_INTERVAL);
            if let Some(Ok(preview)) = glimpse.filter(|_| is_due).map(Glimpse::preview) {
                previewed = Some(Instant::now());
                let Preview { width, height, rgb } = preview;
                let preview = FromWorker::Preview { job, step, steps, width, height };
                let _ = connection.send(&preview, &rgb);
            }
            ControlFlow::Continue(())
        };
        match guarded(|| Ok(upscaling::draw(pipeline, request, upscaler, &mut watch))) {
            Ok(Ok(made)) => {
                let (report, rgb) = report(made, pipeline.loras());
                let peak_bytes = device_memory(backend).peak.saturating_sub(allocated);
                let drawn = DrawnReport { peak_bytes, ..report };
                self.send(&FromWorker::Holds { held: self.residents.held() }, &[])?;
                self.send(&FromWorker::Image { job, drawn }, &rgb)
            }
            Ok(Err(error)) => self.send_draw_error(job, &error),
            Err(error) => {
                // What a panic left of the buffers is anybody's guess.
                self.residents.upscaler.let_go();
                self.residents.unload(&[id]);
                let held = Some(self.residents.held());
                self.send(&FromWorker::Failed { job, error, held }, &[])
            }
        }
    }

    fn send(&self, message: &FromWorker, payload: &[u8]) -> io::Result<()> {
        self.connection.send(message, payload)
    }
}

/// Runs a piece of the engine; a panic in it (which the log has by then) costs the job alone.
fn guarded<T>(engine: impl FnOnce() -> Result<T, WorkerError>) -> Result<T, WorkerError> {
    // Unwind safe: the callers drop the pipeline that was worked on.
    catch_unwind(AssertUnwindSafe(engine))
        .unwrap_or_else(|_| Err(internal("the engine failed; the daemon's log says why")))
}

/// Tells the daemon now and then how far a load is, and ends it if it was cancelled.
fn progress(
    connection: &Connection,
    job: JobId,
    cancelled: &AtomicBool,
) -> impl Fn(f32) -> ControlFlow<()> {
    let reported = Cell::new(Instant::now());
    move |fraction| {
        if reported.get().elapsed() >= PROGRESS_INTERVAL {
            reported.set(Instant::now());
            // If the daemon is gone, the other thread ends the process.
            let _ = connection.send(&FromWorker::Loading { job, fraction }, &[]);
        }
        match cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
