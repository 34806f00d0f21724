//! Images that are made larger: those that were drawn, and those that were sent.
//!
//! Owns the upscaler that is loaded; there is one at most. It is small beside a pipeline (0.25 GiB for
//! the usual size) and soon loaded again: so it leaves before a pipeline is prepared, and is no part
//! of the plans for those.

use std::{io, ops::ControlFlow, sync::atomic::Ordering, time::Instant};

use super::{Upscale, Worker, device::device_memory, draw_error, guarded, millis, unusable_file};
use crate::{
    engine::{
        Backend, DrawError, Drawn, Pipeline, Step,
        checkpoint::FileIdentity,
        nn,
        preview::Glimpse,
        upscale::{self, Rgb, Upscaled, Upscaler},
    },
    job::JobId,
    modes::{CheckpointRef, Dimensions},
    request::{GenerateRequest, Superres},
    worker::protocol::{DrawnReport, FromWorker, SuperresReport, WorkerError},
};

/// The upscaler that is loaded, if one is, and the file that it came from.
pub struct LoadedUpscaler {
    backend: Backend,
    loaded: Option<(FileIdentity, Upscaler)>,
}

impl LoadedUpscaler {
    pub fn new(backend: Backend) -> Self {
        Self { backend, loaded: None }
    }

    pub fn bytes(&self) -> u64 {
        self.get().map_or(0, Upscaler::weights_bytes)
    }

    pub fn get(&self) -> Option<&Upscaler> {
        self.loaded.as_ref().map(|(_, upscaler)| upscaler)
    }

    pub fn let_go(&mut self) {
        if self.loaded.take().is_some() {
            nn::give_back(self.backend);
        }
    }

    /// Has that one loaded, unless it is there and its file is what it was.
    fn load(&mut self, model: &CheckpointRef) -> Result<(), WorkerError> {
        // One that is not there has none, and loading says so.
        let identity = FileIdentity::of(&model.path).ok();
        if self.loaded.as_ref().is_some_and(|(there, _)| Some(there) == identity.as_ref()) {
            return Ok(());
        }
        self.let_go();
        let load = || Upscaler::load_on(self.backend, model);
        let load = || load().map_err(|error| unusable_file(&model.path, &error));
        let upscaler = guarded(load)?;
        self.loaded = identity.map(|identity| (identity, upscaler));
        Ok(())
    }
}

/// A request's images.
pub struct Made {
    pub drawn: Drawn,
    /// How many denoising steps that took.
    pub steps: u32,
    pub enlarged: Option<Enlarged>,
}

/// The images as they are when they were made larger, and how.
pub struct Enlarged {
    pub images: Vec<Upscaled>,
    pub report: SuperresReport,
}

