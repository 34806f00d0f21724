//! A worker that computes on a card, whose driver the test plays, too.

use super::*;
use crate::vram::{Cards, GpuInfo, Reason};

/// CUDA's first card: so many bytes, of which so many are used, and so many by the worker.
fn card(total_bytes: u64, used_bytes: u64, worker_bytes: Option<u64>) -> Vec<GpuInfo> {
    let name = "a card".to_owned();
    let card = GpuInfo { index: 1, cuda: Some(0), name, total_bytes, used_bytes, worker_bytes };
    vec![GpuInfo { index: 0, total_bytes: 7, ..GpuInfo::default() }, card]
}

fn started(cards: &Cards) -> Daemon {
    let cards = cards.clone();
    Daemon::start_with(move |config| config.cards = cards)
}

impl Worker {
    /// Is to read what was prepared, within that limit; who goes first.
    async fn expect_limit(&mut self, limit: u64) -> usize {
        match self.receive().await {
            ToWorker::Load { job, unload, limit_bytes, .. } => {
                assert_eq!(limit_bytes, limit);
                unload.iter().for_each(|id| assert!(self.held.remove(id).is_some(), "{id:?}"));
                self.send_loaded(job).await;
                unload.len()
            }
            other => panic!("{other:?} where something was to be read"),
        }
    }
}

#[tokio::test]
async fn what_a_card_has_left_is_the_limit() {
    // Of 100 bytes 30 are others'; the worker's context takes 10, as the driver says.
    let cards = Cards::told(card(100, 40, Some(10)));
    let mut daemon = started(&cards);
    let mut worker = daemon.worker_on("cuda:0").await;
    daemon.until(|status| status.vram.total_bytes == 100).await;
    let vram = daemon.handle.status().vram.clone();
    assert_eq!((vram.computing.device.as_str(), vram.device_name.as_str()), ("cuda:0", "a card"));
    assert_eq!((vram.used_bytes, vram.process_bytes), (40, Some(10)));

    let a = daemon.submit(switch("a")).await;
    let job = worker.expect_prepare("a").await;
    worker.send_prepared(job, 50).await;
    assert_eq!(worker.expect_limit(60).await, 0);
    outcome(a).await;

    // What the worker has taken meanwhile is its own.
    cards.tell(card(100, 90, Some(60)));
    worker.reserved = 50;
    let held = worker.holding();
    worker.send(FromWorker::Holds { held }).await;
    daemon.until(|status| status.vram.reserved_bytes == 50).await;
    let b = daemon.submit(switch("b")).await;
    let job = worker.expect_prepare("b").await;
    worker.send_prepared(job, 20).await;
    assert_eq!(worker.expect_limit(60).await, 1, "50 and 20 are more than 60");
    outcome(b).await;
    assert_eq!(daemon.handle.status().vram.evictions.get(&Reason::Memory), Some(&1));

    // It would fit, if others did not use the card.
    let c = daemon.submit(switch("c")).await;
    let job = worker.expect_prepare("c").await;
    worker.send_prepared(job, 61).await;
    let (kind, why) = failed_with(outcome(c).await);
    assert_eq!(kind, FailureKind::NoRoom, "{why}");
}

#[tokio::test]
async fn a_worker_that_keeps_its_card_is_started_anew() {
    let cards = Cards::told(card(1000, 0, None));
    for (keeps, anew) in [(20, false), (21, true)] {
        let mut daemon = started(&cards);
        let mut worker = daemon.worker_on("cuda:0").await;
        daemon.submit(switch("a")).await.detach();
        worker.load("a").await;
        daemon.until(|status| status.current_mode.is_some()).await;
        let all = daemon.submit(Job::Unload { what: crate::job::Unload::All }).await;
        worker.reserved = keeps;
        worker.unload(1).await;
        assert_eq!(outcome(all).await, Outcome::Unloaded(vec!["a".to_owned()]));
        daemon.until(|status| status.worker_ready != anew).await;
        if anew {
            let _worker = daemon.worker_on("cuda:0").await;
            daemon.until(|status| status.worker_ready && status.vram.reserved_bytes == 0).await;
        } else {
            assert_eq!(daemon.handle.status().vram.reserved_bytes, keeps);
        }
    }
}

#[tokio::test]
async fn a_card_that_nobody_knows_has_no_limit_but_the_files() {
    let memory = Memory { limit_bytes: Some(30), ..Memory::default() };
    let mut daemon = Daemon::start_with(move |config| {
        config.cards = Cards::told(Vec::new());
        config.modes = modes(memory, &[]);
    });
    let mut worker = daemon.worker_on("cuda:0").await;
    let a = daemon.submit(switch("a")).await;
    let job = worker.expect_prepare("a").await;
    worker.send_prepared(job, 25).await;
    assert_eq!(worker.expect_limit(30).await, 0);
    assert_eq!(outcome(a).await, Outcome::Switched);
    let vram = daemon.handle.status().vram.clone();
    assert_eq!((vram.total_bytes, vram.process_bytes), (0, None));
    assert_eq!(vram.device_name, "cuda:0");
}

#[tokio::test]
async fn what_a_worker_may_keep_is_told_with_each_load() {
    let memory = Memory { host_cache_bytes: 5 << 30, ..Memory::default() };
    let mut daemon = Daemon::start_with(move |config| config.modes = modes(memory, &[]));
    let mut worker = daemon.worker_on("cuda:0").await;
    let _a = daemon.submit(switch("a")).await;
    match worker.receive().await {
        ToWorker::Prepare { keep, .. } => {
            assert_eq!((keep.host_bytes, keep.loras), (5 << 30, Default::default()));
        }
        other => panic!("{other:?} where something was to be prepared"),
    }
}
