//! Checkpoints: the header of a real one with something changed, and bytes of any kind.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    sync::LazyLock,
};

use diffused::{
    engine::Prepared,
    modes::{CheckpointRef, PipelineSpec},
};
use proptest::{prelude::*, sample::Index};
use serde_json::{Map, Value, json};

use crate::{
    allocations::asked_by,
    architecture::{Family, Fill, Tensor},
};

const NAME: &str = "sub/fuzzed.safetensors";
const TINY: &str = "tests/parity/golden/tiny-sd15.safetensors";

/// Headers of real files, and how many bytes there are behind each: the tiny one that comes with
/// the source, and those of the other families in their true shapes.
static REAL: LazyLock<Vec<(Map<String, Value>, u64)>> = LazyLock::new(|| {
    let families = [Family::Sd2, Family::Sdxl, Family::Refiner];
    std::iter::once(tiny()).chain(families.map(header_of)).collect()
});

fn tiny() -> (Map<String, Value>, u64) {
    let mut file = File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(TINY)).unwrap();
    let mut len = [0; 8];
    file.read_exact(&mut len).unwrap();
    let mut header = vec![0; u64::from_le_bytes(len) as usize];
    file.read_exact(&mut header).unwrap();
    let data = file.metadata().unwrap().len() - 8 - header.len() as u64;
    (serde_json::from_slice(&header).unwrap(), data)
}

fn header_of(family: Family) -> (Map<String, Value>, u64) {
    let mut end = 0;
    let entries = family.tensors().into_iter().map(|Tensor { name, shape, fill }| {
        let (dtype, bytes_each) = match fill {
            Fill::Normal { .. } => ("F16", 2),
            Fill::Positions => ("I64", 8),
        };
        let from = end;
        end += shape.iter().product::<usize>() as u64 * bytes_each;
        (name, json!({"dtype": dtype, "shape": shape, "data_offsets": [from, end]}))
    });
    let header = entries.collect();
    (header, end)
}

/// What becomes of one tensor's entry in the header.
#[derive(Debug, Clone)]
enum Change {
    Remove,
    Rename(String),
    Prefix(&'static str, &'static str),
    Type(&'static str),
    Shape(Vec<u64>),
    /// The same numbers in another shape.
    Reshape(Vec<u64>),
    Offsets(u64, u64),
    Other(Value),
}

/// What happens to the file when its header is written.
#[derive(Debug, Clone)]
enum Damage {
    None,
    /// Bytes of the header, each with another in its place.
    Bytes(Vec<(Index, u8)>),
    /// As many bytes as this part of it.
    Cut(Index),
    /// A header of another length than it says.
    Len(u64),
    Longer(u64),
}

/// A checkpoint's telltale prefixes.
const PREFIXES: [&str; 9] = [
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "conditioner.embedders.0.model.",
    "model.diffusion_model.",
    "first_stage_model.",
    "lora_unet_",
    "",
];
const TYPES: [&str; 12] = [
    "F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "nothing",
];

fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..70_u64,
        any::<u64>(),
        Just(u64::MAX),
        Just(1 << 32),
        Just(1 << 63),
        0..13_000_000_u64
    ]
}

fn changes() -> impl Strategy<Value = Vec<(Index, Change)>> {
    let prefix = || prop::sample::select(&PREFIXES[..]);
    let shape = || prop::collection::vec(numbers(), 0..6);
    let small =
        prop::collection::vec(prop::sample::select(&[1_u64, 2, 4, 8, 32, 64, 77][..]), 0..5);
    let change = prop_oneof![
        Just(Change::Remove),
        any::<String>().prop_map(Change::Rename),
        "[a-z_.0-9]{0,40}".prop_map(Change::Rename),
        (prefix(), prefix()).prop_map(|(from, to)| Change::Prefix(from, to)),
        prop::sample::select(&TYPES[..]).prop_map(Change::Type),
        shape().prop_map(Change::Shape),
        small.prop_map(Change::Reshape),
        (numbers(), numbers()).prop_map(|(from, to)| Change::Offsets(from, to)),
        prop_oneof![
            Just(json!(null)),
            Just(json!([])),
            Just(json!({})),
            Just(json!({"dtype": "F16"}))
        ]
        .prop_map(Change::Other),
    ];
    prop::collection::vec((any::<Index>(), change), 0..4)
}

fn damages() -> impl Strategy<Value = Damage> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(&b"\"[]{},:0-9e.\\ "[..])];
    prop_oneof![
        4 => Just(Damage::None),
        1 => prop::collection::vec((any::<Index>(), byte), 1..8).prop_map(Damage::Bytes),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => numbers().prop_map(Damage::Len),
        1 => (0..1000_u64).prop_map(Damage::Longer),
    ]
}

