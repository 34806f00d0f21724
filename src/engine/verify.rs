//! Reads a whole file of tensors and says what is wrong with it, and what it is.
//!
//! With plain reads into one small buffer, never mapped: whoever does this may be a process that
//! must not die of a file that is cut short under it.

use std::{
    fmt::Write,
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    path::Path,
};

use safetensors::{Dtype, tensor::Metadata};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    checkpoint::{self, Header, foreign_format, precision},
    lora::{Claim, Sorted},
};

/// What a file was found to be.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct VerifiedFile {
    /// As the user calls it.
    pub file: String,
    /// Why it cannot be used as it is; `None`: nothing is wrong with it.
    pub problem: Option<String>,
    /// Of a whole checkpoint its family; of a LoRA what it was made for, if that can be told.
    pub family: Option<String>,
    /// How most of its bytes are stored: fp32, fp16, bf16, fp8 …
    pub precision: Option<String>,
    pub tensors: usize,
    /// How long the file is, as far as it could be read.
    pub bytes: u64,
    /// Of the file, in hexadecimal digits; `None` if it could not be read to its end.
    pub sha256: Option<String>,
    /// How many numbers are no numbers.
    pub nan: u64,
    /// How many are infinite.
    pub inf: u64,
    /// The first of the tensors that have such.
    pub not_finite: Vec<NotFinite>,
}

/// A tensor that has numbers which are none, or infinite ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotFinite {
    pub tensor: String,
    pub nan: u64,
    pub inf: u64,
}

/// So many tensors are named.
const MAX_NAMED: usize = 8;
/// So much is read at a time; a multiple of every number's size.
const CHUNK_BYTES: usize = 1 << 20;
/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads the file that the user calls `name` to its end. `on_read` is told of each piece how many
/// bytes it has; `None` if it has ended the reading.
pub fn verify(
    name: &str,
    path: &Path,
    on_read: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Option<VerifiedFile> {
    let mut found = VerifiedFile { file: name.to_owned(), ..VerifiedFile::default() };
    let mut reader = match open(path) {
        Ok(file) => Reader { file, hash: Sha256::new(), bytes: 0, on_read },
        Err(error) => {
            found.problem = Some(format!("cannot be read: {}", error.kind()));
            return Some(found);
        }
    };
    match reader.look_through(&mut found) {
        Ok(()) => found.sha256 = Some(hex(&reader.hash.finalize())),
        Err(End::Cancelled) => return None,
        Err(End::Io(error)) => found.problem = Some(format!("cannot be read: {}", error.kind())),
    }
    found.bytes = reader.bytes;
    Some(found)
}

/// Why a file was not read to its end.
enum End {
    Cancelled,
    Io(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Only a regular file: opening a pipe would wait for somebody to write into it.
fn open(path: &Path) -> io::Result<File> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    File::open(path)
}

struct Reader<'a> {
    file: File,
    hash: Sha256,
    bytes: u64,
    on_read: &'a mut dyn FnMut(u64) -> ControlFlow<()>,
}

impl Reader<'_> {
    fn look_through(&mut self, found: &mut VerifiedFile) -> Result<(), End> {
        match self.header()? {
            Ok(header) => self.tensors(&header, found)?,
            Err(problem) => found.problem = Some(problem),
        }
        // Whatever is left of it belongs to the file, if not to its tensors.
        let mut rest = Vec::new();
        let before = self.bytes;
        while self.piece(&mut rest, CHUNK_BYTES)? > 0 {}
        let behind = self.bytes - before;
        if behind > 0 && found.problem.is_none() {
            found.problem = Some(format!("has {behind} bytes that belong to no tensor"));
        }
        Ok(())
    }

    /// The header, or what is wrong with it.
    fn header(&mut self) -> Result<Result<Metadata, String>, End> {
        let len = self.file.metadata()?.len();
        let mut start = Vec::new();
        if self.piece(&mut start, 8)? < 8 {
            let what = foreign_format(&start).unwrap_or("is too short for a header");
            return Ok(Err(what.to_owned()));
        }
        let header_len = start.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let mut header = Vec::new();
        if header_len <= MAX_HEADER_BYTES.min(len.saturating_sub(8)) {
            while (header.len() as u64) < header_len {
                let mut piece = Vec::new();
                let missing = header_len - header.len() as u64;
                if self.piece(&mut piece, missing.min(CHUNK_BYTES as u64) as usize)? == 0 {
                    break;
                }
                header.extend(piece);
            }
        }
        let foreign = foreign_format(&[&start[..], &header[..header.len().min(8)]].concat());
        Ok(match (foreign, serde_json::from_slice::<Metadata>(&header)) {
            (Some(what), Err(_)) => Err(what.to_owned()),
            (None, Err(error)) if header.len() as u64 == header_len => {
                Err(format!("has a damaged header: {error}"))
            }
            (None, Err(_)) => {
                let len = len.saturating_sub(8);
                Err(format!(
                    "has a damaged header: of {header_len} bytes, in a file with {len} more"
                ))
            }
            (_, Ok(header)) => Ok(header),
        })
    }

    fn tensors(&mut self, metadata: &Metadata, found: &mut VerifiedFile) -> Result<(), End> {
        let header = Header::new(metadata, self.bytes as usize);
        let entries = header.entries.values();
        found.tensors = header.entries.len();
        found.precision = precision(entries.map(|entry| (entry.dtype, entry.size_bytes())));
        found.family = family(&header);
        // In the order of the file, which has no gaps: parsing the header has seen to that.
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            let size = info.data_offsets.1 - info.data_offsets.0;
            let (mut read, mut nan, mut inf) = (0, 0, 0);
            let mut piece = Vec::new();
            while read < size {
                let count = self.piece(&mut piece, CHUNK_BYTES.min(size - read))?;
                if count == 0 {
                    found.problem =
                        Some(format!("is truncated: '{name}' has {read} of its {size} bytes"));
                    return Ok(());
                }
                read += count;
                let (more_nan, more_inf) = not_finite(info.dtype, &piece);
                (nan, inf) = (nan + more_nan, inf + more_inf);
            }
            (found.nan, found.inf) = (found.nan + nan, found.inf + inf);
            if nan + inf > 0 && found.not_finite.len() < MAX_NAMED {
                found.not_finite.push(NotFinite { tensor: name, nan, inf });
            }
        }
        if found.nan + found.inf > 0 {
            let (nan, inf) = (found.nan, found.inf);
            found.problem = Some(format!("has {nan} NaN and {inf} infinite numbers"));
        }
        Ok(())
    }

    /// The next bytes, as many as asked for unless the file ends; says how many.
    fn piece(&mut self, buffer: &mut Vec<u8>, bytes: usize) -> Result<usize, End> {
        buffer.clear();
        let count = (&mut self.file).take(bytes as u64).read_to_end(buffer)?;
        self.hash.update(&*buffer);
        self.bytes += count as u64;
        match (self.on_read)(count as u64) {
            ControlFlow::Continue(()) => Ok(count),
            ControlFlow::Break(()) => Err(End::Cancelled),
        }
    }
}

