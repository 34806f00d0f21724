//! Images that are made larger: no pipeline is needed, and the upscaler counts as memory.

use super::*;
use crate::{job::Unload, request::Superres};

fn upscale() -> Job {
    let superres = Superres { magnitude: 1, model: None, format: None };
    Job::Upscale { image: EncodedImage(b"image"[..].into()), superres, parameters: String::new() }
}

impl Worker {
    async fn expect_upscale(&mut self) -> JobId {
        match self.receive().await {
            ToWorker::Upscale { job, image, .. } if *image.0 == *b"image" => job,
            other => panic!("{other:?} where an image was to be made larger"),
        }
    }

    /// Says that it holds an upscaler, or not any more.
    async fn hold_upscaler(&mut self, upscaler_bytes: u64) {
        let held = Held { upscaler_bytes, ..self.holding() };
        self.send(FromWorker::Holds { held }).await;
    }

    async fn expect_unload_of_the_upscaler(&mut self, with_pipelines: usize) {
        match self.receive().await {
            ToWorker::Unload { pipelines, upscaler: true } => {
                assert_eq!(pipelines.len(), with_pipelines);
                pipelines.iter().for_each(|id| assert!(self.held.remove(id).is_some(), "{id:?}"));
            }
            other => panic!("{other:?} where the upscaler was to go"),
        }
        self.send(FromWorker::Unloaded { held: self.holding() }).await;
    }
}

#[tokio::test]
async fn an_upscale_is_done_in_its_turn_whatever_is_loaded() {
    let mut daemon = Daemon::start();
    let ticket = daemon.submit(upscale()).await;
    let drawing = daemon.submit(generation("a")).await;
    let mut worker = daemon.worker().await;
    let id = ticket.id();
    assert_eq!(worker.expect_upscale().await, id);
    worker.send(FromWorker::Step { job: id, step: 3, steps: 9 }).await;
    until(|| daemon.state(id) == JobState::Running { step: 3, steps: 9 }).await;
    worker.send_image(id).await;
    assert_eq!(outcome(ticket).await, drawn());
    worker.expect_load_of("a", 1).await;
    drop(drawing);
    let Job::Upscale { image, .. } = daemon.handle.job(id).unwrap().job else { panic!() };
    assert!(image.0.is_empty(), "its file is not remembered");
}

#[tokio::test]
async fn an_upscale_is_cancelled_while_it_waits_and_while_it_runs() {
    let mut daemon = Daemon::start();
    let (running, waiting) = (daemon.submit(upscale()).await, daemon.submit(upscale()).await);
    let mut worker = daemon.worker().await;
    let id = worker.expect_upscale().await;
    assert!(daemon.cancel(waiting.id()).await && daemon.cancel(id).await);
    match worker.receive().await {
        ToWorker::Cancel { job } => assert_eq!(job, id),
        other => panic!("{other:?}"),
    }
    worker.send(FromWorker::Cancelled { job: id }).await;
    assert_eq!(outcome(running).await, Outcome::Cancelled);
    assert_eq!(outcome(waiting).await, Outcome::Cancelled);
}

#[tokio::test]
async fn a_worker_that_dies_over_an_upscale_is_given_it_once_more() {
    let mut daemon = Daemon::start();
    let ticket = daemon.submit(upscale()).await;
    for _ in 0..2 {
        let mut worker = daemon.worker().await;
        assert_eq!(worker.expect_upscale().await, ticket.id());
    }
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::WorkerDied);
}

#[tokio::test]
async fn unloading_all_takes_the_upscaler_along() {
    let mut daemon = Daemon::start();
    let unload = || Job::Unload { what: Unload::All };
    let mut worker = daemon.worker().await;
    // There is none, so nothing is asked of the worker.
    let ticket = daemon.submit(unload()).await;
    assert_eq!(outcome(ticket).await, Outcome::Unloaded(vec![]));
    worker.hold_upscaler(7).await;
    daemon.until(|status| status.vram.weights_bytes == 7).await;
    let ticket = daemon.submit(unload()).await;
    worker.expect_unload_of_the_upscaler(0).await;
    assert_eq!(outcome(ticket).await, Outcome::Unloaded(vec![]));
    daemon.until(|status| status.vram.weights_bytes == 0).await;
}

#[tokio::test]
async fn the_upscaler_leaves_when_memory_runs_out() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    worker.hold_upscaler(7).await;
    daemon.until(|status| status.vram.weights_bytes == 7).await;
    let ticket = daemon.submit(upscale()).await;
    let job = worker.expect_upscale().await;
    let kind = WorkerErrorKind::OutOfMemory;
    let failed = || {
        let error = WorkerError { kind, message: "too much".to_owned() };
        FromWorker::Failed { job, error, held: None }
    };
    worker.send(failed()).await;
    worker.expect_unload_of_the_upscaler(0).await;
    assert_eq!(worker.expect_upscale().await, job);
    worker.send(failed()).await;
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::OutOfMemory);
}
