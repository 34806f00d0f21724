//! Measures memory about once a second, away from whoever shows it.

use std::time::Duration;

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use super::{
    GpuInfo,
    cards::Cards,
    host::{self, HostMemory},
};

const INTERVAL: Duration = Duration::from_secs(1);

/// What was measured at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readings {
    pub host: HostMemory,
    /// 0 while there is no worker.
    pub worker_resident_bytes: u64,
    pub gpus: Vec<GpuInfo>,
}

/// Starts a task that measures until the sender of `worker` (the worker's process id) is dropped.
/// What it returns holds the host's memory from the start; the rest follows.
pub fn watch(worker: watch::Receiver<Option<u32>>, cards: Cards) -> watch::Receiver<Readings> {
    let (publish, readings) =
        watch::channel(Readings { host: host::memory(), ..Readings::default() });
    tokio::spawn(measure(worker, cards, publish));
    readings
}

async fn measure(
    mut worker: watch::Receiver<Option<u32>>,
    cards: Cards,
    publish: watch::Sender<Readings>,
) {
    loop {
        let pid = *worker.borrow_and_update();
        // The library of the cards' driver may block.
        let cards = cards.clone();
        let measuring = spawn_blocking(move || Readings {
            host: host::memory(),
            worker_resident_bytes: pid.and_then(host::resident_bytes).unwrap_or(0),
            gpus: cards.list(pid),
        });
        let readings = match measuring.await {
            Ok(measured) => measured,
            Err(error) if error.is_panic() => {
                tracing::error!("measuring memory failed; what is shown of it stays as it is");
                return;
            }
            // The runtime is shutting down.
            Err(_) => return,
        };
        publish.send_if_modified(|shown| {
            let changed = *shown != readings;
            *shown = readings;
            changed
        });
        tokio::select! {
            () = sleep(INTERVAL) => {}
            changed = worker.changed() => if changed.is_err() { return },
        }
    }
}