fn family(header: &Header) -> Option<String> {
    if let Ok(family) = checkpoint::family(header) {
        return Some(family.name().to_owned());
    }
    let tensors = header.entries.iter().map(|(name, entry)| (name.as_str(), &entry.dims[..]));
    let sorted = Sorted::of(tensors, &header.metadata).ok()?;
    Claim::of(&header.metadata, &sorted).map(|claim| claim.base.name().to_owned())
}

/// How many numbers are NaN and how many infinite, by their bits; of types that know neither, none.
fn not_finite(dtype: Dtype, bytes: &[u8]) -> (u64, u64) {
    match dtype {
        Dtype::F64 => count::<8>(bytes, |it| kind(u64::from_le_bytes(it), 0x7ff << 52)),
        Dtype::F32 => count::<4>(bytes, |it| kind(u32::from_le_bytes(it).into(), 0x7f80_0000)),
        Dtype::F16 => count::<2>(bytes, |it| kind(u16::from_le_bytes(it).into(), 0x7c00)),
        Dtype::BF16 => count::<2>(bytes, |it| kind(u16::from_le_bytes(it).into(), 0x7f80)),
        Dtype::F8_E5M2 => count::<1>(bytes, |[it]| kind((it & 0x7f).into(), 0x7c)),
        // It has no infinities, and one NaN of each sign.
        Dtype::F8_E4M3 => count::<1>(bytes, |[it]| (it & 0x7f == 0x7f, false)),
        _ => (0, 0),
    }
}

/// Whether a number with that exponent's mask, whose fraction stands below it, is NaN or infinite.
fn kind(bits: u64, exponent: u64) -> (bool, bool) {
    let fraction = exponent & exponent.wrapping_neg();
    let is_special = bits & exponent == exponent;
    let is_nan = is_special && bits & (fraction - 1) != 0;
    (is_nan, is_special && !is_nan)
}

