//! STAND-IN until the real one is merged: the same handle over a queue that draws grey images in
//! this process, a step each 5 ms.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Notify, oneshot};

use crate::{
    job::{Job, JobId, JobState, SwitchOrigin},
    modes::{PipelineSpec, SchedulerId},
    vram,
    worker::protocol::DrawnReport,
};

pub enum Outcome {
    Image(DrawnImage),
    Switched,
    Custom(serde_json::Value),
    Failed(JobFailure),
    Cancelled,
}

pub struct DrawnImage {
    pub rgb: Vec<u8>,
    pub report: DrawnReport,
}

#[derive(Debug, Clone)]
pub struct JobFailure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    UnusableModel,
    Unsupported,
    WorkerDied,
    Handler,
    ShuttingDown,
    Internal,
}

#[derive(Debug)]
pub enum SubmitError {
    QueueFull { limit: usize, retry_after_secs: u64 },
    ShuttingDown,
    AlreadyLoaded,
    UnknownHandler { name: String },
}

pub struct Status {
    pub current_mode: Option<String>,
    pub selected_mode: String,
    pub queue_size: usize,
    pub vram: vram::Snapshot,
    pub worker_restarts: u64,
}

#[derive(Clone)]
pub struct JobView {
    pub id: JobId,
    pub job: Job,
    pub state: JobState,
    pub attempts: u32,
    pub created_unix_ms: u64,
    pub started_unix_ms: Option<u64>,
    pub finished_unix_ms: Option<u64>,
    pub result: Option<serde_json::Value>,
}

pub struct DispatcherConfig {
    pub queue_max: usize,
    pub worker_command: (PathBuf, Vec<String>),
    pub selected_mode: String,
    pub preload: Option<(String, PipelineSpec)>,
    pub custom: CustomJobs,
}

pub struct JobContext;

type Running = Pin<Box<dyn Future<Output = Result<serde_json::Value, String>> + Send>>;
type Handler = Arc<dyn Fn(JobContext, serde_json::Value) -> Running + Send + Sync>;

#[derive(Clone, Default)]
pub struct CustomJobs(HashMap<String, Handler>);

impl CustomJobs {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn register<F, R>(mut self, name: &str, handler: F) -> Self
    where
        F: Fn(JobContext, serde_json::Value) -> R + Send + Sync + 'static,
        R: Future<Output = Result<serde_json::Value, String>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |context, args| Box::pin(handler(context, args)));
        self.0.insert(name.to_owned(), handler);
        self
    }
}

#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    custom: CustomJobs,
    queue_max: usize,
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(JobId, oneshot::Sender<Outcome>)>,
    running: Option<JobId>,
    views: HashMap<JobId, JobView>,
    current_mode: Option<String>,
    selected_mode: String,
    draining: bool,
}

pub struct DispatcherShutdown(Arc<Shared>, tokio::task::JoinHandle<()>);

impl DispatcherShutdown {
    pub async fn drain(self) {
        self.0.state.lock().unwrap().draining = true;
        self.0.wake.notify_one();
        let _ = self.1.await;
    }
}

pub fn start(config: DispatcherConfig) -> (Handle, DispatcherShutdown) {
    let state = State {
        current_mode: config.preload.map(|(mode, _)| mode),
        selected_mode: config.selected_mode,
        ..State::default()
    };
    let shared = Arc::new(Shared {
        custom: config.custom,
        queue_max: config.queue_max,
        wake: Notify::new(),
        state: Mutex::new(state),
    });
    let task = tokio::spawn(work(shared.clone()));
    (Handle(shared.clone()), DispatcherShutdown(shared, task))
}

async fn work(shared: Arc<Shared>) {
    loop {
        let next = {
            let mut state = shared.state.lock().unwrap();
            if state.draining {
                for (id, reply) in std::mem::take(&mut state.queue) {
                    let failure = JobFailure {
                        kind: FailureKind::ShuttingDown,
                        message: "the daemon is shutting down".into(),
                    };
                    let _ = reply.send(Outcome::Failed(failure));
                    state.views.remove(&id);
                }
                return;
            }
            let next = state.queue.pop_front();
            state.running = next.as_ref().map(|(id, _)| *id);
            next
        };
        let Some((id, mut reply)) = next else {
            shared.wake.notified().await;
            continue;
        };
        let job = {
            let mut state = shared.state.lock().unwrap();
            let view = state.views.get_mut(&id).unwrap();
            view.started_unix_ms = Some(now());
            view.attempts = 1;
            view.job.clone()
        };
        let outcome = tokio::select! {
            outcome = run(&shared, id, job) => outcome,
            () = reply.closed() => Outcome::Cancelled,
        };
        let mut state = shared.state.lock().unwrap();
        state.running = None;
        let view = state.views.get_mut(&id).unwrap();
        view.finished_unix_ms = Some(now());
        view.state = match &outcome {
            Outcome::Failed(failure) => JobState::Failed { reason: failure.message.clone() },
            Outcome::Cancelled => JobState::Cancelled,
            Outcome::Custom(value) => {
                view.result = Some(value.clone());
                JobState::Done
            }
            _ => JobState::Done,
        };
        drop(state);
        let _ = reply.send(outcome);
    }
}

