//! What is done in which order, and what is published of it.

use super::*;

#[tokio::test]
async fn a_generation_is_loaded_drawn_and_published_on_its_way() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let ticket = daemon.submit(generation("a")).await;
    let id = ticket.id();
    assert_eq!(daemon.state(id), JobState::Queued);

    let switch = worker.expect_load("a").await;
    assert_eq!(daemon.state(switch), JobState::Loading);
    assert_eq!(
        (daemon.handle.status().running, daemon.handle.status().queue_size),
        (Some(switch), 1)
    );
    worker.send_loaded(switch).await;

    assert_eq!(worker.expect_generate("a").await, id);
    assert_eq!(daemon.state(switch), JobState::Done);
    assert_eq!(daemon.state(id), JobState::Running { step: 0, steps: STEPS });
    worker.send(FromWorker::Step { job: id, step: 2, steps: STEPS }).await;
    worker.send_image(id).await;

    assert_eq!(outcome(ticket).await, drawn());
    let status = daemon.handle.status();
    assert_eq!((status.current_mode.as_deref(), status.queue_size), (Some("a"), 0));
    assert_eq!((status.running, status.worker_restarts), (None, 0));
    assert_eq!(status.vram.models[0].model, "a.safetensors");
    assert!(status.vram.models[0].bytes >= 7);
    let view = daemon.handle.job(id).unwrap();
    assert_eq!((view.state, view.attempts, view.result), (JobState::Done, 1, None));
    assert!(view.created_unix_ms <= view.started_unix_ms.unwrap());
    assert!(view.started_unix_ms <= view.finished_unix_ms);
}

#[tokio::test]
async fn jobs_run_in_the_order_of_arrival_with_one_switch_for_each_change() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let mut tickets = Vec::new();
    for mode in ["a", "a", "b", "a"] {
        tickets.push(daemon.submit(generation(mode)).await);
    }
    worker.load("a").await;
    worker.draw("a").await;
    worker.draw("a").await;
    worker.load("b").await;
    worker.draw("b").await;
    worker.load("a").await;
    worker.draw("a").await;
    for ticket in tickets {
        assert_eq!(outcome(ticket).await, drawn());
    }
}

#[tokio::test]
async fn modes_that_share_a_pipeline_are_not_loaded_twice() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let tickets = [daemon.submit(generation("a")).await, daemon.submit(generation("a2")).await];
    worker.load("a").await;
    worker.draw("a").await;
    worker.draw("a2").await;
    for ticket in tickets {
        assert_eq!(outcome(ticket).await, drawn());
    }
    let status = daemon.handle.status();
    assert_eq!(status.current_mode.as_deref(), Some("a2"));
    assert_eq!(status.vram.models.len(), 1);
    assert_eq!(status.vram.models[0].mode, "a2");
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_time_to_come_back() {
    let mut daemon = Daemon::start_with(|config| config.queue_max = 2);
    let mut worker = daemon.worker().await;
    let _running = daemon.submit(generation("a")).await;
    worker.load("a").await;
    worker.expect_generate("a").await;
    let _waiting = daemon.submit(generation("a")).await;
    let refused = within(daemon.handle.submit(generation("b"))).await.unwrap_err();
    assert_eq!(refused, SubmitError::QueueFull { limit: 2, retry_after_secs: 1 });
    assert_eq!(daemon.handle.status().queue_size, 1, "neither the switch nor the generation");
    daemon.submit(generation("a")).await;
}

#[tokio::test]
async fn a_users_switch_selects_its_mode_unless_it_fails() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    assert_eq!(daemon.handle.status().selected_mode, "a");
    let ticket = daemon.submit(switch("b")).await;
    assert_eq!(daemon.handle.status().selected_mode, "b");
    worker.load("b").await;
    assert_eq!(outcome(ticket).await, Outcome::Switched);
    assert_eq!(daemon.handle.status().current_mode.as_deref(), Some("b"));
    let again = within(daemon.handle.submit(switch("b"))).await.unwrap_err();
    assert_eq!(again, SubmitError::AlreadyLoaded);

    let bad = daemon.submit(switch("c")).await;
    worker.fail_to_load("c", true).await;
    assert_eq!(failed_with(outcome(bad).await).0, FailureKind::UnusableModel);
    let status = daemon.handle.status();
    assert_eq!((status.selected_mode.as_str(), status.current_mode.as_deref()), ("b", Some("b")));
}

#[tokio::test]
async fn a_mode_can_be_loaded_before_anybody_asks() {
    let preload = Some(("a".to_owned(), pipeline("a")));
    let mut daemon = Daemon::start_with(|config| config.preload = preload);
    let mut worker = daemon.worker().await;
    worker.load("a").await;
    daemon.until(|status| status.current_mode.as_deref() == Some("a")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_200_submitters_at_once_each_gets_an_image_or_is_refused() {
    let mut daemon = Daemon::start();
    let worker = daemon.worker().await;
    let mut submitters = JoinSet::new();
    for number in 0..200 {
        let handle = daemon.handle.clone();
        let mode = ["a", "b", "c"][number % 3];
        submitters.spawn(async move {
            match handle.submit(generation(mode)).await {
                Ok(ticket) => Some(ticket.outcome().await),
                Err(SubmitError::QueueFull { limit: 64, .. }) => None,
                Err(error) => panic!("{error}"),
            }
        });
    }
    // Nothing is drawn until the queue was full.
    daemon.until(|status| status.queue_size >= 63).await;
    let working = tokio::spawn(worker.work());
    let answers = within(submitters.join_all()).await;
    let images = answers.iter().flatten().count();
    assert!(answers.iter().flatten().all(|answer| *answer == drawn()));
    assert!((32..200).contains(&images), "{images} of 200 were drawn");
    let status = daemon.handle.status();
    assert_eq!((status.queue_size, status.running), (0, None));
    within(daemon.shutdown.drain()).await;
    within(working).await.unwrap();
}
