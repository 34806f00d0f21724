//! One safetensors file: its header read and checked, its tensors still on disk, and mapped for the
//! worker alone.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, Metadata},
    io::{self, Read},
    ops::{Bound, Deref, Range},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use memmap2::{Mmap, MmapOptions};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor};

use super::Error;

/// A tensor's place in the file.
#[derive(Debug, Clone)]
pub struct Entry {
    pub dtype: Dtype,
    pub dims: Vec<usize>,
    bytes: Range<usize>,
}

impl Entry {
    /// In bytes.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// What tells a file from another one, and from what it was before it was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl FileIdentity {
    /// Of the file that lies there now.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self::new(path, &std::fs::metadata(path)?))
    }

    fn new(path: &Path, found: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            len: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long the file is.
    pub fn size_bytes(&self) -> u64 {
        self.len
    }
}

/// What a file's header says: what the file is can be told from this alone.
pub struct Header {
    pub entries: BTreeMap<String, Entry>,
    /// What the file says about itself.
    pub metadata: HashMap<String, String>,
}

/// How much of a file is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Its header, which is read plainly: in any process.
    Header,
    /// Its tensors, too, which are mapped. Only the worker may ask for them: a file that is cut short
    /// under its map ends the process.
    Tensors,
}

/// An open file of tensors.
pub struct TensorFile {
    /// As the user calls it.
    pub name: String,
    pub identity: FileIdentity,
    header: Header,
    data: Data,
}

enum Data {
    Unmapped(File),
    Mapped(Mmap),
}

impl Access {
    /// Real headers have some hundred kilobytes. The format's own limit is the worker's; a daemon
    /// that looks through a folder takes several times a header's length for each.
    fn max_header_bytes(self) -> u64 {
        match self {
            Self::Header => 16 << 20,
            Self::Tensors => 100_000_000,
        }
    }
}

/// The header's length stands before it.
const LENGTH_BYTES: usize = size_of::<u64>();
/// The first bytes tell a foreign format.
const START_BYTES: u64 = 16;

impl Deref for TensorFile {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

impl TensorFile {
    /// Opens the file that the user calls `name` and checks that it is whole.
    pub fn open(name: &str, path: &Path, access: Access) -> Result<Self, Error> {
        let unreadable = |cause| Error::Unreadable { file: name.to_owned(), cause };
        let (file, identity) = open_regular(path).map_err(unreadable)?;
        let mut start = Vec::new();
        (&file).take(START_BYTES).read_to_end(&mut start).map_err(unreadable)?;
        if let Some(what) = foreign_format(&start) {
            return Err(Error::NotSafetensors { file: name.to_owned(), what });
        }
        let header = read_header(name, &file, &start, identity.len, access)?;
        let data = match access {
            Access::Header => Data::Unmapped(file),
            Access::Tensors => Data::Mapped(map(&file, identity.len).map_err(unreadable)?),
        };
        Ok(Self { name: name.to_owned(), identity, header, data })
    }

    /// A tensor's bytes, little-endian, rows first.
    ///
    /// # Panics
    /// If the file was opened for its header alone.
    pub fn bytes(&self, entry: &Entry) -> &[u8] {
        match &self.data {
            Data::Mapped(map) => &map[entry.bytes.clone()],
            Data::Unmapped(_) => panic!("'{}' was opened for its header alone", self.name),
        }
    }

    /// The bytes of a tensor that is one number; `None` if it is larger or cannot be read. Of any
    /// open file.
    pub fn number(&self, entry: &Entry) -> Option<Vec<u8>> {
        if entry.size_bytes() > size_of::<u64>() {
            return None;
        }
        match &self.data {
            Data::Mapped(map) => Some(map[entry.bytes.clone()].to_vec()),
            Data::Unmapped(file) => {
                let mut bytes = vec![0; entry.size_bytes()];
                file.read_exact_at(&mut bytes, entry.bytes.start as u64).ok()?;
                Some(bytes)
            }
        }
    }
}

impl Header {
    /// Of that header; its tensors lie `start` bytes behind the file's begin.
    pub fn new(metadata: &tensor::Metadata, start: usize) -> Self {
        let entries = metadata.tensors().into_iter().map(|(name, info)| {
            let (begin, end) = info.data_offsets;
            let bytes = start + begin..start + end;
            (name, Entry { dtype: info.dtype, dims: info.shape.clone(), bytes })
        });
        let entries = entries.collect();
        Self { entries, metadata: metadata.metadata().clone().unwrap_or_default() }
    }

