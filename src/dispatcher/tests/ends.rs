//! Custom jobs, and the end of the daemon.

use super::*;

/// A closure as a handler.
struct Named<F>(&'static str, F);

impl<F, R> JobHandler for Named<F>
where
    F: Fn(JobContext, Value) -> R + Send + Sync + 'static,
    R: Future<Output = HandlerResult> + Send,
{
    fn name(&self) -> &str {
        self.0
    }

    async fn run(&self, context: JobContext, args: Value) -> HandlerResult {
        self.1(context, args).await
    }
}

#[tokio::test]
async fn custom_jobs_have_their_turn_and_their_own_ends() {
    let handlers = CustomJobs::new()
        .register(Named("echo", |context: JobContext, args| async move {
            Ok(json!({ "id": context.id().to_string(), "args": args }))
        }))
        .register(Named("fail", |_, _| async { Err("no luck".into()) }))
        .register(Named("panic", |_, _| async { panic!("oh no") as HandlerResult }))
        .register(Named("panic at once", |_, args: Value| {
            assert!(args.is_string(), "oh no");
            ready(Ok(args))
        }))
        .register(Named("wait", |_, _| std::future::pending::<HandlerResult>()));
    let mut daemon = Daemon::start_with(|config| config.custom = handlers);
    let mut worker = daemon.worker().await;

    // Behind a generation, it waits for its turn.
    let generation = daemon.submit(generation("a")).await;
    let echo = daemon.submit(custom("echo", json!([1]))).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    assert_eq!(daemon.state(echo.id()), JobState::Queued);
    worker.send_image(job).await;
    assert_eq!(outcome(generation).await, drawn());
    let id = echo.id();
    let value = json!({ "id": id.to_string(), "args": [1] });
    assert_eq!(outcome(echo).await, Outcome::Custom(value.clone()));
    assert_eq!(daemon.handle.job(id).unwrap().result, Some(value));

    for (name, message) in [
        ("fail", "no luck"),
        ("panic", "the job's handler panicked; the daemon's log says why"),
        ("panic at once", "the job's handler panicked; the daemon's log says why"),
    ] {
        let ticket = daemon.submit(custom(name, Value::Null)).await;
        let failure = failed_with(outcome(ticket).await);
        assert_eq!(failure, (FailureKind::Handler, message.to_owned()), "{name}");
    }

    let waiting = daemon.submit(custom("wait", Value::Null)).await;
    let id = waiting.id();
    daemon.until(|status| status.running == Some(id)).await;
    drop(worker); // which is none of its business
    daemon.until(|status| status.current_mode.is_none()).await;
    assert!(daemon.cancel(id).await);
    assert_eq!(outcome(waiting).await, Outcome::Cancelled);

    let unknown = within(daemon.handle.submit(custom("ecco", Value::Null))).await.unwrap_err();
    let known: Vec<String> =
        ["echo", "fail", "panic", "panic at once", "wait"].map(Into::into).into();
    let listed: Vec<_> = daemon.handle.custom_jobs().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(known, listed);
    let (name, nearest) = ("ecco".to_owned(), Some("echo".to_owned()));
    assert_eq!(unknown, SubmitError::UnknownHandler { name, nearest, known });
}

#[tokio::test]
async fn a_shutdown_lets_the_running_job_finish() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let running = daemon.submit(generation("a")).await;
    let queued = daemon.submit(generation("b")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;

    let handle = daemon.handle.clone();
    let draining = tokio::spawn(daemon.shutdown.drain());
    assert_eq!(failed_with(outcome(queued).await).0, FailureKind::ShuttingDown);
    let refused = within(handle.submit(generation("a"))).await.unwrap_err();
    assert_eq!(refused, SubmitError::ShuttingDown);

    worker.send_image(job).await;
    assert_eq!(outcome(running).await, drawn());
    within(draining).await.unwrap();
    let end = within(process::receive::<ToWorker>(&mut worker.socket)).await.unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof, "the worker was ended");
    let refused = within(handle.submit(generation("a"))).await.unwrap_err();
    assert_eq!(refused, SubmitError::ShuttingDown);
    assert_eq!(handle.job(job).unwrap().state, JobState::Done, "what is known can still be read");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_switch() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(switch("b")).await;
    worker.expect_load("b").await;
    within(daemon.shutdown.drain()).await;
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::ShuttingDown);
}

#[tokio::test]
async fn a_shutdown_gives_up_a_job_that_takes_too_long() {
    let mut daemon = Daemon::start_with(|config| config.drain_timeout = Duration::ZERO);
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    worker.load("a").await;
    worker.expect_generate("a").await;
    within(daemon.shutdown.drain()).await;
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::ShuttingDown);
}

#[tokio::test]
async fn a_custom_job_says_how_far_it_is_and_hears_that_it_is_over() {
    let (context, mut contexts) = mpsc::unbounded_channel();
    let slow = Named("slow", move |told: JobContext, _| {
        told.progress(3, 7);
        context.send(told).unwrap();
        std::future::pending::<HandlerResult>()
    });
    let handlers = CustomJobs::new().register(slow);
    let daemon = Daemon::start_with(|config| config.custom = handlers);
    let ticket = daemon.submit(custom("slow", Value::Null)).await;
    let context = within(contexts.recv()).await.unwrap();
    let id = ticket.id();
    until(|| daemon.state(id) == JobState::Running { step: 3, steps: 7 }).await;
    context.progress(9, 7);
    until(|| daemon.state(id) == JobState::Running { step: 7, steps: 7 }).await;
    assert!(!context.is_cancelled());
    assert!(daemon.cancel(id).await);
    assert_eq!(outcome(ticket).await, Outcome::Cancelled);
    until(|| context.is_cancelled()).await;
    context.progress(1, 7);
    assert_eq!(daemon.state(id), JobState::Cancelled, "it is over");
}

#[tokio::test]
async fn a_shutdown_ends_a_handler_that_takes_too_long() {
    let handlers = CustomJobs::new().register(Named("wait", |_, _| std::future::pending()));
    let daemon = Daemon::start_with(|config| {
        (config.custom, config.drain_timeout) = (handlers, Duration::ZERO);
    });
    let ticket = daemon.submit(custom("wait", Value::Null)).await;
    let id = ticket.id();
    daemon.until(|status| status.running == Some(id)).await;
    within(daemon.shutdown.drain()).await;
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::ShuttingDown);
}

#[test]
#[should_panic(expected = "there is a built-in custom job 'warm_up'")]
fn a_built_in_name_is_not_registered() {
    let _ = CustomJobs::new().register(Named("warm_up", |_, _| ready(Ok(Value::Null))));
}
