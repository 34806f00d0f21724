//! A safetensors file: a checkpoint or a LoRA, as far as its header says.
//!
//! The fuzzer's bytes become a file in one of three ways:
//! - `{…`: the header's JSON; its length comes before it, and a hole as long as its offsets say
//!   behind it;
//! - an upper-case letter: a table with a tensor a line (`F16 320x4x3x3 name`), which becomes a header
//!   with the right offsets;
//! - else: the file as it is.

use std::{io::Write, path::Path};

use diffused::{
    engine::{
        Prepared,
        checkpoint::{Header, Module},
        inspect,
        lora::Sorted,
    },
    modes::{CheckpointRef, ModelKind, PipelineSpec},
};
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use super::allocated_by;

const NAME: &str = "sub/fuzzed.safetensors";
/// Longer holes are not made.
const MAX_HOLE_BYTES: u64 = 16 << 30;

const MAX_ALLOCATED: usize = 32 << 20;
const MAX_ALLOCATED_PER_BYTE: usize = 400;

pub fn check(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (content, hole) = content_of(bytes);
    file.as_file().write_all(&content).unwrap();
    let len = content.len() as u64 + hole;
    file.as_file().set_len(len).unwrap();

    let ((), allocated) = allocated_by(|| {
        let header = header_of(&content, len);
        if let Some(header) = &header {
            header_holds(header, len);
            lora_holds(header);
        }
        file_holds(file.path(), header.is_some());
    });
    let limit = MAX_ALLOCATED + MAX_ALLOCATED_PER_BYTE * content.len();
    assert!(allocated <= limit, "{allocated} bytes allocated for a header of {}", content.len());
}

/// The beginning of the file, and the length of the hole behind it.
fn content_of(bytes: &[u8]) -> (Vec<u8>, u64) {
    let header = match bytes.first() {
        Some(b'{') => bytes.to_vec(),
        Some(b'A'..=b'Z') => header_of_table(&String::from_utf8_lossy(bytes)),
        _ => return (bytes.to_vec(), 0),
    };
    let hole = hole_behind(&header);
    ([&(header.len() as u64).to_le_bytes()[..], &header].concat(), hole)
}

/// The header of a file that begins so and is as long as its header says.
fn header_of(content: &[u8], len: u64) -> Option<Header> {
    let (length, rest) = content.split_first_chunk()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let start = length.len() + header.len();
    let metadata: Metadata = serde_json::from_slice(header).ok()?;
    let end = start.checked_add(metadata.data_len())?;
    (end as u64 == len).then(|| Header::new(&metadata, start))
}

fn header_of_table(table: &str) -> Vec<u8> {
    let mut header = Map::new();
    let mut from = 0_u64;
    for line in table.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(dtype), Some(dims), Some(name)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let dims: Vec<u64> = dims.split('x').filter_map(|dim| dim.parse().ok()).collect();
        let bytes_each = match dtype {
            "F64" | "I64" => 8,
            "F32" | "I32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        let bytes = dims.iter().try_fold(bytes_each, |product: u64, dim| product.checked_mul(*dim));
        let Some(to) = bytes.and_then(|bytes| from.checked_add(bytes)) else { continue };
        if !header.contains_key(name) {
            let entry = json!({"dtype": dtype, "shape": dims, "data_offsets": [from, to]});
            header.insert(name.to_owned(), entry);
            from = to;
        }
    }
    serde_json::to_vec(&header).unwrap()
}

fn hole_behind(header: &[u8]) -> u64 {
    let Ok(header) = serde_json::from_slice::<Map<String, Value>>(header) else { return 0 };
    let ends = header.values().filter_map(|entry| entry.get("data_offsets")?.get(1)?.as_u64());
    ends.max().unwrap_or(0).min(MAX_HOLE_BYTES)
}

fn file_holds(path: &Path, has_header: bool) {
    let checkpoint = CheckpointRef { name: NAME.to_owned(), path: path.to_owned() };
    let prepared = Prepared::open(&PipelineSpec::of(checkpoint), &mut Default::default());
    let inspected = inspect(NAME, path);
    match &prepared {
        Ok(prepared) => {
            assert_eq!(inspected.kind, ModelKind::Checkpoint);
            assert_eq!(inspected.family.as_deref(), Some(prepared.facts().family.name()));
        }
        Err(error) => message_holds(&error.to_string(), path),
    }
    match (inspected.kind, &inspected.problem) {
        (ModelKind::Unknown, None) => panic!("a file that is nothing, and no word why"),
        (_, Some(problem)) => assert!(!problem.is_empty()),
        (_, None) => assert!(has_header, "{inspected:?}"),
    }
}

/// Errors name the file as the user does, and never its place on the disk.
fn message_holds(message: &str, path: &Path) {
    assert!(message.contains(NAME), "{message}");
    assert!(!message.contains(path.to_str().unwrap()), "{message}");
}

/// The tensors fill the file behind the header.
fn header_holds(header: &Header, len: u64) {
    let sizes = header.entries.values().map(|entry| entry.size_bytes() as u64);
    assert!(sizes.sum::<u64>() <= len);
    assert!(header.entries.keys().all(|name| header.has_prefix(name)));
    for prefix in ["", "model.diffusion_model.input_blocks.", "x."] {
        assert!(header.count(prefix) <= header.entries.len());
    }
}

/// A LoRA's tensors are merged, reported or refused.
fn lora_holds(header: &Header) {
    let tensors = header.entries.iter().map(|(name, entry)| (name.as_str(), &entry.dims[..]));
    let verdict = Sorted::of(tensors, &header.metadata).and_then(|sorted| {
        let known = sorted.adapters.len();
        let all = known..=known + sorted.strangers.len();
        Ok((sorted.match_to(&modules(), "SD1.x", &header.metadata)?, all))
    });
    match verdict {
        Ok((matched, all)) => {
            assert!(all.contains(&(matched.adapters.len() + matched.unmatched.len())));
        }
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
}

/// Modules of a checkpoint that LoRAs may change.
fn modules() -> Vec<Module> {
    let module = |canonical: &str, dims: &[usize]| Module {
        canonical: canonical.to_owned(),
        ldm: None,
        dims: dims.to_vec(),
    };
    vec![
        module("unet.mid_block.attentions.0.attn2.to_k", &[16, 12]),
        module("unet.conv_in", &[8, 6, 3, 3]),
        module("unet.proj_in", &[8, 8, 1, 1]),
        module("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", &[8, 8]),
    ]
}
