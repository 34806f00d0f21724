//! The chunks of a WebP file, without its pixels: lengths and sizes that the decoder believes before
//! it checks them, or never checks.
//!
//! - It allocates as much as the chunk `EXIF` claims to have: up to 4 GiB for a file of a hundred
//!   bytes.
//! - It allocates a lossy frame by the frame's own header, and compares that with the container's once
//!   the frame is decoded: hundreds of MB for an image of 8x8 pixels. Beside an alpha channel it does
//!   not compare them, and panics.

use super::DecodeError;

/// RIFF, its length, WEBP.
const FIRST_CHUNK: usize = 12;
/// A chunk's name and length.
const CHUNK_HEADER: usize = 8;
/// Place, size and duration before a frame's own chunks.
const FRAME_HEADER: usize = 16;

struct Chunk<'a> {
    name: [u8; 4],
    /// Up to the end of the file.
    content: &'a [u8],
    is_complete: bool,
    /// The rest of the file behind it.
    behind: &'a [u8],
}

/// Refuses a file with such a lie. `dimensions`: of the image, as the container says.
///
/// Looks at every chunk up to the end of the file, whatever RIFF's own length says: the decoder reads
/// a little beyond that. Chunks within chunks are no deeper than in an animation's frame, so a file
/// cannot exhaust the stack.
pub fn check(file: &[u8], dimensions: (u32, u32)) -> Result<(), DecodeError> {
    let mut rest = file.get(FIRST_CHUNK..).unwrap_or_default();
    while let Some(one) = chunk(rest) {
        check_chunk(&one, dimensions)?;
        if &one.name == b"ANMF" {
            check_animated(one.content)?;
        }
        rest = one.behind;
    }
    Ok(())
}

/// Checks the two chunks that the decoder looks for in a frame.
fn check_animated(frame: &[u8]) -> Result<(), DecodeError> {
    let Some((header, chunks)) = frame.split_at_checked(FRAME_HEADER) else { return Ok(()) };
    // 24 bits each, one less than the dimension.
    let dimension =
        |at: usize| 1 + u32::from_le_bytes([header[at], header[at + 1], header[at + 2], 0]);
    let dimensions = (dimension(6), dimension(9));
    let Some(first) = chunk(chunks) else { return Ok(()) };
    check_chunk(&first, dimensions)?;
    let Some(second) = chunk(first.behind) else { return Ok(()) };
    check_chunk(&second, dimensions)?;
    // Any chunk behind an alpha channel is decoded as a lossy frame.
    if &first.name == b"ALPH" { check_frame(second.content, dimensions) } else { Ok(()) }
}

fn check_chunk(chunk: &Chunk, dimensions: (u32, u32)) -> Result<(), DecodeError> {
    match &chunk.name {
        b"EXIF" if !chunk.is_complete => Err(DecodeError::CutShort),
        b"VP8 " => check_frame(chunk.content, dimensions),
        _ => Ok(()),
    }
}

fn check_frame(frame: &[u8], dimensions: (u32, u32)) -> Result<(), DecodeError> {
    match lossy_dimensions(frame) {
        Some(found) if found != dimensions => Err(DecodeError::FrameSize),
        Some(_) | None => Ok(()),
    }
}

fn chunk(bytes: &[u8]) -> Option<Chunk<'_>> {
    let (header, rest) = bytes.split_at_checked(CHUNK_HEADER)?;
    let [n0, n1, n2, n3, l0, l1, l2, l3] = *header else { return None };
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let content = &rest[..length.min(rest.len())];
    // Chunks begin at even places.
    let behind = rest.get(length + length % 2..).unwrap_or_default();
    let is_complete = length <= rest.len();
    Some(Chunk { name: [n0, n1, n2, n3], content, is_complete, behind })
}

/// By the header of a key frame (RFC 6386, 9.1).
fn lossy_dimensions(frame: &[u8]) -> Option<(u32, u32)> {
    let &[_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..] = frame else { return None };
    // The upper two bits say how to scale it.
    let dimension = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
    Some((dimension(w0, w1), dimension(h0, h1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u32).to_le_bytes();
        let padding = &[0][..content.len() % 2];
        [name, &length[..], content, padding].concat()
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        [&b"RIFF\0\0\0\0WEBP"[..], &chunk(b"VP8X", &[0; 10]), &chunks.concat()].concat()
    }

    fn lossy(width: u16, height: u16) -> Vec<u8> {
        [&[0x10, 0, 0, 0x9d, 0x01, 0x2a][..], &width.to_le_bytes(), &height.to_le_bytes()].concat()
    }

    fn frame(width: u8, height: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
        let header = [0, 0, 0, 0, 0, 0, width - 1, 0, 0, height - 1, 0, 0, 0, 0, 0, 0];
        chunk(b"ANMF", &[&header[..], &chunks.concat()].concat())
    }

    #[test]
    fn lossy_frames_have_the_size_that_the_container_says() {
        let whole = lossy(9, 7);
        let (scaled, wide, high) = (lossy(9 | 0x4000, 7 | 0x8000), lossy(10, 7), lossy(9, 16_383));
        let (part, alpha) = (lossy(4, 2), chunk(b"ALPH", b"a"));
        for (chunks, expected) in [
            (vec![chunk(b"VP8 ", &whole)], true),
            (vec![chunk(b"VP8 ", &scaled)], true),
            (vec![chunk(b"ICCP", b"odd"), chunk(b"VP8 ", &wide)], false),
            (vec![chunk(b"EXIF", &chunk(b"VP8 ", &wide))], true),
            (vec![frame(9, 7, &[chunk(b"VP8 ", &whole)])], true),
            (vec![frame(4, 2, &[chunk(b"VP8 ", &part)])], true),
            (
                vec![frame(4, 2, &[chunk(b"VP8 ", &part)]), frame(9, 7, &[chunk(b"VP8 ", &high)])],
                false,
            ),
            (vec![frame(4, 2, &[alpha.clone(), chunk(b"VP8 ", &part)])], true),
            (vec![frame(4, 2, &[alpha.clone(), chunk(b"VP8 ", &whole)])], false),
            (vec![frame(9, 7, &[alpha, chunk(b"any?", &high)])], false),
            (vec![frame(9, 7, &[chunk(b"VP8L", &high)])], true),
            (vec![], true),
        ] {
            let file = file(&chunks);
            assert_eq!(check(&file, (9, 7)).is_ok(), expected, "{}", file.escape_ascii());
            for end in 0..file.len() {
                let _ = check(&file[..end], (9, 7)); // a file that was cut short does not panic
            }
        }
    }

    #[test]
    fn exif_that_is_longer_than_the_file_is_refused() {
        let exif = [&b"EXIF\xf0\xff\xff\xff"[..], b"II*\0"].concat();
        let in_frame = chunk(b"ANMF", &[&[0; FRAME_HEADER][..], &exif].concat());
        for chunks in [exif, in_frame] {
            assert!(matches!(check(&file(&[chunks]), (9, 7)), Err(DecodeError::CutShort)));
        }
        assert!(check(&file(&[chunk(b"EXIF", b"II*\0")]), (9, 7)).is_ok());
    }

    #[test]
    fn frames_within_frames_do_not_exhaust_the_stack() {
        let mut frames = Vec::new();
        for depth in (0..100_000_u32).rev() {
            let length = depth * (CHUNK_HEADER + FRAME_HEADER) as u32 + FRAME_HEADER as u32;
            frames.extend([&b"ANMF"[..], &length.to_le_bytes(), &[0; FRAME_HEADER]].concat());
        }
        assert!(check(&file(&[frames]), (9, 7)).is_ok());
    }
}
