//! The pipelines that are loaded, beside each other.
//!
//! Owns them and the one that is being made ready. It is told who leaves, and says what is held.

use std::{
    collections::BTreeMap,
    io, mem,
    ops::ControlFlow,
    thread,
    time::{Duration, Instant},
};

use super::{
    device::{self, device_memory},
    guarded,
    host_cache::HostCache,
    internal, millis, unusable,
    upscaling::LoadedUpscaler,
};
use crate::{
    engine::{
        self, Backend, DrawError, Layers, Pipeline, Prepared, checkpoint, lora::LoraCache, nn,
    },
    modes::{Keep, PipelineSpec},
    vram::ledger::{Component, Estimate, Held, LoraCacheUse, PipelineId, Segment},
    worker::protocol::{LoadReport, WorkerError, WorkerErrorKind},
};

/// What is waited before a file that could not be read is read again.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1600)];

pub struct Residents {
    backend: Backend,
    pipelines: BTreeMap<PipelineId, Pipeline>,
    prepared: Option<Ready>,
    loras: LoraCache,
    /// What has left a card.
    host_cache: HostCache,
    pub upscaler: LoadedUpscaler,
}

/// A pipeline whose files are open.
struct Ready {
    id: PipelineId,
    spec: PipelineSpec,
    prepared: Prepared,
    since: Instant,
}

