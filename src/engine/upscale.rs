//! Images made larger: by an upscaler, tile by tile, or by Lanczos where there is none.
//!
//! A *magnitude* is a power of two: 1, 2 and 3 make each side 2, 4 and 8 times as long. A network has a
//! factor of its own. It runs once, and again as long as that does not overshoot; what is missing
//! then, or is too much after the first run, is Lanczos', as in Real-ESRGAN's own program. So a ×4 network
//! makes 2 of 4 ÷ 2, 4 of 4, and 8 of 4 · 2; a ×2 network makes 8 of 2 · 2 · 2.

use std::ops::{ControlFlow, Range};

use super::{
    DrawError, Step,
    backend::Backend,
    checkpoint::{self, Layers, Loading, Reading, UPSCALER, open_upscaler},
    lora::Patches,
    memory,
    model::RrdbNet,
    nn::Tensor,
};
use crate::{
    image::{Decoded, decode_as_it_is, lanczos},
    modes::CheckpointRef,
    request::RequestField,
};

pub use crate::image::Rgb;

/// A loaded upscaler.
pub struct Upscaler {
    net: RrdbNet,
    layers: Layers,
}

/// How an image is cut, in its own pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// The longest side of a tile, without what it sees around it.
    pub tile: usize,
    /// What it sees around it, and has no part in its result; a multiple of 4.
    pub halo: usize,
}

impl Tiling {
    pub const DEFAULT: Self = Self { tile: 192, halo: 16 };

    fn tiles(self, side: usize) -> usize {
        side.div_ceil(self.tile).max(1)
    }
}

/// An image that was made: rows top to bottom, three bytes a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upscaled {
    pub width: u32,
    pub height: u32,
    pub bytes: Vec<u8>,
}

impl Upscaled {
    fn rgb(&self) -> Rgb<'_> {
        Rgb { width: self.width, height: self.height, bytes: &self.bytes }
    }
}

/// How a magnitude is reached: how often the network runs. The rest is Lanczos'.
fn runs(scale: usize, magnitude: u32) -> u32 {
    match scale {
        ..=1 => 1,
        scale => (magnitude / scale.ilog2()).max(1),
    }
}

/// How many tiles there will be for [`upscale`] to do.
pub fn tiles(upscaler: Option<&Upscaler>, (width, height): (u32, u32), magnitude: u32) -> u32 {
    let Some(upscaler) = upscaler else { return 1 };
    let scale = upscaler.net.scale();
    let of_run = |run: u32| {
        let side = |side: u32| Tiling::DEFAULT.tiles(side as usize * scale.pow(run));
        (side(width) * side(height)) as u32
    };
    (0..runs(scale, magnitude)).map(of_run).sum()
}

