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
    assert_eq!(daemon.state(switch), JobState::Loading { percent: 0 });
    worker.send(FromWorker::Loading { job: switch, fraction: 0.42 }).await;
    until(|| daemon.state(switch) == JobState::Loading { percent: 42 }).await;
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
    let model = &status.vram.models[0];
    assert_eq!(model.loaded.pipeline.checkpoint.name, "a.safetensors");
    assert_eq!((model.own_bytes, model.shared_bytes, model.active), (1, 0, true));
    assert_eq!((model.loaded.measured_bytes, model.loaded.estimated_bytes), (7, 1));
    assert_eq!(model.activation_peak_bytes, Some(11));
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
    // It is there still.
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
    assert_eq!(status.vram.models[0].loaded.mode, "a2");
}

#[tokio::test]
async fn a_requests_loras_are_loaded_for_it_alone() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let lora =
        LoraRef { name: "ink".to_owned(), path: "ink".into(), strength: 0.5, adapter_name: None };
    let mut with_ink = generation("a");
    let Job::Generation { pipeline: spec, .. } = &mut with_ink else { unreachable!() };
    spec.loras.push(lora);
    let spec = spec.clone();
    let plain = daemon.submit(generation("a")).await;
    let inked = daemon.submit(with_ink).await;
    let after = daemon.submit(generation("a")).await;
    worker.load("a").await;
    worker.draw("a").await;
    assert_eq!(outcome(plain).await, drawn());

    let prepare = worker.receive().await;
    let ToWorker::Prepare { job, id, pipeline, .. } = prepare else { panic!("{prepare:?}") };
    assert_eq!(pipeline, spec);
    worker.prepared = Some((id, 1));
    worker.send_prepared(job, 1).await;
    let ToWorker::Load { job, .. } = worker.receive().await else { panic!("no load") };
    let report = LoraReport {
        name: "ink".to_owned(),
        strength: 0.5,
        merged: 3,
        unmatched: 1,
        skipped: None,
    };
    worker.send_loaded_with(job, vec![report.clone()]).await;
    let job = worker.expect_generate("a").await;
    let status = daemon.handle.status();
    assert_eq!((status.current_mode.as_deref(), &*status.selected_mode), (Some("a"), "a"));
    assert_eq!(status.vram.models.len(), 2);
    assert_eq!(status.vram.models[1].loaded.loras, [report]);
    worker.send_image(job).await;
    assert_eq!(outcome(inked).await, drawn());

    worker.draw("a").await;
    assert_eq!(outcome(after).await, drawn());
    let active = daemon.handle.status().vram.models.iter().position(|model| model.active);
    assert_eq!(active, Some(0));
}

#[tokio::test]
async fn all_images_of_a_job_arrive_and_what_they_were_drawn_over_is_forgotten() {
    let mut daemon = Daemon::start();
    let mut worker = daemon.worker().await;
    let image = EncodedImage(b"a file"[..].into());
    let mut job = generation("a");
    let Job::Generation { request, .. } = &mut job else { unreachable!() };
    request.n = 2;
    let mask = Some(image.clone());
    request.source = Some(Source { image: image.clone(), mask, denoise_strength: 0.5 });
    let ticket = daemon.submit(job).await;
    let id = ticket.id();
    worker.load("a").await;
    let ToWorker::Generate { job, request, .. } = worker.receive().await else {
        panic!("no drawing")
    };
    assert_eq!(request.source.map(|source| source.image), Some(image));
    let drawn = DrawnReport { images: 2, ..report() };
    let rgb = [[1; 8 * 8 * 3], [2; 8 * 8 * 3]].concat();
    worker.send_with(FromWorker::Image { job, drawn }, &rgb).await;
    let Outcome::Images(drawn) = outcome(ticket).await else { panic!("no images") };
    let firsts: Vec<_> = drawn.each().map(|image| (image[0], image.len())).collect();
    assert_eq!(firsts, [(1, 192), (2, 192)]);

    let Job::Generation { request, .. } = daemon.handle.job(id).unwrap().job else {
        unreachable!()
    };
    let empty = EncodedImage::default();
    let source = Source { image: empty.clone(), mask: Some(empty), denoise_strength: 0.5 };
    assert_eq!(request.source, Some(source));
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
    worker.fail_to_prepare("c").await;
    assert_eq!(failed_with(outcome(bad).await).0, FailureKind::UnusableModel);
    let status = daemon.handle.status();
    assert_eq!((status.selected_mode.as_str(), status.current_mode.as_deref()), ("b", Some("b")));
}

#[tokio::test]
async fn a_mode_can_be_loaded_before_anybody_asks() {
    let mut daemon = Daemon::start_with(|config| {
        config.switch_to_default = true;
        config.preload = vec!["c".to_owned(), "b".to_owned()];
        config.queue_max = 1;
    });
    let mut worker = daemon.worker().await;
    for mode in ["a", "c", "b"] {
        worker.load(mode).await;
    }
    daemon.until(|status| status.vram.models.len() == 3).await;
    assert_eq!(daemon.handle.status().current_mode.as_deref(), Some("a"));
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