impl Residents {
    /// Nothing is loaded; what will be, is loaded to there.
    pub fn new(backend: Backend) -> Self {
        let (pipelines, loras) = (BTreeMap::new(), LoraCache::default());
        let upscaler = LoadedUpscaler::new(backend);
        Self {
            backend,
            pipelines,
            prepared: None,
            loras,
            host_cache: HostCache::default(),
            upscaler,
        }
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    pub fn get(&self, id: PipelineId) -> Option<&Pipeline> {
        self.pipelines.get(&id)
    }

    /// Opens a pipeline's files and looks through all that will be needed of it, without reading
    /// weights: what is refused here costs nothing that is loaded.
    pub fn prepare(
        &mut self,
        id: PipelineId,
        spec: PipelineSpec,
        keep: Keep,
    ) -> Result<Estimate, WorkerError> {
        let since = Instant::now();
        // One that was not loaded after all.
        self.prepared = None;
        self.loras.set_limits(keep.loras.max_files, keep.loras.max_bytes);
        // Without a card, the host's memory is where everything is.
        self.host_cache.set_limit(self.backend.card().map_or(0, |_| keep.host_bytes));
        let (backend, loras) = (self.backend, &mut self.loras);
        let prepared = guarded(|| {
            let open = || Prepared::open_on(backend, &spec, loras);
            with_retries(open, thread::sleep).map_err(|error| unusable(&spec, &error))
        })?;
        let segments = self.segments(Some((id, prepared.layers())));
        let held = segments.iter().filter(|segment| segment.users != [id]);
        let held_bytes: u64 = held.map(|segment| segment.bytes).sum();
        let component = |it: engine::Component| Component {
            dtype: device::dtype(backend, &it.name).to_owned(),
            name: it.name,
            stored: it.stored,
            file_bytes: it.file_bytes,
            bytes: it.bytes,
        };
        let estimate = Estimate {
            components: prepared.layers().components().into_iter().map(component).collect(),
            segments,
            working_bytes: prepared.working_bytes(),
            other_bytes: device_memory(backend).allocated.saturating_sub(held_bytes),
        };
        self.prepared = Some(Ready { id, spec, prepared, since });
        Ok(estimate)
    }

    /// Lets those go, and reads what was prepared last, until `watch` ends it.
    pub fn load(
        &mut self,
        unload: &[PipelineId],
        verify: bool,
        watch: &dyn Fn(f32) -> ControlFlow<()>,
    ) -> Result<LoadReport, WorkerError> {
        let Some(Ready { id, spec, prepared, since }) = self.prepared.take() else {
            return Err(internal("nothing was prepared"));
        };
        let mut kept = Layers::default();
        for pipeline in self.pipelines.values() {
            kept.add(pipeline.layers().in_common_with(prepared.layers()));
        }
        self.unload(unload);
        let (shared_bytes, allocated) = (kept.bytes(), device_memory(self.backend).allocated);
        match self.host_cache.bring(&prepared.layers().without(&kept)) {
            Ok(back) => kept.add(back),
            Err(error) => tracing::warn!("its file is read instead: {error}"),
        }
        let pipeline = guarded(|| {
            let pipeline = prepared.load_watched(kept, watch);
            let pipeline = pipeline.map_err(|error| unusable(&spec, &error))?;
            if verify {
                pipeline.probe().map_err(|error| not_verified(&spec, &error))?;
            }
            Ok(pipeline)
        })?;
        let now = device_memory(self.backend).allocated;
        let grown_bytes = now.saturating_sub(allocated);
        let report = LoadReport {
            family: pipeline.facts().family.name().to_owned(),
            measured_bytes: grown_bytes + shared_bytes,
            load_ms: millis(since.elapsed()),
            merge_ms: millis(pipeline.cost().merging),
            loras: pipeline.loras().to_vec(),
        };
        self.pipelines.insert(id, pipeline);
        Ok(report)
    }

    /// Draws one small step. A pipeline that panics is not used again.
    pub fn probe(&mut self, id: PipelineId) -> Result<(), WorkerError> {
        let Some(pipeline) = self.pipelines.get(&id) else {
            return Err(internal("the pipeline is not loaded"));
        };
        match guarded(|| Ok(pipeline.probe())) {
            Ok(probed) => probed.map_err(|error| cannot_draw("the mode's model", &error)),
            Err(error) => {
                self.unload(&[id]);
                Err(error)
            }
        }
    }

    /// Lets those go, and the machine have what they held.
    pub fn unload(&mut self, ids: &[PipelineId]) {
        if ids.is_empty() {
            return;
        }
        let (leaving, staying): (BTreeMap<_, _>, BTreeMap<_, _>) =
            mem::take(&mut self.pipelines).into_iter().partition(|(id, _)| ids.contains(id));
        self.pipelines = staying;
        for pipeline in leaving.values() {
            let staying = self.pipelines.values().map(Pipeline::layers);
            let own = staying.fold(pipeline.layers().clone(), |own, other| own.without(other));
            self.host_cache.keep(&own);
        }
        drop(leaving);
        nn::give_back(self.backend);
    }

    pub fn held(&self) -> Held {
        let loras = &self.loras;
        let memory = device_memory(self.backend);
        Held {
            pipelines: self.pipelines.keys().copied().collect(),
            segments: self.segments(None),
            allocated_bytes: memory.allocated,
            reserved_bytes: memory.reserved,
            peak_bytes: memory.peak,
            lora_cache: LoraCacheUse {
                files: loras.files(),
                bytes: loras.bytes(),
                hits: loras.hits(),
                misses: loras.misses(),
            },
            upscaler_bytes: self.upscaler.bytes(),
        }
    }

    /// Whose the layers are, those of one more pipeline among them.
    fn segments(&self, one_more: Option<(PipelineId, &Layers)>) -> Vec<Segment> {
        let loaded = self.pipelines.iter().map(|(id, pipeline)| (*id, pipeline.layers()));
        let (ids, layers): (Vec<PipelineId>, Vec<&Layers>) = loaded.chain(one_more).unzip();
        let segment = |share: engine::Share| Segment {
            component: share.component,
            users: share.users.into_iter().map(|index| ids[index]).collect(),
            bytes: share.bytes,
        };
        engine::shares(&layers).into_iter().map(segment).collect()
    }
}

/// Opens; and opens again, a little later, where reading failed as it may fail once: a network's
/// file system, a disk that wakes up.
fn with_retries<T>(
    mut open: impl FnMut() -> Result<T, checkpoint::Error>,
    sleep: impl Fn(Duration),
) -> Result<T, checkpoint::Error> {
    for delay in RETRIES {
        match open() {
            Err(error) if is_transient(&error) => {
                tracing::warn!("read again in {} ms: {error}", delay.as_millis());
                sleep(delay);
            }
            result => return result,
        }
    }
    open()
}

/// Whether another attempt may succeed without anybody's doing.
fn is_transient(error: &checkpoint::Error) -> bool {
    use io::ErrorKind as Kind;
    match error {
        checkpoint::Error::Lora { cause, .. } => is_transient(cause),
        checkpoint::Error::Unreadable { cause, .. } => match cause.kind() {
            Kind::Interrupted
            | Kind::TimedOut
            | Kind::WouldBlock
            | Kind::ResourceBusy
            | Kind::StaleNetworkFileHandle
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown => true,
            // EIO has no kind of its own.
            _ => cause.raw_os_error() == Some(libc::EIO),
        },
        _ => false,
    }
}

fn not_verified(spec: &PipelineSpec, error: &DrawError) -> WorkerError {
    tracing::error!("{}: its first step failed: {error}", spec.checkpoint.path.display());
    cannot_draw(&spec.checkpoint.name, error)
}

fn cannot_draw(name: &str, error: &DrawError) -> WorkerError {
    let kind = match error {
        DrawError::OutOfMemory(_) => WorkerErrorKind::OutOfMemory,
        _ => WorkerErrorKind::UnusableModel,
    };
    let message = format!("{name}: was loaded, and cannot draw: {error}");
    WorkerError { kind, message }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn failing(error: io::Error) -> checkpoint::Error {
        checkpoint::Error::Unreadable { file: "a.safetensors".to_owned(), cause: error }
    }

    #[test]
    fn what_may_pass_is_tried_three_times_more_with_growing_pauses() {
        let busy = || io::Error::from_raw_os_error(libc::EIO);
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        type Cause<'a> = &'a dyn Fn() -> io::Error;
        for (failures, cause, pauses, succeeds) in [
            (0, &busy as Cause<'_>, &[][..], true),
            (2, &busy, &[100, 400], true),
            (3, &busy, &[100, 400, 1600], true),
            (4, &busy, &[100, 400, 1600], false),
            (1, &missing, &[], false),
        ] {
            let (slept, mut left) = (RefCell::new(Vec::new()), failures);
            let open = || {
                left -= 1;
                if left < 0 { Ok(()) } else { Err(failing(cause())) }
            };
            let result = with_retries(open, |pause| slept.borrow_mut().push(pause.as_millis()));
            assert_eq!(result.is_ok(), succeeds, "{failures} times {}", cause());
            assert_eq!(*slept.borrow(), pauses, "{failures} times {}", cause());
        }
    }

    #[test]
    fn a_loras_file_is_read_again_like_any_other() {
        let cause = Box::new(failing(io::Error::from(io::ErrorKind::TimedOut)));
        assert!(is_transient(&checkpoint::Error::Lora { index: 0, cause }));
    }
}
