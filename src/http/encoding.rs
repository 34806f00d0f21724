//! Finished images → answers, off the server's threads and each step in its place.

use std::{error::Error, fs::File, io::BufReader, sync::Arc};

use axum::response::Response;
use tokio::task::spawn_blocking;

use super::{
    budget::{ANSWERS, IMAGES, WORK},
    problem::Problem,
    sending::Answer,
};
use crate::{
    dispatcher::DrawnImages,
    image::{self, Format},
};

type Encoded = Result<Answer, Box<dyn Error + Send + Sync>>;

/// Answers with images that nobody else has.
pub async fn drawn(
    drawn: Arc<DrawnImages>,
    format: Format,
    encode: impl FnOnce(&DrawnImages) -> Encoded + Send + 'static,
) -> Result<Response, Problem> {
    let bytes = drawn.rgb.len() as u64;
    let waiting = IMAGES.take(bytes).await?;
    let work = encoding_bytes(format, bytes);
    in_places(bytes, work, move || {
        let encoded = encode(&drawn);
        drop((drawn, waiting));
        encoded
    })
    .await
}

/// Answers with images that are kept in memory, of which one has that many bytes.
pub async fn kept(
    bytes: u64,
    format: Format,
    encode: impl FnOnce() -> Encoded + Send + 'static,
) -> Result<Response, Problem> {
    in_places(bytes, encoding_bytes(format, bytes), encode).await
}

/// Answers with a PNG file that is kept, in another format. Its pixels have that many bytes.
pub async fn converted(
    file: File,
    bytes: u64,
    format: Format,
    encode: impl FnOnce(&[u8]) -> Encoded + Send + 'static,
) -> Result<Response, Problem> {
    in_places(bytes, bytes + encoding_bytes(format, bytes), move || {
        encode(&image::decode_png(BufReader::new(file))?.bytes)
    })
    .await
}

/// What encoding takes beside the pixels, and beside the file, which has a place of its own.
fn encoding_bytes(format: Format, pixels: u64) -> u64 {
    match format {
        // A file grows by doubling.
        Format::Png | Format::Jpeg { .. } => pixels,
        // The encoder works on RGBA.
        Format::WebP => pixels / 3 * 4,
    }
}

/// A file is hardly larger than its pixels: so much is set aside for it, and the rest returned
/// once it is there.
async fn in_places(
    pixels: u64,
    work: u64,
    encode: impl FnOnce() -> Encoded + Send + 'static,
) -> Result<Response, Problem> {
    let mut place = ANSWERS.take(pixels).await?;
    let working = WORK.take(work).await?;
    let encoding = spawn_blocking(move || {
        let answer = encode()?;
        drop(working);
        place.shrink_to(answer.bytes());
        Ok::<_, Box<dyn Error + Send + Sync>>(answer.respond_in(place))
    });
    encoding.await.map_err(Problem::internal)?.map_err(Problem::internal)
}
