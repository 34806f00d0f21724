//! The chunks of a WebP file, without its pixels: whether they are all there, and how large the
//! frames are. The decoder makes room for a frame before it compares it with the image's size, and
//! for a chunk before it compares it with the file's.

/// Facts from a WebP's chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// No chunk says to be longer than the file.
    pub is_complete: bool,
    /// The largest width and the largest height of a frame.
    pub largest: (u32, u32),
}

/// "RIFF", the length of the rest, "WEBP".
const HEADER_BYTES: usize = 12;
/// Of an animation's frame, before its own chunks.
const FRAME_HEADER_BYTES: usize = 16;

pub fn outline(file: &[u8]) -> Outline {
    let mut outline = Outline { is_complete: true, largest: (0, 0) };
    let end = file.get(4..8).map_or(0, |bytes| u32_of(bytes) as usize).saturating_add(8);
    let chunks = file.get(HEADER_BYTES..end.min(file.len()).max(HEADER_BYTES));
    match chunks {
        Some(chunks) => outline.add(chunks),
        None => outline.is_complete = false,
    }
    outline
}

impl Outline {
    fn add(&mut self, mut chunks: &[u8]) {
        while let [a, b, c, d, rest @ ..] = chunks
            && rest.len() >= 4
        {
            let (length, rest) = (u32_of(&rest[..4]) as usize, &rest[4..]);
            let Some(data) = rest.get(..length) else {
                self.is_complete = false;
                return;
            };
            match &[*a, *b, *c, *d] {
                b"VP8 " => self.add_frame(lossy_size(data)),
                b"VP8L" => self.add_frame(lossless_size(data)),
                b"ANMF" => self.add(data.get(FRAME_HEADER_BYTES..).unwrap_or_default()),
                _ => {}
            }
            // A chunk of an odd length is padded.
            chunks = rest.get(length + length % 2..).unwrap_or_default();
        }
    }

    fn add_frame(&mut self, size: Option<(u32, u32)>) {
        let (width, height) = size.unwrap_or_default();
        self.largest = (self.largest.0.max(width), self.largest.1.max(height));
    }
}

/// Behind a tag of three bytes and a start code of three: 14 bits each, and two of scaling.
fn lossy_size(data: &[u8]) -> Option<(u32, u32)> {
    let size = u32_of(data.get(6..10)?);
    Some((size & 0x3fff, size >> 16 & 0x3fff))
}

/// Behind a signature of a byte: 14 bits each, one less than the size.
fn lossless_size(data: &[u8]) -> Option<(u32, u32)> {
    let size = u32_of(data.get(1..5)?);
    Some(((size & 0x3fff) + 1, (size >> 14 & 0x3fff) + 1))
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let padding = &[0][..data.len() % 2];
        [&name[..], &(data.len() as u32).to_le_bytes(), data, padding].concat()
    }

    fn riff(chunks: &[u8]) -> Vec<u8> {
        let length = 4 + chunks.len() as u32;
        [&b"RIFF"[..], &length.to_le_bytes(), b"WEBP", chunks].concat()
    }

    #[test]
    fn frames_and_chunks_are_measured() {
        let lossy = chunk(b"VP8 ", b"tag\x9d\x01\x2a\x10\x40\x20\x00"); // with scaling
        let lossless = chunk(b"VP8L", b"\x2f\x63\xc0\x0c\x00");
        let frame = chunk(b"ANMF", &[&[0; 16][..], &lossless].concat());
        let still = riff(&[&chunk(b"EXIF", b"odd")[..], &lossy].concat());
        let moving = riff(&[&frame[..], &lossy].concat());
        for (file, is_complete, largest) in [
            (&still[..], true, (16, 32)),
            (&[&still[..], b"trailing bytes"].concat(), true, (16, 32)),
            (&still[..still.len() - 1], false, (0, 0)),
            (&riff(&lossless), true, (100, 52)),
            (&moving, true, (100, 52)),
            (&riff(b"EXIF\xff\xff\xff\xff"), false, (0, 0)),
            (b"RIFF", false, (0, 0)),
        ] {
            assert_eq!(outline(file), Outline { is_complete, largest }, "{file:?}");
        }
    }
}
