//! The smallest EXIF block that holds a comment (EXIF 2.3, TIFF 6.0).

/// A JPEG segment holds 65,535 bytes, its own header and ours included.
const MAX_TEXT_BYTES: usize = 65_000;

const TYPE_LONG: u16 = 4;
const TYPE_UNDEFINED: u16 = 7;
const TAG_EXIF_IFD: u16 = 0x8769;
const TAG_USER_COMMENT: u16 = 0x9286;
/// Number of entries, one entry, offset of the next directory.
const IFD_BYTES: u32 = 2 + 12 + 4;
const TIFF_HEADER_BYTES: u32 = 8;

/// The text as EXIF's UserComment, in UTF-16; `None` if a JPEG segment could not hold it.
pub fn user_comment(text: &str) -> Option<Vec<u8>> {
    let mut comment = b"UNICODE\0".to_vec();
    comment.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    if comment.len() > MAX_TEXT_BYTES {
        return None;
    }
    let exif_ifd_at = TIFF_HEADER_BYTES + IFD_BYTES;
    let comment_at = exif_ifd_at + IFD_BYTES;
    let mut block = b"MM\0\x2a".to_vec(); // big-endian, as the comment
    block.extend(TIFF_HEADER_BYTES.to_be_bytes());
    block.extend(ifd(TAG_EXIF_IFD, TYPE_LONG, 1, exif_ifd_at));
    block.extend(ifd(TAG_USER_COMMENT, TYPE_UNDEFINED, comment.len() as u32, comment_at));
    block.extend(comment);
    Some(block)
}

/// A directory of one entry, and none after it.
fn ifd(tag: u16, kind: u16, count: u32, value_or_offset: u32) -> Vec<u8> {
    let mut ifd = 1u16.to_be_bytes().to_vec();
    ifd.extend(tag.to_be_bytes());
    ifd.extend(kind.to_be_bytes());
    ifd.extend(count.to_be_bytes());
    ifd.extend(value_or_offset.to_be_bytes());
    ifd.extend(0u32.to_be_bytes());
    ifd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_point_at_what_they_name() {
        let block = user_comment("hé").unwrap();
        let at = |offset: usize| u32::from_be_bytes(block[offset..offset + 4].try_into().unwrap());
        let exif_ifd = at(8 + 2 + 8) as usize;
        assert_eq!(block[exif_ifd + 2..exif_ifd + 4], TAG_USER_COMMENT.to_be_bytes());
        let (length, comment) = (at(exif_ifd + 6) as usize, at(exif_ifd + 10) as usize);
        assert_eq!(&block[comment..], b"UNICODE\0\0h\0\xe9");
        assert_eq!(comment + length, block.len());
    }

    #[test]
    fn what_a_segment_cannot_hold_is_left_out() {
        assert!(user_comment(&"x".repeat(32_000)).is_some());
        assert!(user_comment(&"x".repeat(33_000)).is_none());
    }
}
