//! Finished images → answers, off the server's threads and each step in its place.

use std::{error::Error, fs::File, io::BufReader, sync::Arc};

use axum::response::Response;
use tokio::task::spawn_blocking;

use super::{
    budget::{ANSWERS, ENCODING, IMAGES, Place, WORK},
    problem::Problem,
    sending::Answer,
};
use crate::{
    dispatcher::DrawnImages,
    image::{self, Format},
};

type Encoded = Result<Answer, Box<dyn Error + Send + Sync>>;

/// Answers with images that nobody else has. Once they have their place, nothing but a hang-up
/// throws them away.
pub async fn drawn(
    drawn: Arc<DrawnImages>,
    format: Format,
    encode: impl FnOnce(&DrawnImages) -> Encoded + Send + 'static,
) -> Result<Response, Problem> {
    let bytes = drawn.rgb.len() as u64;
    let waiting = IMAGES.take(bytes).await?;
    let place = ANSWERS.wait(bytes).await?;
    let working = ENCODING.wait(encoding_bytes(format, bytes)).await?;
    in_places(place, working, move || {
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
    let place = ANSWERS.take(bytes).await?;
    let working = WORK.take(encoding_bytes(format, bytes)).await?;
    in_places(place, working, encode).await
}

/// Answers with a PNG file that is kept, in another format. Its pixels have that many bytes.
pub async fn converted(
    file: File,
    bytes: u64,
    format: Format,
    encode: impl FnOnce(&[u8]) -> Encoded + Send + 'static,
) -> Result<Response, Problem> {
    let place = ANSWERS.take(bytes).await?;
    let working = WORK.take(bytes + encoding_bytes(format, bytes)).await?;
    in_places(place, working, move || encode(&image::decode_png(BufReader::new(file))?.bytes)).await
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
    mut place: Place,
    working: Place,
    encode: impl FnOnce() -> Encoded + Send + 'static,
) -> Result<Response, Problem> {
    let encoding = spawn_blocking(move || {
        let answer = encode()?;
        drop(working);
        place.shrink_to(answer.bytes());
        Ok::<_, Box<dyn Error + Send + Sync>>(answer.respond_in(place))
    });
    encoding.await.map_err(Problem::internal)?.map_err(Problem::internal)
}

#[cfg(test)]
mod tests {
    use axum::{body::to_bytes, http::HeaderMap};

    use super::*;
    use crate::{dispatcher::DrawnReport, http::sending::Part, modes::Dimensions};

    #[tokio::test]
    async fn a_finished_image_does_not_wait_for_images_of_strangers() {
        const MIB: u64 = 1 << 20;
        let (small, large) = (16 * MIB, 192 * MIB);
        let _busy = (
            [WORK.take(small).await.unwrap(), WORK.take(small).await.unwrap()],
            WORK.take(large).await.unwrap(),
        );
        let report = DrawnReport {
            size: Dimensions { width: 2, height: 2 },
            images: 1,
            prompt_truncated: None,
            skipped_loras: Vec::new(),
            scheduler: None,
            encode_ms: 0,
            denoise_ms: 0,
            decode_ms: 0,
            peak_bytes: 0,
            steps: 1,
            superres: None,
        };
        let images = Arc::new(DrawnImages { rgb: vec![7; 12], report });
        let encode = |drawn: &DrawnImages| -> Encoded {
            let parts = vec![Part::Bytes(drawn.rgb.clone())];
            Ok(Answer { headers: HeaderMap::new(), parts })
        };
        let response = drawn(images, Format::Png, encode).await.unwrap();
        assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), vec![7; 12]);
    }
}