fn change(header: &mut Map<String, Value>, (at, change): &(Index, Change)) {
    if header.is_empty() {
        return;
    }
    let name = header.keys().nth(at.index(header.len())).unwrap().clone();
    let mut set = |field: &str, value: Value| {
        if let Some(entry) = header[&name].as_object_mut() {
            entry.insert(field.to_owned(), value);
        }
    };
    match change {
        Change::Remove => drop(header.remove(&name)),
        Change::Rename(to) => {
            let entry = header.remove(&name).unwrap();
            header.insert(to.clone(), entry);
        }
        Change::Prefix(from, to) => {
            let renamed = std::mem::take(header).into_iter().map(|(name, entry)| {
                let name = match name.strip_prefix(from) {
                    Some(rest) if !from.is_empty() => format!("{to}{rest}"),
                    _ => name,
                };
                (name, entry)
            });
            *header = renamed.collect();
        }
        Change::Type(dtype) => set("dtype", json!(dtype)),
        Change::Shape(dims) => set("shape", json!(dims)),
        Change::Reshape(dims) => {
            let count = |dims: &[u64]| dims.iter().product::<u64>().max(1);
            let all: Vec<u64> =
                serde_json::from_value(header[&name]["shape"].clone()).unwrap_or_default();
            let last = count(&all) / count(dims);
            header[&name]["shape"] = json!([dims.as_slice(), &[last]].concat());
        }
        Change::Offsets(from, to) => set("data_offsets", json!([from, to])),
        Change::Other(value) => drop(header.insert(name, value.clone())),
    }
}

fn write(path: &Path, (header, data): (&Map<String, Value>, u64), damage: &Damage) {
    let mut bytes = serde_json::to_vec(header).unwrap();
    let mut len = bytes.len() as u64;
    if let Damage::Bytes(changes) = damage {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
    }
    if let Damage::Len(other) = damage {
        len = *other;
    }
    let mut file = File::create(path).unwrap();
    file.write_all(&len.to_le_bytes()).unwrap();
    file.write_all(&bytes).unwrap();
    // What is behind the header is a hole in the file: its numbers are never read.
    let whole = 8 + bytes.len() as u64 + data;
    file.set_len(match damage {
        Damage::Cut(at) => at.index(whole as usize) as u64,
        Damage::Longer(by) => whole + by,
        Damage::None | Damage::Bytes(_) | Damage::Len(_) => whole,
    })
    .unwrap();
}

/// A file with a real header.
pub fn write_real(path: &Path) {
    write(path, (&REAL[0].0, REAL[0].1), &Damage::None);
}

/// Opens and checks the file: what is wrong is said, with its name and not with its path.
pub fn open(path: &Path) -> Result<bool, TestCaseError> {
    let checkpoint = CheckpointRef { name: NAME.to_owned(), path: path.to_owned() };
    let spec = PipelineSpec::of(checkpoint);
    let (checked, bytes) = asked_by(|| Prepared::open(&spec, &mut Default::default()).map(drop));
    prop_assert!(bytes < 64 << 20, "{bytes} bytes");
    let Err(error) = checked else { return Ok(true) };
    let error = error.to_string();
    prop_assert!(error.contains(NAME), "{error}");
    prop_assert!(!error.contains(path.to_str().unwrap()), "{error}");
    Ok(false)
}

proptest! {
    #![proptest_config(crate::cases(200))]

    #[test]
    fn a_real_header_with_changes(
        real in prop_oneof![3 => Just(0), 1 => 1..4_usize],
        changes in changes(),
        damage in damages(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (mut header, data) = REAL[real].clone();
        changes.iter().for_each(|one| change(&mut header, one));
        write(&path, (&header, data), &damage);
        open(&path)?;
    }

    #[test]
    fn bytes_of_any_kind(
        start in prop_oneof![Just(vec![]), numbers().prop_map(|len| len.to_le_bytes().to_vec())],
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, [start, bytes].concat()).unwrap();
        prop_assert!(!open(&path)?);
    }

    #[test]
    fn a_header_that_is_no_header(header in "\\{(\"[a-z.]{0,9}\": ?[\\[{\"0-9a-z:,}\\]]{0,9},?){0,3}\\}?") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        prop_assert!(!open(&path)?);
    }
}

#[test]
fn the_headers_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for (header, data) in &*REAL {
        write(&path, (header, *data), &Damage::None);
        assert!(open(&path).unwrap());
    }
}
