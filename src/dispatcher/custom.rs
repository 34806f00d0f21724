//! Custom jobs: handlers that the program which embeds the daemon registers by name.

use std::{collections::BTreeMap, fmt::Display, future::Future, pin::Pin, sync::Arc};

use serde_json::Value;
use tokio::task::JoinHandle;

use super::SubmitError;
use crate::{job::JobId, modes::nearest_name};

type Handler = Arc<dyn Fn(JobContext, Value) -> HandlerFuture + Send + Sync>;
type HandlerFuture = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;

/// What a handler returned, or why it failed.
pub type HandlerResult = Result<Value, String>;

/// What a handler is told about its job.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JobContext {
    pub id: JobId,
}

/// The registered handlers.
#[derive(Clone, Default)]
pub struct CustomJobs {
    handlers: BTreeMap<String, Handler>,
}

impl CustomJobs {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a handler, in the place of an earlier one of that name.
    ///
    /// It runs in its job's turn, beside nothing else: it must not wait for another job, which
    /// would wait for it. It is cancelled where it awaits. Its error may be shown to clients.
    #[must_use]
    pub fn register<H, F, E>(mut self, name: impl Into<String>, handler: H) -> Self
    where
        H: Fn(JobContext, Value) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, E>> + Send + 'static,
        E: Display,
    {
        let handler: Handler = Arc::new(move |context, args| {
            let result = handler(context, args);
            Box::pin(async move { result.await.map_err(|error| error.to_string()) })
        });
        self.handlers.insert(name.into(), handler);
        self
    }

    /// The registered names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.handlers.keys().cloned().collect()
    }

    /// Refuses a name under which nothing is registered.
    pub(super) fn check(&self, name: &str) -> Result<(), SubmitError> {
        if self.handlers.contains_key(name) {
            return Ok(());
        }
        let known = self.names();
        let nearest = nearest_name(name, known.iter().map(String::as_str));
        Err(SubmitError::UnknownHandler { name: name.to_owned(), nearest, known })
    }

    /// Runs a handler as a task of its own, so that a panic in it stays there.
    pub(super) fn spawn(
        &self,
        name: &str,
        context: JobContext,
        args: Value,
    ) -> JoinHandle<HandlerResult> {
        let handler = self.handlers.get(name).cloned();
        let unknown = format!("nothing is registered as '{name}'");
        tokio::spawn(async move { handler.ok_or(unknown)?(context, args).await })
    }
}
