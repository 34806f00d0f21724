//! Custom jobs: handlers that the program which embeds the daemon registers, and commands that the
//! configuration names. What the running one of them says, and how it is told to stop.

use std::{
    collections::BTreeMap,
    error::Error,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};

use super::{SubmitError, command};
use crate::{
    job::{JobId, JobState},
    modes::{CustomCommand, Modes, is_built_in, nearest_name},
};

/// What a handler returned, or why it failed: any error, or a text (`Err("no such thing".into())`).
/// Clients are shown both.
pub type HandlerResult = Result<Value, Box<dyn Error + Send + Sync>>;

/// A kind of job of one's own. It may be written with `async fn run`.
pub trait JobHandler: Send + Sync + 'static {
    /// What clients call it by. Each name is registered once; a built-in job's never.
    fn name(&self) -> &str;

    /// One line about it, for those who list the custom jobs.
    fn description(&self) -> &str {
        ""
    }

    /// Does one job, in its turn, beside nothing else: so it must not wait for another job, which
    /// would wait for it. It is cancelled where it awaits. What blocks belongs on a thread of its
    /// own (`tokio::task::spawn_blocking`), which nobody can cancel: that one looks at
    /// [`JobContext::is_cancelled`] now and then.
    fn run(&self, context: JobContext, args: Value) -> impl Future<Output = HandlerResult> + Send;
}

/// What a handler is told about its job, and tells of it.
#[derive(Debug, Clone)]
pub struct JobContext {
    id: JobId,
    progress: watch::Sender<Progress>,
    cancelled: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    step: u32,
    steps: u32,
}

/// Before its handler has said anything.
pub const BEGUN: Progress = Progress { step: 0, steps: 1 };

impl From<Progress> for JobState {
    fn from(Progress { step, steps }: Progress) -> Self {
        Self::Running { step, steps }
    }
}

impl JobContext {
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Says how far it is: so many of so many steps, whatever a step is. Clients see it as they see
    /// an image's. Costs little, however often it is said.
    pub fn progress(&self, step: u32, steps: u32) {
        let steps = steps.max(1);
        self.progress.send_replace(Progress { step: step.min(steps), steps });
    }

    /// Whether nobody waits for it any more: it was cancelled, or the daemon shuts down.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

type Handler = Arc<dyn Fn(JobContext, Value) -> HandlerFuture + Send + Sync>;
type HandlerFuture = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

/// The registered handlers.
#[derive(Clone, Default)]
pub struct CustomJobs {
    handlers: BTreeMap<String, (String, Handler)>,
}

impl CustomJobs {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a handler.
    ///
    /// # Panics
    /// If its name is taken, by another handler or a built-in job: clients could not reach one of
    /// the two.
    #[must_use]
    pub fn register(self, handler: impl JobHandler) -> Self {
        let name = handler.name();
        assert!(!is_built_in(name), "there is a built-in custom job '{name}'");
        assert!(!self.handlers.contains_key(name), "'{name}' is registered already");
        self.with(handler)
    }

    /// The same, also of a built-in job.
    #[must_use]
    pub(crate) fn with(mut self, handler: impl JobHandler) -> Self {
        let (name, description) = (handler.name().to_owned(), handler.description().to_owned());
        let handler = Arc::new(handler);
        let run: Handler = Arc::new(move |context, args| {
            let handler = handler.clone();
            Box::pin(
                async move { handler.run(context, args).await.map_err(|error| error.to_string()) },
            )
        });
        self.handlers.insert(name, (description, run));
        self
    }

    /// The registered names, sorted, and what each says of itself.
    pub fn list(&self) -> Vec<(String, String)> {
        let handlers = self.handlers.iter();
        handlers.map(|(name, (description, _))| (name.clone(), description.clone())).collect()
    }
}

/// What there is to run, by name: what was registered, and what is configured now.
pub struct Runnable {
    registered: CustomJobs,
    configured: BTreeMap<String, CustomCommand>,
}

impl Runnable {
    pub fn new(registered: CustomJobs, modes: &Modes) -> Self {
        let mut runnable = Self { registered, configured: BTreeMap::new() };
        runnable.configure(modes);
        runnable
    }

    /// From now on these commands are run; also by jobs that wait already.
    pub fn configure(&mut self, modes: &Modes) {
        self.configured.clone_from(&modes.custom_jobs);
        let shadowed = |name: &&String| self.registered.handlers.contains_key(*name);
        for name in self.configured.keys().filter(shadowed) {
            tracing::warn!(
                "custom_jobs.{name} is never run: this program has a handler of that name"
            );
        }
    }

    /// Refuses a name that stands for nothing.
    pub fn check(&self, name: &str) -> Result<(), SubmitError> {
        if self.registered.handlers.contains_key(name) || self.configured.contains_key(name) {
            return Ok(());
        }
        let registered = self.registered.handlers.keys();
        let mut known: Vec<String> = registered.chain(self.configured.keys()).cloned().collect();
        known.sort();
        let nearest = nearest_name(name, known.iter().map(String::as_str));
        Err(SubmitError::UnknownHandler { name: name.to_owned(), nearest, known })
    }

    /// Begins what that name stands for now, as a task of its own, so that a panic in it stays there.
    pub fn start(&self, name: &str, id: JobId, args: Value) -> CustomRun {
        let (progress, told) = watch::channel(BEGUN);
        let (stop, stopped) = watch::channel(false);
        let registered = self.registered.handlers.get(name);
        let (task, stop) = match (registered, self.configured.get(name)) {
            (Some((_, handler)), _) => {
                let cancelled = Arc::new(AtomicBool::new(false));
                let context = JobContext { id, progress, cancelled: cancelled.clone() };
                let handler = handler.clone();
                let task = tokio::spawn(async move {
                    // However it ends: what it has left running on other threads is to end, too.
                    let _cancelled = RaisedWhenDropped(cancelled);
                    handler(context, args).await
                });
                (task, None)
            }
            (None, Some(command)) => {
                let run = command::run(command.clone(), id, args, stopped);
                (tokio::spawn(run), Some(stop))
            }
            (None, None) => {
                let gone = format!("there is no custom job '{name}' any more");
                (tokio::spawn(async { Err(gone) }), None)
            }
        };
        CustomRun { task, progress: told, stop, is_stopping: false }
    }
}

struct RaisedWhenDropped(Arc<AtomicBool>);

impl Drop for RaisedWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A custom job that runs.
pub struct CustomRun {
    task: JoinHandle<Result<Value, String>>,
    progress: watch::Receiver<Progress>,
    /// Of one that ends by itself when it is told to: a command's processes are awaited.
    stop: Option<watch::Sender<bool>>,
    is_stopping: bool,
}

/// What a running custom job says.
pub enum CustomEvent {
    Progress(Progress),
    Ended(Result<Result<Value, String>, JoinError>),
}

impl CustomRun {
    /// What it says next. Losing interest in the middle loses nothing.
    pub async fn next(&mut self) -> CustomEvent {
        tokio::select! {
            Ok(()) = self.progress.changed() => {
                CustomEvent::Progress(*self.progress.borrow_and_update())
            }
            result = &mut self.task => CustomEvent::Ended(result),
        }
    }

    /// It is to end soon, and will say so.
    pub fn stop(&mut self) {
        self.is_stopping = true;
        match &self.stop {
            Some(stop) => {
                stop.send_replace(true);
            }
            None => self.task.abort(),
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }
}

impl Drop for CustomRun {
    /// Nobody waits for it any more.
    fn drop(&mut self) {
        self.task.abort();
    }
}