/// Draws a request's images, and makes them larger if that was asked for. `watch` hears of tiles
/// as of steps, which they follow.
pub fn draw(
    pipeline: &Pipeline,
    request: &GenerateRequest,
    upscaler: Option<&Upscaler>,
    watch: &mut dyn FnMut(Step, Option<&Glimpse<'_>>) -> ControlFlow<()>,
) -> Result<Made, DrawError> {
    let size = (request.size.width, request.size.height);
    let magnitude = request.superres.as_ref().map(|superres| superres.magnitude);
    let tiles = magnitude.map_or(0, |it| request.n * upscale::tiles(upscaler, size, it));
    let mut last = Step { step: 0, steps: 0 };
    let drawn = pipeline.draw_watched(request, &mut |Step { step, steps }, glimpse| {
        last = Step { step, steps: steps + tiles };
        watch(last, glimpse)
    })?;
    let Some(superres) = &request.superres else {
        return Ok(Made { drawn, steps: last.step, enlarged: None });
    };
    let began = Instant::now();
    let mut step = last.step;
    let mut on_tile = || {
        step += 1;
        watch(Step { step, ..last }, None)
    };
    let images = drawn.images.iter().map(|rgb| {
        let image = Rgb { width: size.0, height: size.1, bytes: rgb };
        upscale::upscale(upscaler, image, superres.magnitude, &mut on_tile)
    });
    let images = images.collect::<Result<_, _>>()?;
    let enlarged = Enlarged { images, report: report(superres, began) };
    Ok(Made { drawn, steps: last.step, enlarged: Some(enlarged) })
}

fn report(superres: &Superres, since: Instant) -> SuperresReport {
    SuperresReport { model: superres.model_name().to_owned(), superres_ms: millis(since.elapsed()) }
}

impl Worker {
    /// Has loaded what makes images larger for a job, if a network does, and the daemon told of it.
    pub(super) fn load_upscaler(
        &mut self,
        superres: Option<&Superres>,
    ) -> io::Result<Result<(), WorkerError>> {
        let Some(model) = superres.and_then(|superres| superres.model.as_ref()) else {
            return Ok(Ok(()));
        };
        if let Some(error) = self.outside([model.path.as_path()]) {
            return Ok(Err(error));
        }
        let held_bytes = self.residents.upscaler.bytes();
        let loaded = self.residents.upscaler.load(model);
        if self.residents.upscaler.bytes() != held_bytes {
            self.send(&FromWorker::Holds { held: self.residents.held() }, &[])?;
        }
        Ok(loaded)
    }

    /// It makes room for a pipeline.
    pub(super) fn let_go_of_upscaler(&mut self) -> io::Result<()> {
        if self.residents.upscaler.get().is_none() {
            return Ok(());
        }
        self.residents.upscaler.let_go();
        self.send(&FromWorker::Holds { held: self.residents.held() }, &[])
    }

    pub(super) fn upscale(&mut self, upscale: &Upscale) -> io::Result<()> {
        let Upscale { job, image, superres, limit_bytes, cancelled } = upscale;
        let job = *job;
        nn::set_limit(self.residents.backend(), *limit_bytes);
        if let Err(error) = self.load_upscaler(Some(superres))? {
            return self.send(&FromWorker::Failed { job, error, held: None }, &[]);
        }
        let backend = self.residents.backend();
        let (allocated, began) = (device_memory(backend).allocated, Instant::now());
        nn::reset_peak(backend);
        let upscaler = superres.model.as_ref().and(self.residents.upscaler.get());
        let mut on_tile = |Step { step, steps }| {
            if cancelled.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            // If the daemon is gone, the other thread ends the process.
            let _ = self.connection.send(&FromWorker::Step { job, step, steps }, &[]);
            ControlFlow::Continue(())
        };
        let magnitude = superres.magnitude;
        let made =
            guarded(|| Ok(upscale::upscale_file(upscaler, &image.0, magnitude, &mut on_tile)));
        match made {
            Ok(Ok(made)) => {
                let (size, rgb) = payload(vec![made]);
                let peak_bytes = device_memory(backend).peak.saturating_sub(allocated);
                let drawn = upscaled(size, peak_bytes, report(superres, began));
                self.send(&FromWorker::Holds { held: self.residents.held() }, &[])?;
                self.send(&FromWorker::Image { job, drawn }, &rgb)
            }
            Ok(Err(error)) => self.send_draw_error(job, &error),
            Err(error) => {
                // As with pipelines: who knows what a panic has left of it.
                self.residents.upscaler.let_go();
                let held = Some(self.residents.held());
                self.send(&FromWorker::Failed { job, error, held }, &[])
            }
        }
    }

    /// Why there is no image.
    pub(super) fn send_draw_error(&self, job: JobId, error: &DrawError) -> io::Result<()> {
        let held = self.residents.held();
        match error {
            DrawError::Cancelled => {
                self.send(&FromWorker::Holds { held }, &[])?;
                self.send(&FromWorker::Cancelled { job }, &[])
            }
            error => {
                let (error, held) = (draw_error(job, error), Some(held));
                self.send(&FromWorker::Failed { job, error, held }, &[])
            }
        }
    }
}

/// Images of one size: that, and all their bytes.
pub fn payload(images: Vec<Upscaled>) -> (Dimensions, Vec<u8>) {
    let first = images.first().map_or((0, 0), |image| (image.width, image.height));
    let dimensions = Dimensions { width: first.0, height: first.1 };
    let bytes = match <[Upscaled; 1]>::try_from(images) {
        Ok([image]) => image.bytes,
        Err(images) => images.iter().flat_map(|image| &image.bytes).copied().collect(),
    };
    (dimensions, bytes)
}

/// Of an image that was not drawn.
fn upscaled(size: Dimensions, peak_bytes: u64, superres: SuperresReport) -> DrawnReport {
    DrawnReport {
        size,
        images: 1,
        prompt_truncated: None,
        skipped_loras: Vec::new(),
        scheduler: None,
        encode_ms: 0,
        denoise_ms: 0,
        decode_ms: 0,
        peak_bytes,
        steps: 0,
        superres: Some(superres),
    }
}