    /// Whether the name of any tensor begins so.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        let mut from = self.entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// One more than the largest number that follows `prefix` in a name. (No more than there are
    /// tensors: a larger one is not a count but a lie.)
    pub fn count(&self, prefix: &str) -> usize {
        self.entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .map_while(|(name, _)| name.strip_prefix(prefix))
            .filter_map(|rest| rest.split('.').next()?.parse::<usize>().ok())
            .max()
            .map_or(0, |n| n.saturating_add(1).min(self.entries.len()))
    }
}

fn open_regular(path: &Path) -> io::Result<(File, FileIdentity)> {
    // Asked before it is opened: opening a pipe waits for somebody to write into it.
    let kind = std::fs::metadata(path)?;
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::other("it is not a file but a pipe, a socket or a device"));
    }
    let file = File::open(path)?;
    let identity = FileIdentity::new(path, &file.metadata()?);
    Ok((file, identity))
}

/// Maps a file as long as it was when its header was checked.
fn map(file: &File, len: u64) -> io::Result<Mmap> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the map is only read. A file that is cut short under it ends this process with
    // SIGBUS; this is the worker (`Access::Tensors`), whose daemon notices, restarts it and says so.
    unsafe { MmapOptions::new().len(len).map(file) }
}

/// What a file is that is none of tensors, by its first bytes.
pub fn foreign_format(bytes: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let pickle = matches!(bytes, [0x80, 2..=5, ..]);
    match () {
        () if bytes.is_empty() => Some("is empty"),
        // A safetensors header, whatever its length before it looks like.
        () if bytes.get(8) == Some(&b'{') => None,
        () if starts(b"PK\x03\x04") || pickle => {
            Some("is a pickled checkpoint (.ckpt, .pt), which may run code when it is opened")
        }
        () if starts(b"{") => Some("is a JSON file (of a diffusers model, name the folder)"),
        () if starts(b"GGUF") => Some("is a GGUF file"),
        () => None,
    }
}

/// The header of a file that is `len` bytes long and begins with `start`.
fn read_header(
    name: &str,
    file: &File,
    start: &[u8],
    len: u64,
    access: Access,
) -> Result<Header, Error> {
    let damaged =
        |cause: SafeTensorError| Error::Damaged { file: name.to_owned(), cause: cause.to_string() };
    let Some(header_len) = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return Err(damaged(SafeTensorError::HeaderTooSmall));
    };
    if header_len > Access::Tensors.max_header_bytes() {
        return Err(damaged(SafeTensorError::HeaderTooLarge));
    }
    let first_tensor = LENGTH_BYTES + header_len as usize;
    if first_tensor as u64 > len {
        return Err(damaged(SafeTensorError::InvalidHeaderLength));
    }
    if header_len > access.max_header_bytes() {
        let limit = access.max_header_bytes() >> 20;
        let what = format!("has a header of {} MiB; up to {limit} are read here", header_len >> 20);
        return Err(Error::NotSupported { file: name.to_owned(), what });
    }
    let mut bytes = vec![0; first_tensor];
    // It may have become shorter meanwhile.
    file.read_exact_at(&mut bytes, 0)
        .map_err(|cause| Error::Unreadable { file: name.to_owned(), cause })?;
    let header = &bytes[LENGTH_BYTES..];
    let metadata = serde_json::from_slice::<tensor::Metadata>(header);
    let is_whole = |metadata: &tensor::Metadata| {
        (first_tensor as u64).saturating_add(metadata.data_len() as u64) == len
    };
    match metadata {
        Ok(metadata) if is_whole(&metadata) => Ok(Header::new(&metadata, first_tensor)),
        Ok(_) | Err(_) => Err(match first_cut_tensor(header, len) {
            Some((tensor, needed)) => {
                Error::Truncated { file: name.to_owned(), tensor, needed, found: len }
            }
            // The format's own reader says best what is wrong with a header.
            None => damaged(
                SafeTensors::read_metadata(&bytes)
                    .err()
                    .unwrap_or(SafeTensorError::MetadataIncompleteBuffer),
            ),
        }),
    }
}

/// Of a readable header: the first tensor that does not lie wholly in a file of `len` bytes, and its
/// end.
fn first_cut_tensor(header: &[u8], len: u64) -> Option<(String, u64)> {
    let start = (LENGTH_BYTES + header.len()) as u64;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let end = |entry: &serde_json::Value| entry.get("data_offsets")?.get(1)?.as_u64();
    header
        .iter()
        .filter_map(|(name, entry)| Some((name.clone(), end(entry)?.saturating_add(start))))
        .filter(|(_, end)| *end > len)
        .min_by_key(|(_, end)| *end)
}
