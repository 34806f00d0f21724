//! What the daemon and its worker say to each other over the socket pair.
//!
//! A frame is two little-endian `u32` lengths, a JSON message and raw bytes (an image's RGB;
//! mostly empty). Every message names its job, so that a worker may one day have several in flight.

use std::{
    fmt,
    io::{self, Read, Write},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    job::JobId,
    modes::{Dimensions, Keep, LoraReport, PipelineSpec, SchedulerId},
    request::{EncodedImage, GenerateRequest, RequestField, Superres},
    vram::ledger::{Computing, Estimate, Held, PipelineId},
};

/// A message longer than this is a broken peer, not a message. The longest there are: a request
/// with two images, which a form brings in 64 MiB at most and JSON carries in base64, 86 MiB; and
/// the RGB of all images of a job, which is 96 MiB at most (`Superres::MAX_PIXELS`).
pub const MAX_FRAME_BYTES: usize = 96 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// Open a pipeline's files and say what it would take: nothing is read, nothing leaves.
    /// Answered by `Prepared` or `Failed`.
    Prepare { job: JobId, id: PipelineId, pipeline: PipelineSpec, keep: Keep },
    /// Let those go and read what was prepared for that job. Answered by `Loaded`, `Failed` or
    /// `Cancelled`, perhaps after some `Loading`.
    Load {
        job: JobId,
        /// What they share with the new one stays.
        unload: Vec<PipelineId>,
        /// What may be allocated in all.
        limit_bytes: u64,
        /// Whether it must draw a step in finite numbers.
        verify: bool,
    },
    /// Let those go, and the upscaler as well. Answered by `Unloaded`.
    Unload { pipelines: Vec<PipelineId>, upscaler: bool },
    /// Draw with that pipeline. Answered by `Step`s and `Preview`s and then `Image`, `Failed` or `Cancelled`.
    Generate { job: JobId, pipeline: PipelineId, request: GenerateRequest, limit_bytes: u64 },
    /// Draw one small step with that pipeline, whose outcome nobody looks at. Answered by `Probed` or
    /// `Failed`.
    Probe { job: JobId, pipeline: PipelineId, limit_bytes: u64 },
    /// Make an image larger. Answered as `Generate`; a tile is a step.
    Upscale { job: JobId, image: EncodedImage, superres: Superres, limit_bytes: u64 },
    /// Stop that job at its next step, tile or tensor. Without effect on a job that is not running.
    Cancel { job: JobId },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    /// The process runs: about once a second from a thread of its own, whatever the engine does.
    Alive,
    /// The device is open, and can be given work.
    Ready {
        computing: Computing,
    },
    /// 0 ..= 1, at most about ten times a second.
    Loading {
        job: JobId,
        fraction: f32,
    },
    Prepared {
        job: JobId,
        estimate: Estimate,
    },
    Loaded {
        job: JobId,
        report: LoadReport,
        held: Held,
    },
    Unloaded {
        held: Held,
    },
    /// What is held has changed by the way: an upscaler came or went, something was drawn.
    Holds {
        held: Held,
    },
    Step {
        job: JobId,
        step: u32,
        steps: u32,
    },
    /// What the first image looks like after that step, at most twice a second. The frame's raw
    /// bytes are its RGB rows, no side longer than 128 pixels.
    Preview {
        job: JobId,
        step: u32,
        steps: u32,
        width: u32,
        height: u32,
    },
    /// The frame's raw bytes are the images' RGB rows, top to bottom, three bytes a pixel.
    Image {
        job: JobId,
        drawn: DrawnReport,
    },
    Probed {
        job: JobId,
    },
    /// `held`: what is still loaded, if it is not what it was before.
    Failed {
        job: JobId,
        error: WorkerError,
        held: Option<Held>,
    },
    Cancelled {
        job: JobId,
    },
}

impl FromWorker {
    /// The job that it is about.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::Alive | Self::Ready { .. } | Self::Unloaded { .. } | Self::Holds { .. } => None,
            Self::Loading { job, .. }
            | Self::Prepared { job, .. }
            | Self::Loaded { job, .. }
            | Self::Step { job, .. }
            | Self::Preview { job, .. }
            | Self::Image { job, .. }
            | Self::Failed { job, .. }
            | Self::Probed { job }
            | Self::Cancelled { job } => Some(*job),
        }
    }
}

/// What loading a pipeline took and cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// The checkpoint's family, as it is shown to people: "SD1.x".
    pub family: String,
    /// What it has allocated, and what it shares of others' allocations.
    pub measured_bytes: u64,
    pub load_ms: u64,
    /// Of that, what merging LoRAs took.
    pub merge_ms: u64,
    pub loras: Vec<LoraReport>,
}

