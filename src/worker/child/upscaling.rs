//! Images that are made larger: those that were drawn, and those that were sent.
//!
//! Owns the upscaler that is loaded; there is one at most. It is small beside a pipeline (0.26 GiB for
//! the usual size) and soon loaded again: so it leaves before a pipeline is prepared, and is no part
//! of the plans for those.

use std::{
    io,
    ops::ControlFlow,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{Upscale, Worker, draw_error, guarded, millis, send, unusable_file};
use crate::{
    engine::{
        DrawError,
        checkpoint::FileIdentity,
        memory,
        upscale::{self, Upscaled, Upscaler},
    },
    image::{self, Rgb},
    job::JobId,
    modes::{CheckpointRef, Dimensions},
    request::{RequestField, Superres},
    worker::protocol::{DrawnReport, FromWorker, SuperresReport, WorkerError},
};

/// The upscaler that is loaded, if one is, and the file that it came from.
#[derive(Default)]
pub struct LoadedUpscaler(Option<(FileIdentity, Upscaler)>);

impl LoadedUpscaler {
    pub fn bytes(&self) -> u64 {
        self.get().map_or(0, Upscaler::weights_bytes)
    }

    pub fn get(&self) -> Option<&Upscaler> {
        self.0.as_ref().map(|(_, upscaler)| upscaler)
    }

    pub fn let_go(&mut self) {
        if self.0.take().is_some() {
            memory::trim();
        }
    }

    /// Has that one loaded, unless it is there and its file is what it was.
    fn load(&mut self, model: &CheckpointRef) -> Result<(), WorkerError> {
        // One that is not there has none, and loading says so.
        let identity = FileIdentity::of(&model.path).ok();
        if self.0.as_ref().is_some_and(|(there, _)| Some(there) == identity.as_ref()) {
            return Ok(());
        }
        self.let_go();
        let load = || Upscaler::load(model).map_err(|error| unusable_file(&model.path, &error));
        let upscaler = guarded(load)?;
        self.0 = identity.map(|identity| (identity, upscaler));
        Ok(())
    }
}

/// A generation's images, made larger.
pub struct Enlarged {
    pub images: Vec<Upscaled>,
    pub took: Duration,
}

/// Makes images of one size larger. `on_tile` is asked after each tile of each of them.
pub fn enlarge(
    upscaler: Option<&Upscaler>,
    superres: &Superres,
    images: &[Rgb<'_>],
    on_tile: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Enlarged, DrawError> {
    let began = Instant::now();
    let one = |image: &Rgb<'_>| upscale::upscale(upscaler, *image, superres.magnitude, on_tile);
    let images = images.iter().map(one).collect::<Result<_, _>>()?;
    Ok(Enlarged { images, took: began.elapsed() })
}

pub fn report(superres: &Superres, took: Duration) -> SuperresReport {
    SuperresReport { model: superres.model_name().to_owned(), superres_ms: millis(took) }
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
        let held_bytes = self.residents.upscaler.bytes();
        let loaded = self.residents.upscaler.load(model);
        if self.residents.upscaler.bytes() != held_bytes {
            self.send(&FromWorker::Holds { held: self.residents.held() }, &[])?;
        }
        Ok(loaded)
    }

    pub(super) fn upscale(&mut self, upscale: &Upscale) -> io::Result<()> {
        let Upscale { job, image, superres, limit_bytes, cancelled } = upscale;
        let job = *job;
        memory::set_limit(*limit_bytes);
        if let Err(error) = self.load_upscaler(Some(superres))? {
            return self.send(&FromWorker::Failed { job, error, held: None }, &[]);
        }
        let allocated = memory::allocated_bytes();
        memory::reset_peak();
        let upscaler = superres.model.as_ref().and(self.residents.upscaler.get());
        let mut on_tile = |step, steps| {
            let _ = send(&self.socket, &FromWorker::Step { job, step, steps }, &[]);
            match cancelled.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let made = guarded(|| Ok(one(upscaler, superres, &image.0, &mut on_tile)));
        match made {
            Ok(Ok(Enlarged { images, took })) => {
                let (dimensions, rgb) = payload(images);
                let peak_bytes = memory::peak_bytes().saturating_sub(allocated);
                let drawn = upscaled(dimensions, peak_bytes, report(superres, took));
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
        match error {
            DrawError::Cancelled => self.send(&FromWorker::Cancelled { job }, &[]),
            error => {
                let error = draw_error(job, error);
                self.send(&FromWorker::Failed { job, error, held: None }, &[])
            }
        }
    }
}

/// Makes an image of a file larger; `on_tile` hears how many tiles are done, and of how many.
fn one(
    upscaler: Option<&Upscaler>,
    superres: &Superres,
    file: &[u8],
    on_tile: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<Enlarged, DrawError> {
    let field = RequestField::Image;
    let decoded = image::decode_as_it_is(file);
    let image = decoded.map_err(|error| DrawError::Source { field, error })?;
    let tiles = upscale::tiles(upscaler, (image.width, image.height), superres.magnitude);
    let mut done = 0;
    let mut on_tile = || {
        done += 1;
        on_tile(done, tiles)
    };
    let rgb = Rgb { width: image.width, height: image.height, bytes: &image.bytes };
    enlarge(upscaler, superres, &[rgb], &mut on_tile)
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
