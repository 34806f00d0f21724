//! The segments of a JPEG file, without its pixels: whether the file is complete, and whether
//! decoding it takes more memory than its pixels do.

use std::ops::RangeInclusive;

/// Facts from a JPEG's segments.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// There is an EOI marker. A decoder fills the rest of a file that was cut short with grey;
    /// Pillow refuses such a file, and accepts any bytes behind the marker.
    pub is_complete: bool,
    /// How many components the decoder keeps all coefficients of, until the last scan: those of a
    /// progressive image, and of one whose first scan lacks a component. Otherwise none.
    pub kept_components: u8,
}

const TEM: u8 = 0x01;
/// Frames, but for three markers among them.
const FRAMES: RangeInclusive<u8> = 0xc0..=0xcf;
const DHT_JPG_DAC: [u8; 3] = [0xc4, 0xc8, 0xcc];
const PROGRESSIVE_FRAMES: [u8; 4] = [0xc2, 0xc6, 0xca, 0xce];
const SOS: u8 = 0xda;
/// Where a frame says how many components it has, behind precision, height and width.
const COMPONENTS_OF_FRAME: usize = 5;
const RST0: u8 = 0xd0;
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;

/// Walks from marker to marker. Within a segment nothing is looked at, so that a thumbnail's
/// markers do not count; entropy-coded data has no markers but restarts and escaped bytes.
pub fn outline(file: &[u8]) -> Outline {
    let mut outline = Outline::default();
    // Of the frame, and whether it is progressive; `None` before the frame and behind the first scan.
    let mut frame = None;
    let mut rest = file;
    while let Some(at) = rest.iter().position(|byte| *byte == 0xff) {
        rest = &rest[at + 1..];
        let Some(marker) = rest.first().copied() else { break };
        match marker {
            // A fill byte: the next byte may be the marker.
            0xff => continue,
            EOI => {
                outline.is_complete = true;
                break;
            }
            0 | TEM | RST0..=SOI => rest = &rest[1..],
            _ => {
                let &[_, high, low, ref content @ ..] = rest else { break };
                if FRAMES.contains(&marker) && !DHT_JPG_DAC.contains(&marker) {
                    let components = content.get(COMPONENTS_OF_FRAME).copied().unwrap_or(0);
                    frame = Some((components, PROGRESSIVE_FRAMES.contains(&marker)));
                } else if marker == SOS
                    && let Some((components, is_progressive)) = frame.take()
                    && (is_progressive || content.first() != Some(&components))
                {
                    outline.kept_components = components;
                }
                let length = usize::from(u16::from_be_bytes([high, low]));
                let Some(behind) = rest.get(1 + length.max(2)..) else { break };
                rest = behind;
            }
        }
    }
    outline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_complete_at_its_own_eoi_marker() {
        let thumbnail = b"\xff\xe1\x00\x06\xff\xd8\xff\xd9";
        let frame = b"\xff\xc0\x00\x03x\xff\xda\x00\x02";
        let scan = b"ab\xff\x00\xff\xd0cd";
        let whole = [&b"\xff\xd8"[..], thumbnail, frame, scan, b"\xff\xd9"].concat();
        for (length, is_complete) in
            [(0, false), (2, false), (10, false), (whole.len() - 1, false), (whole.len(), true)]
        {
            assert_eq!(outline(&whole[..length]).is_complete, is_complete, "{length}");
        }
        assert!(outline(&[&whole[..], b"trailing"].concat()).is_complete);
        assert!(outline(b"\xff\xd8\xff\xff\xff\xd9").is_complete, "fill bytes");
        assert!(!outline(b"\xff\xd8\xff\xe1\xff\xff\xff\xd9").is_complete, "a cut segment");
    }

    #[test]
    fn coefficients_are_kept_where_the_first_scan_lacks_some() {
        for (frame, first_scan, expected) in [
            (0xc0, 3, 0),
            (0xc0, 1, 3),
            (0xc1, 2, 3),
            (0xc2, 3, 3),
            (0xc2, 1, 3),
            (0xc4, 3, 0), // Huffman tables
        ] {
            let frame = [0xff, frame, 0, 8, 8, 0, 1, 0, 1, 3];
            let scan = |components: u8| [0xff, 0xda, 0, 3, components, b'x'];
            let file = [&b"\xff\xd8"[..], &frame, &scan(first_scan), &scan(1)].concat();
            assert_eq!(outline(&file).kept_components, expected, "{file:x?}");
        }
    }
}