/// Makes an image larger. `on_tile` is asked after each of [`tiles`].
///
/// # Errors
/// Out of memory, cancelled by `on_tile`, or weights that lead out of the numbers.
pub fn upscale(
    upscaler: Option<&Upscaler>,
    image: Rgb<'_>,
    magnitude: u32,
    on_tile: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Upscaled, DrawError> {
    let [width, height] = [image.width, image.height].map(|side| side << magnitude);
    let Some(upscaler) = upscaler else {
        let upscaled = stretched(image, (width, height))?;
        return if on_tile().is_break() { Err(DrawError::Cancelled) } else { Ok(upscaled) };
    };
    let mut upscaled = upscaler.run(image, Tiling::DEFAULT, on_tile)?;
    for _ in 1..runs(upscaler.net.scale(), magnitude) {
        upscaled = upscaler.run(upscaled.rgb(), Tiling::DEFAULT, on_tile)?;
    }
    if (upscaled.width, upscaled.height) == (width, height) {
        return Ok(upscaled);
    }
    stretched(upscaled.rgb(), (width, height))
}

/// The same of a PNG, JPEG or WebP file. `on_tile` hears how many tiles are done, and of how many.
///
/// # Errors
/// Besides, the file is no image.
pub fn upscale_file(
    upscaler: Option<&Upscaler>,
    file: &[u8],
    magnitude: u32,
    on_tile: &mut dyn FnMut(Step) -> ControlFlow<()>,
) -> Result<Upscaled, DrawError> {
    let field = RequestField::Image;
    let Decoded { width, height, bytes } =
        decode_as_it_is(file).map_err(|error| DrawError::Source { field, error })?;
    let (mut step, steps) = (0, tiles(upscaler, (width, height), magnitude));
    let mut on_tile = || {
        step += 1;
        on_tile(Step { step, steps })
    };
    upscale(upscaler, Rgb { width, height, bytes: &bytes }, magnitude, &mut on_tile)
}

fn stretched(image: Rgb<'_>, (width, height): (u32, u32)) -> Result<Upscaled, DrawError> {
    // Between its two passes the crate has an image of that width and height, in four floats a pixel.
    let between = 16 * u64::from(image.width) * u64::from(height);
    ask(between + 3 * u64::from(width) * u64::from(height))?;
    Ok(Upscaled { width, height, bytes: lanczos(image, (width, height)) })
}

fn ask(bytes: u64) -> Result<(), DrawError> {
    memory::check(bytes).map_err(DrawError::OutOfMemory)
}

/// A part of a side: what a tile is to make, and what it sees.
struct Part {
    core: Range<usize>,
    seen: Range<usize>,
}

/// The parts of a side of that length, which is a multiple of `multiple`, as all ends are.
fn parts(side: usize, multiple: usize, tiling: Tiling) -> Vec<Part> {
    let count = tiling.tiles(side);
    let end = |i: usize| side * i / count / multiple * multiple;
    let part = |i: usize| {
        let core = end(i)..end(i + 1);
        let seen = core.start.saturating_sub(tiling.halo)..(core.end + tiling.halo).min(side);
        Part { core, seen }
    };
    (0..count).map(part).collect()
}

impl Upscaler {
    /// Reads an upscaler's file.
    ///
    /// # Errors
    /// It is none, or is damaged; or memory is short.
    pub fn load(model: &CheckpointRef) -> Result<Self, checkpoint::Error> {
        Self::load_on(Backend::Cpu, model)
    }

    /// The same, to draw there.
    pub fn load_on(backend: Backend, model: &CheckpointRef) -> Result<Self, checkpoint::Error> {
        let (networks, patches) = (open_upscaler(model)?, Patches::default());
        let check = Reading::check(backend, &networks, &patches);
        RrdbNet::load(&check.weights(UPSCALER))?;
        let (planned, _) = check.finish();
        let loading = Loading {
            planned: &planned,
            kept: Layers::default(),
            on_bytes: &|_| ControlFlow::Continue(()),
        };
        let reading = Reading::load(backend, &networks, &patches, loading);
        let net = RrdbNet::load(&reading.weights(UPSCALER))?;
        let (layers, _) = reading.finish();
        Ok(Self { net, layers })
    }

    /// The network, for those who measure or compare it.
    pub fn net(&self) -> &RrdbNet {
        &self.net
    }

    /// The weights as they are held in memory.
    pub fn weights_bytes(&self) -> u64 {
        self.layers.bytes()
    }

    /// The image enlarged once, by the network's own factor.
    pub fn run(
        &self,
        image: Rgb<'_>,
        tiling: Tiling,
        on_tile: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Upscaled, DrawError> {
        let (scale, multiple) = (self.net.scale(), self.net.multiple());
        let [width, height] = [image.width, image.height].map(|side| side as usize);
        let size = (3 * width * scale).saturating_mul(height * scale);
        ask(size as u64)?;
        let mut bytes = vec![0; size];
        let parts = |side: usize| parts(side.next_multiple_of(multiple), multiple, tiling);
        let columns = parts(width);
        for row in parts(height) {
            for column in &columns {
                let seen = pixels(image, &row.seen, &column.seen)?;
                let made = self.net.forward(&seen)?.to_vec()?;
                if !made.iter().all(|x| x.is_finite()) {
                    return Err(DrawError::NotFinite);
                }
                let stride = 3 * column.seen.len() * scale;
                let len = 3 * (column.core.end.min(width) - column.core.start) * scale;
                let left = 3 * (column.core.start - column.seen.start) * scale;
                for y in row.core.start * scale..row.core.end.min(height) * scale {
                    let from = (y - row.seen.start * scale) * stride + left;
                    let to = 3 * (y * width + column.core.start) * scale;
                    let made = made[from..][..len].iter();
                    made.zip(&mut bytes[to..][..len]).for_each(|(x, byte)| *byte = level(*x));
                }
                if on_tile().is_break() {
                    return Err(DrawError::Cancelled);
                }
            }
        }
        let [width, height] = [image.width, image.height].map(|side| side * scale as u32);
        Ok(Upscaled { width, height, bytes })
    }
}

/// A part of an image in 0 ..= 1, `[1, h, w, 3]`; beyond its end it is mirrored, as the reference does.
fn pixels(
    image: Rgb<'_>,
    rows: &Range<usize>,
    columns: &Range<usize>,
) -> Result<Tensor, DrawError> {
    let [width, height] = [image.width, image.height].map(|side| side as usize);
    let mirrored = |at: usize, side: usize| {
        if at < side { at } else { (2 * (side - 1)).saturating_sub(at) }
    };
    let mut numbers = Vec::with_capacity(3 * rows.len() * columns.len());
    for y in rows.clone() {
        for x in columns.clone() {
            let at = 3 * (mirrored(y, height) * width + mirrored(x, width));
            numbers.extend(image.bytes[at..][..3].iter().map(|byte| f32::from(*byte) / 255.0));
        }
    }
    Ok(Tensor::from_vec(numbers, &[1, rows.len(), columns.len(), 3])?)
}

fn level(x: f32) -> u8 {
    (x.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_magnitude_is_reached_in_runs_that_do_not_overshoot() {
        for (scale, expected) in [(1, [1, 1, 1]), (2, [1, 2, 3]), (4, [1, 1, 1])] {
            assert_eq!([1, 2, 3].map(|magnitude| runs(scale, magnitude)), expected, "x{scale}");
        }
    }

    #[test]
    fn the_parts_of_a_side_meet_and_see_beyond_themselves() {
        let tiling = Tiling { tile: 20, halo: 8 };
        for (side, multiple, count) in [(1, 1, 1), (20, 4, 1), (24, 4, 2), (101, 1, 6), (100, 2, 5)]
        {
            let parts = parts(side, multiple, tiling);
            assert_eq!(parts.len(), count, "{side}");
            let mut at = 0;
            for Part { core, seen } in parts {
                assert_eq!(core.start, at);
                assert!(!core.is_empty() && core.len() <= tiling.tile + multiple, "{core:?}");
                assert_eq!(seen, at.saturating_sub(8)..(core.end + 8).min(side), "{side}");
                assert!(seen.start % multiple == 0 && seen.end % multiple == 0, "{seen:?}");
                at = core.end;
            }
            assert_eq!(at, side);
        }
    }

    #[test]
    fn without_a_network_it_is_lanczos() {
        let bytes: Vec<u8> = (0..3 * 5 * 3).map(|i| (i * 5) as u8).collect();
        let image = Rgb { width: 5, height: 3, bytes: &bytes };
        let upscaled = upscale(None, image, 2, &mut || ControlFlow::Continue(())).unwrap();
        assert_eq!((upscaled.width, upscaled.height), (20, 12));
        assert_eq!(upscaled.bytes, lanczos(image, (20, 12)));
        let cancelled = upscale(None, image, 1, &mut || ControlFlow::Break(()));
        assert!(matches!(cancelled, Err(DrawError::Cancelled)));
    }
}