/// How an image came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrawnReport {
    pub size: Dimensions,
    /// How many; the frame's payload has them one after the other.
    pub images: u32,
    /// The end of the prompt that the text encoder did not see.
    pub prompt_truncated: Option<String>,
    /// LoRAs of the mode that were left out.
    pub skipped_loras: Vec<String>,
    /// The one that was used, the family's own if the request named none; `None` where nothing was
    /// drawn.
    pub scheduler: Option<SchedulerId>,
    pub encode_ms: u64,
    pub denoise_ms: u64,
    pub decode_ms: u64,
    /// What was allocated beside all that is loaded, at most.
    pub peak_bytes: u64,
    /// How many denoising steps that were, of all images together.
    pub steps: u32,
    /// Where they were made larger, which `size` says the result of.
    #[serde(default)]
    pub superres: Option<SuperresReport>,
}

/// How images were made larger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuperresReport {
    /// The model as modes.yaml names it, or `lanczos`.
    pub model: String,
    pub superres_ms: u64,
}

impl DrawnReport {
    /// The size of one image's RGB.
    pub fn image_bytes(&self) -> usize {
        3 * self.size.width as usize * self.size.height as usize
    }
}

/// The images of a job, one after the other, and how they came about.
#[derive(Clone, PartialEq)]
pub struct DrawnImages {
    pub rgb: Vec<u8>,
    pub report: DrawnReport,
}

impl DrawnImages {
    /// Each image: rows top to bottom, three bytes a pixel.
    pub fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.rgb.chunks_exact(self.report.image_bytes())
    }
}

impl fmt::Debug for DrawnImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DrawnImages({:?}, {} bytes)", self.report, self.rgb.len())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WorkerError {
    pub kind: WorkerErrorKind,
    /// Names files as the user does (relative to the roots), so that it may be shown to clients.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerErrorKind {
    /// The checkpoint cannot be used as it is on disk.
    UnusableModel,
    /// Nor can the LoRA of that place in the pipeline's list, or it does not fit the checkpoint.
    UnusableLora { index: usize },
    /// The loaded pipeline cannot do what this request asks for; another request can be drawn.
    InvalidRequest { field: RequestField },
    /// A file lies outside of what the worker's sandbox lets it read.
    OutsideSandbox,
    /// The limit does not allow what was needed.
    OutOfMemory,
    /// Anything that should not have happened.
    Internal,
}

/// Encodes one frame.
pub fn encode(message: &impl Serialize, payload: &[u8]) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    let mut frame = Vec::with_capacity(8 + json.len() + payload.len());
    frame.extend_from_slice(&length(json.len())?.to_le_bytes());
    frame.extend_from_slice(&length(payload.len())?.to_le_bytes());
    frame.extend_from_slice(&json);
    frame.extend_from_slice(payload);
    Ok(frame)
}

/// The lengths of a frame's two parts (JSON, payload), from its first eight bytes.
pub fn decode_header(header: [u8; 8]) -> io::Result<(usize, usize)> {
    let number = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
    };
    let (json, payload) = (number(0), number(4));
    length(json)?;
    length(payload)?;
    Ok((json, payload))
}

/// Writes one frame.
pub fn write(to: &mut impl Write, message: &impl Serialize, payload: &[u8]) -> io::Result<()> {
    to.write_all(&encode(message, payload)?)?;
    to.flush()
}

/// Reads one frame; an end of file between frames is `UnexpectedEof` like any other.
pub fn read<M: DeserializeOwned>(from: &mut impl Read) -> io::Result<(M, Vec<u8>)> {
    let mut header = [0; 8];
    from.read_exact(&mut header)?;
    let (json_len, payload_len) = decode_header(header)?;
    let mut json = vec![0; json_len];
    from.read_exact(&mut json)?;
    let mut payload = vec![0; payload_len];
    from.read_exact(&mut payload)?;
    Ok((serde_json::from_slice(&json)?, payload))
}

fn length(bytes: usize) -> io::Result<u32> {
    if bytes > MAX_FRAME_BYTES {
        let message = format!("a frame part of {bytes} bytes is over the limit");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(bytes as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back() {
        let message = FromWorker::Step { job: JobId::new(), step: 1, steps: 4 };
        let mut wire = Vec::new();
        write(&mut wire, &message, b"rgb").unwrap();
        let (read_back, payload): (FromWorker, _) = read(&mut wire.as_slice()).unwrap();
        assert_eq!((read_back, payload.as_slice()), (message, b"rgb".as_slice()));
    }

    #[test]
    fn a_monstrous_length_is_refused_before_it_is_allocated() {
        let wire = [0xff; 8];
        let error = read::<ToWorker>(&mut wire.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