fn count<const N: usize>(bytes: &[u8], kind: impl Fn([u8; N]) -> (bool, bool)) -> (u64, u64) {
    bytes.as_chunks::<N>().0.iter().fold((0, 0), |(nan, inf), number| {
        let (is_nan, is_inf) = kind(*number);
        (nan + u64::from(is_nan), inf + u64::from(is_inf))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes all
        text
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use safetensors::tensor::{TensorView, serialize};

    use super::*;

    fn file(tensors: &[(&str, Dtype, Vec<u8>)]) -> Vec<u8> {
        let size = |dtype: Dtype| dtype.bitsize() / 8;
        let views = tensors.iter().map(|(name, dtype, bytes)| {
            let shape = vec![bytes.len() / size(*dtype)];
            (*name, TensorView::new(*dtype, shape, bytes).unwrap())
        });
        serialize(views, None).unwrap()
    }

    fn look_at(bytes: &[u8]) -> VerifiedFile {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), bytes).unwrap();
        let mut read = 0;
        let found = verify("x", path.path(), &mut |bytes| {
            read += bytes;
            ControlFlow::Continue(())
        });
        let found = found.unwrap();
        assert_eq!((found.bytes, read), (bytes.len() as u64, bytes.len() as u64));
        assert_eq!(found.sha256, Some(hex(&Sha256::digest(bytes))));
        found
    }

    #[test]
    fn numbers_that_are_none_are_counted_whatever_their_type() {
        let nan_inf = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX];
        let f32s: Vec<u8> = nan_inf.iter().flat_map(|it| it.to_le_bytes()).collect();
        let f64s: Vec<u8> = nan_inf.iter().flat_map(|it| f64::from(*it).to_le_bytes()).collect();
        let halves = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 6e4];
        let f16s: Vec<u8> = halves.iter().flat_map(|it| f16::from_f32(*it).to_le_bytes()).collect();
        let bf16s: Vec<u8> =
            nan_inf[..5].iter().flat_map(|it| bf16::from_f32(*it).to_le_bytes()).collect();
        let e5m2 = vec![0x7c, 0xfc, 0x7d, 0xff, 0x7b, 0x00];
        let e4m3 = vec![0x7f, 0xff, 0x7e, 0x78, 0x00];
        for (dtype, bytes, nan, inf) in [
            (Dtype::F32, f32s, 1, 2),
            (Dtype::F64, f64s, 1, 2),
            (Dtype::F16, f16s, 1, 2),
            (Dtype::BF16, bf16s, 1, 2),
            (Dtype::F8_E5M2, e5m2, 2, 2),
            (Dtype::F8_E4M3, e4m3, 2, 0),
            (Dtype::U8, vec![0xff; 4], 0, 0),
        ] {
            assert_eq!(not_finite(dtype, &bytes), (nan, inf), "{dtype}");
        }
    }

    #[test]
    fn every_tensor_is_read_and_the_bad_ones_are_named() {
        let good: Vec<u8> = [1.0_f32; 600_000].iter().flat_map(|it| it.to_le_bytes()).collect();
        let mut bad = good.clone();
        // The very last number, in a piece of its own.
        let at = bad.len() - 4;
        bad[at..].copy_from_slice(&f32::NAN.to_le_bytes());
        let whole = file(&[("good", Dtype::F32, good.clone()), ("bad", Dtype::F32, bad)]);
        let found = look_at(&whole);
        assert_eq!((found.tensors, found.precision.as_deref()), (2, Some("fp32")));
        assert_eq!(found.problem.as_deref(), Some("has 1 NaN and 0 infinite numbers"));
        let tensor = "bad".to_owned();
        assert_eq!(found.not_finite, [NotFinite { tensor, nan: 1, inf: 0 }]);
        assert_eq!(look_at(&file(&[("good", Dtype::F32, good)])).problem, None);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let whole = file(&[("a", Dtype::F32, vec![0; 40]), ("b", Dtype::U8, vec![0; 40])]);
        let cut = |bytes: usize| whole[..whole.len() - bytes].to_vec();
        let mut long_header = whole.clone();
        long_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut broken_header = whole.clone();
        broken_header[9] = b'!';
        for (bytes, problem) in [
            (cut(1), "is truncated: 'b' has 39 of its 40 bytes"),
            (cut(41), "is truncated: 'a' has 39 of its 40 bytes"),
            ([&whole[..], b"xy"].concat(), "has 2 bytes that belong to no tensor"),
            (whole[..50].to_vec(), "has a damaged header: of "),
            (long_header, "has a damaged header: of 18446744073709551615 bytes"),
            (broken_header, "has a damaged header: "),
            (whole[..4].to_vec(), "is too short for a header"),
            (vec![], "is empty"),
            (b"PK\x03\x04 and so on".to_vec(), "is a pickled checkpoint"),
        ] {
            let found = look_at(&bytes).problem.unwrap_or_default();
            assert!(found.starts_with(problem), "'{found}' where '{problem}' was due");
        }
        let missing = verify("x", Path::new("/nowhere"), &mut |_| ControlFlow::Continue(()));
        assert_eq!(missing.unwrap().problem.as_deref(), Some("cannot be read: entity not found"));
    }

    #[test]
    fn it_stops_between_two_pieces() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let bytes = vec![0; 3 * CHUNK_BYTES];
        std::fs::write(path.path(), file(&[("a", Dtype::U8, bytes)])).unwrap();
        let mut read = 0;
        let found = verify("x", path.path(), &mut |bytes| {
            read += bytes;
            if read > CHUNK_BYTES as u64 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(found, None);
        assert!(read < 2 * CHUNK_BYTES as u64, "{read}");
    }
}
