//! The segments of a JPEG file, without its pixels: whether the file is complete, and whether
//! decoding it takes more memory than its pixels do.

/// Facts from a JPEG's segments.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// There is an EOI marker. A decoder fills the rest of a file that was cut short with grey;
    /// Pillow refuses such a file, and accepts any bytes behind the marker.
    pub is_complete: bool,
    /// The decoder keeps all coefficients until the last scan.
    pub is_progressive: bool,
}

const TEM: u8 = 0x01;
const PROGRESSIVE_FRAMES: [u8; 4] = [0xc2, 0xc6, 0xca, 0xce];
const RST0: u8 = 0xd0;
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;

/// Walks from marker to marker. Within a segment nothing is looked at, so that a thumbnail's
/// markers do not count; entropy-coded data has no markers but restarts and escaped bytes.
pub fn outline(file: &[u8]) -> Outline {
    let mut outline = Outline::default();
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
                outline.is_progressive |= PROGRESSIVE_FRAMES.contains(&marker);
                let &[_, high, low, ..] = rest else { break };
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
        assert!(!outline(&whole).is_progressive);
        assert!(outline(b"\xff\xd8\xff\xc2\x00\x02").is_progressive);
    }
}
