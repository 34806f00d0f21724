//! How large an image is, and may be.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Width and height of a drawn image in pixels, each a positive multiple of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl Size {
    /// The largest image that can be drawn at all, in pixels: 4096×4096.
    pub const MAX_PIXELS: u64 = 4096 * 4096;
    /// The largest one that is drawn unless `modes.yaml` says otherwise: 2048×2048.
    pub const DEFAULT_MAX_PIXELS: u64 = 2048 * 2048;

    pub fn new(width: u32, height: u32) -> Result<Self, InvalidSize> {
        if [width, height].iter().any(|side| *side == 0 || !side.is_multiple_of(8)) {
            return Err(InvalidSize::NotAMultipleOf8 { width, height });
        }
        if u64::from(width) * u64::from(height) > Self::MAX_PIXELS {
            return Err(InvalidSize::TooLarge { width, height });
        }
        Ok(Self { width, height })
    }

    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// Width and height of any image in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Dimensions {
    pub width: u32,
    pub height: u32,
}

impl From<Size> for Dimensions {
    fn from(Size { width, height }: Size) -> Self {
        Self { width, height }
    }
}

impl FromStr for Dimensions {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let unreadable = || InvalidSize::Unreadable(text.to_owned());
        let (width, height) = text.split_once(['x', 'X']).ok_or_else(unreadable)?;
        let number = |s: &str| s.trim().parse::<u32>().map_err(|_| unreadable());
        Ok(Self { width: number(width)?, height: number(height)? })
    }
}

impl TryFrom<String> for Dimensions {
    type Error = InvalidSize;

    fn try_from(text: String) -> Result<Self, InvalidSize> {
        text.parse()
    }
}

impl From<Dimensions> for String {
    fn from(dimensions: Dimensions) -> Self {
        dimensions.to_string()
    }
}

impl fmt::Display for Dimensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidSize {
    #[error("'{0}' is not a size; write it as WIDTHxHEIGHT, for example 512x512")]
    Unreadable(String),
    #[error("{width}x{height}: width and height must be positive multiples of 8")]
    NotAMultipleOf8 { width: u32, height: u32 },
    #[error("{width}x{height} is larger than {} pixels (4096x4096)", Size::MAX_PIXELS)]
    TooLarge { width: u32, height: u32 },
}

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let Dimensions { width, height } = text.parse()?;
        Self::new(width, height)
    }
}

impl TryFrom<String> for Size {
    type Error = InvalidSize;

    fn try_from(text: String) -> Result<Self, InvalidSize> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!("512x768".parse(), Size::new(512, 768));
        for bad in ["", "512", "x", "512x", "-8x8", "0x8", "12x16", "512*512", "4096x4104"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
