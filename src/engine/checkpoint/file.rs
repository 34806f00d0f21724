//! One safetensors file: mapped, its header read and checked, its tensors still on disk.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, Metadata},
    ops::{Bound, Deref, Range},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor};

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

/// An open file of tensors.
pub struct TensorFile {
    /// As the user calls it.
    pub name: String,
    pub identity: FileIdentity,
    header: Header,
    map: Mmap,
}

impl Deref for TensorFile {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

impl TensorFile {
    /// Opens the file that the user calls `name` and checks that it is whole.
    pub fn open(name: &str, path: &Path) -> Result<Self, Error> {
        let (map, identity) =
            map(path).map_err(|cause| Error::Unreadable { file: name.to_owned(), cause })?;
        if let Some(what) = foreign_format(&map) {
            return Err(Error::NotSafetensors { file: name.to_owned(), what });
        }
        let header = read_header(name, &map)?;
        Ok(Self { name: name.to_owned(), identity, header, map })
    }

    /// A tensor's bytes, little-endian, rows first.
    pub fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.map[entry.bytes.clone()]
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

fn map(path: &Path) -> std::io::Result<(Mmap, FileIdentity)> {
    // Asked before it is opened: opening a pipe waits for somebody to write into it.
    let kind = std::fs::metadata(path)?;
    if kind.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(std::io::Error::other("it is not a file but a pipe, a socket or a device"));
    }
    let file = File::open(path)?;
    let identity = FileIdentity::new(path, &file.metadata()?);
    // SAFETY: the map is only read. A file that is cut short under it ends this process with
    // SIGBUS; that is the worker's, whose daemon notices, restarts it and says so.
    Ok((unsafe { Mmap::map(&file)? }, identity))
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

fn read_header(file: &str, map: &[u8]) -> Result<Header, Error> {
    let damaged = |error: safetensors::SafeTensorError| {
        first_cut_tensor(map).map_or_else(
            || Error::Damaged { file: file.to_owned(), cause: error.to_string() },
            |(tensor, needed)| {
                let (file, found) = (file.to_owned(), map.len() as u64);
                Error::Truncated { file, tensor, needed, found }
            },
        )
    };
    let (header_len, metadata) = SafeTensors::read_metadata(map).map_err(damaged)?;
    // Behind the header's length and the header itself.
    Ok(Header::new(&metadata, size_of::<u64>() + header_len))
}

/// Of a file with a readable header: the first tensor that does not lie wholly in it, and its end.
fn first_cut_tensor(map: &[u8]) -> Option<(String, u64)> {
    let header_len = u64::from_le_bytes(map.get(..8)?.try_into().ok()?);
    let header = map.get(8..8usize.checked_add(usize::try_from(header_len).ok()?)?)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let end = |entry: &serde_json::Value| entry.get("data_offsets")?.get(1)?.as_u64();
    header
        .iter()
        .filter_map(|(name, entry)| {
            Some((name.clone(), end(entry)?.saturating_add(8 + header_len)))
        })
        .filter(|(_, end)| *end > map.len() as u64)
        .min_by_key(|(_, end)| *end)
}