async fn run(shared: &Shared, id: JobId, job: Job) -> Outcome {
    match job {
        Job::Generation { request, .. } => {
            for step in 0..=request.steps {
                let state = JobState::Running { step, steps: request.steps };
                shared.state.lock().unwrap().views.get_mut(&id).unwrap().state = state;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            shared.state.lock().unwrap().current_mode = Some(request.mode.clone());
            let report = DrawnReport {
                size: request.size,
                scheduler: request.scheduler.unwrap_or(SchedulerId::Ddim),
                encode_ms: 0,
                denoise_ms: 0,
                decode_ms: 0,
            };
            let bytes = request.size.width * request.size.height * 3;
            Outcome::Image(DrawnImage { rgb: vec![request.seed as u8; bytes as usize], report })
        }
        Job::ModeSwitch { mode, asked_by, .. } => {
            let mut state = shared.state.lock().unwrap();
            if asked_by == SwitchOrigin::User {
                state.selected_mode = mode.clone();
            }
            state.current_mode = Some(mode);
            Outcome::Switched
        }
        Job::Custom { name, args } => {
            let handler = shared.custom.0[&name].clone();
            match handler(JobContext, args).await {
                Ok(value) => Outcome::Custom(value),
                Err(message) => Outcome::Failed(JobFailure { kind: FailureKind::Handler, message }),
            }
        }
    }
}

impl Handle {
    pub async fn submit(&self, job: Job) -> Result<Ticket, SubmitError> {
        let mut state = self.0.state.lock().unwrap();
        if state.draining {
            return Err(SubmitError::ShuttingDown);
        }
        if let Job::ModeSwitch { mode, .. } = &job
            && state.current_mode.as_ref() == Some(mode)
        {
            return Err(SubmitError::AlreadyLoaded);
        }
        if let Job::Custom { name, .. } = &job
            && !self.0.custom.0.contains_key(name)
        {
            return Err(SubmitError::UnknownHandler { name: name.clone() });
        }
        if state.queue.len() >= self.0.queue_max {
            return Err(SubmitError::QueueFull { limit: self.0.queue_max, retry_after_secs: 1 });
        }
        let id = JobId::new();
        let (reply, outcome) = oneshot::channel();
        state.queue.push_back((id, reply));
        let view = JobView {
            id,
            job,
            state: JobState::Queued,
            attempts: 0,
            created_unix_ms: now(),
            started_unix_ms: None,
            finished_unix_ms: None,
            result: None,
        };
        state.views.insert(id, view);
        self.0.wake.notify_one();
        Ok(Ticket { id, outcome })
    }

    pub fn job(&self, id: JobId) -> Option<JobView> {
        self.0.state.lock().unwrap().views.get(&id).cloned()
    }

    pub fn status(&self) -> Arc<Status> {
        let state = self.0.state.lock().unwrap();
        Arc::new(Status {
            current_mode: state.current_mode.clone(),
            selected_mode: state.selected_mode.clone(),
            queue_size: state.queue.len(),
            vram: vram::Snapshot { device: "cpu".into(), ..vram::Snapshot::default() },
            worker_restarts: 0,
        })
    }

    pub fn custom_names(&self) -> Vec<String> {
        self.0.custom.0.keys().cloned().collect()
    }
}

pub struct Ticket {
    id: JobId,
    outcome: oneshot::Receiver<Outcome>,
}

impl Ticket {
    pub fn id(&self) -> JobId {
        self.id
    }

    pub async fn outcome(self) -> Outcome {
        self.outcome.await.unwrap_or(Outcome::Cancelled)
    }

    pub fn detach(self) -> JobId {
        let id = self.id;
        tokio::spawn(self.outcome);
        id
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}
