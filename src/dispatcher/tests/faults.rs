//! Workers that die, cannot start, talk rubbish or cannot load.

use super::*;

#[tokio::test]
async fn a_job_whose_worker_died_is_retried_and_the_next_one_works() {
    let mut daemon = Daemon::start();
    let mut first = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    let next = daemon.submit(generation("a")).await;
    first.load("a").await;
    first.expect_generate("a").await;
    drop(first);
    daemon.until(|status| status.current_mode.is_none()).await;

    let mut second = daemon.worker().await;
    second.load("a").await;
    second.draw("a").await;
    let id = ticket.id();
    assert_eq!(outcome(ticket).await, drawn());
    assert_eq!(daemon.handle.job(id).unwrap().attempts, 2);
    second.draw("a").await;
    assert_eq!(outcome(next).await, drawn());
    assert_eq!(daemon.handle.status().worker_restarts, 1);
}

#[tokio::test]
async fn a_job_on_which_two_workers_die_fails_and_the_next_one_works() {
    let mut daemon = Daemon::start();
    let mut first = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    let next = daemon.submit(generation("a")).await;
    first.load("a").await;
    first.expect_generate("a").await;
    drop(first);
    let mut second = daemon.worker().await;
    // The second one dies in the middle of the load.
    second.expect_load("a").await;
    drop(second);
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::WorkerDied);

    let mut third = daemon.worker().await;
    third.load("a").await;
    third.draw("a").await;
    assert_eq!(outcome(next).await, drawn());
}

#[tokio::test]
async fn a_worker_that_cannot_be_started_fails_the_jobs_instead_of_hanging_them() {
    let spawn: Spawn = Box::new(|_| Err(io::Error::from(io::ErrorKind::NotFound)));
    let (handle, _shutdown) = start_with(config(), Supervisor::with_spawn(spawn)).unwrap();
    let ticket = within(handle.submit(switch("a"))).await.unwrap();
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::WorkerDied);
}

#[tokio::test]
async fn a_worker_that_talks_rubbish_is_replaced() {
    let mut daemon = Daemon::start();
    let mut first = daemon.worker().await;
    within(first.socket.write_all(&[0xff; 64])).await.unwrap();
    let _second = daemon.worker().await;
    daemon.until(|status| status.worker_restarts == 1).await;
}

#[tokio::test]
async fn an_image_of_the_wrong_length_is_a_failure() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    worker.load("a").await;
    let job = worker.expect_generate("a").await;
    worker.send_with(FromWorker::Image { job, drawn: report() }, &[1; 100]).await;
    assert_eq!(failed_with(outcome(ticket).await).0, FailureKind::Internal);
}
