//! Custom jobs, and the end of the daemon.

use super::*;

#[tokio::test]
async fn custom_jobs_have_their_turn_and_their_own_ends() {
    let handlers = CustomJobs::new()
        .register("echo", |context: JobContext, args| async move {
            Ok::<_, Infallible>(json!({ "id": context.id.to_string(), "args": args }))
        })
        .register("fail", |_, _| async { Err("no luck") })
        .register("panic", |_, _| async { panic!("oh no") as Result<Value, String> })
        .register("panic at once", |_, args: Value| {
            assert!(args.is_string(), "oh no");
            ready(Ok::<_, Infallible>(args))
        })
        .register("wait", |_, _| std::future::pending::<Result<Value, String>>());
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
    let known = daemon.handle.custom_names();
    assert_eq!(known, ["echo", "fail", "panic", "panic at once", "wait"]);
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
