//! Checkpoints that are damaged, foreign, deleted or replaced.

use std::{collections::BTreeMap, fs, process::Command};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use crate::support::{Answer, Daemon, MODES, folder, shipped_checkpoint};

/// A tensor of each of the three networks, and the first of all in the file.
const TEXT_ENCODER: &str =
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight";
const UNET: &str = "model.diffusion_model.input_blocks.1.0.in_layers.0.bias";
const VAE: &str = "first_stage_model.decoder.mid.attn_1.q.weight";

/// A file, and what its refusal says beside its name.
struct Damaged {
    name: &'static str,
    bytes: Vec<u8>,
    says: Vec<String>,
}

fn damaged(name: &'static str, bytes: impl Into<Vec<u8>>, says: &[&str]) -> Damaged {
    let says = says.iter().map(|text| (*text).to_owned()).collect();
    Damaged { name, bytes: bytes.into(), says }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The good checkpoint's bytes with its tensors changed.
fn with_tensors(good: &[u8], change: impl FnOnce(&mut Tensors)) -> Vec<u8> {
    let owned = |(name, view): (&str, TensorView<'_>)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    let mut tensors = SafeTensors::deserialize(good).unwrap().iter().map(owned).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn renamed(good: &[u8], name: impl Fn(&str) -> String) -> Vec<u8> {
    with_tensors(good, |tensors| {
        *tensors =
            std::mem::take(tensors).into_iter().map(|(old, tensor)| (name(&old), tensor)).collect();
    })
}

/// Where the tensors begin.
fn data_start(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize
}

/// The good checkpoint's bytes with another header before the same data.
fn with_header(good: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let start = data_start(good);
    let mut header = serde_json::from_slice(&good[8..start]).unwrap();
    change(&mut header);
    with_header_text(good, &header.to_string())
}

fn with_header_text(good: &[u8], header: &str) -> Vec<u8> {
    let data = &good[data_start(good)..];
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn cut(good: &[u8]) -> Vec<Damaged> {
    let start = data_start(good);
    let offsets: BTreeMap<_, _> = SafeTensors::read_metadata(good)
        .unwrap()
        .1
        .tensors()
        .into_iter()
        .map(|(name, info)| (info.data_offsets.1, name))
        .collect();
    let is_damaged = |name, at: usize| damaged(name, &good[..at], &["damaged"]);
    // The first tensor that is not whole is named.
    let is_truncated = |name, at: usize| {
        let (_, tensor) = offsets.range(at - start + 1..).next().unwrap();
        let length = format!("the file has only {at} bytes");
        damaged(name, &good[..at], &["is truncated", &format!("'{tensor}'"), &length])
    };
    vec![
        is_damaged("cut-in-the-length", 3),
        is_damaged("cut-after-the-length", 8),
        is_damaged("cut-in-the-header", start / 2),
        is_damaged("cut-at-the-headers-last-byte", start - 1),
        is_truncated("cut-before-the-data", start),
        is_truncated("cut-after-a-byte-of-data", start + 1),
        is_truncated("cut-in-the-data", start + (good.len() - start) / 2),
        is_truncated("cut-at-the-last-byte", good.len() - 1),
    ]
}

fn foreign(good: &[u8]) -> Vec<Damaged> {
    let pickled = ["is a pickled checkpoint", "only .safetensors"];
    let sdxl = |name: &str| {
        name.replace("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
    };
    let no_text_encoder = |tensors: &mut Tensors| {
        tensors.retain(|name, _| !name.starts_with("cond_stage_model."));
    };
    let lora = |tensors: &mut Tensors| {
        let down = (Dtype::F16, vec![4, 32], vec![0; 256]);
        *tensors = BTreeMap::from([("lora_unet_mid_block_proj_in.lora_down.weight".into(), down)]);
    };
    vec![
        damaged("empty", [], &["is empty"]),
        damaged(
            "text",
            "version https://git-lfs.github.com/spec/v1\n",
            &["not a safetensors file"],
        ),
        damaged("zip", b"PK\x03\x04archive/data.pkl", &pickled),
        damaged("pickle-2", b"\x80\x02}q\x00(X\x05\x00\x00\x00model", &pickled),
        damaged("pickle-4", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}", &pickled),
        damaged("gguf", b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", &["is a GGUF file"]),
        damaged("index", b"{\n  \"_class_name\": 1}", &["is a JSON file", "name the folder"]),
        damaged("lora", with_tensors(good, lora), &["is a LoRA", "'loras'"]),
        damaged(
            "sdxl",
            renamed(good, sdxl),
            &["conditioner.embedders.1.model.token_embedding.weight' is missing"],
        ),
        damaged("unet-alone", with_tensors(good, no_text_encoder), &["without its text encoder"]),
        damaged("no-tensors", with_tensors(good, BTreeMap::clear), &["no Stable Diffusion model"]),
    ]
}

fn lying_headers(good: &[u8]) -> Vec<Damaged> {
    let length = |bytes: u64| [&bytes.to_le_bytes(), &good[8..]].concat();
    let entry = |key: &'static str, value: Value| {
        with_header(good, move |header| header[UNET][key] = value)
    };
    let truncated = ["is truncated", UNET];
    let (end, beyond) = (good.len() as u64, u64::MAX);
    vec![
        damaged("a-header-of-2-to-the-60", length(1 << 60), &["header too large"]),
        damaged("a-header-of-2-to-the-64", length(u64::MAX), &["damaged"]),
        damaged("a-header-longer-than-the-file", length(end), &["damaged"]),
        damaged("no-json", with_header_text(good, "{\"a\": "), &["damaged"]),
        damaged("bytes-after-the-last", [good, b"x"].concat(), &["damaged"]),
        damaged("overlapping", entry("data_offsets", json!([0, 64])), &["damaged", "offset"]),
        damaged("beyond-the-end", entry("data_offsets", json!([end, end + 64])), &truncated),
        damaged("beyond-all", entry("data_offsets", json!([beyond - 64, beyond])), &truncated),
        damaged("overflowing", entry("shape", json!([1u64 << 40, 1u64 << 40])), &["damaged"]),
        damaged("another-shape-than-size", entry("shape", json!([33])), &["damaged"]),
    ]
}

fn wrong_tensors(good: &[u8]) -> Vec<Damaged> {
    let without = |tensor: &str| with_tensors(good, |tensors| drop(tensors.remove(tensor)));
    let with = |tensor: &str, dtype, shape: &[usize], bytes| {
        let wrong = (dtype, shape.to_vec(), vec![0; bytes]);
        with_tensors(good, |tensors| drop(tensors.insert(tensor.to_owned(), wrong)))
    };
    let missing = |name, tensor: &str| {
        damaged(name, without(tensor), &[&format!("the tensor '{tensor}' is missing")])
    };
    let misshapen = |name, tensor: &str| {
        let says = format!("the tensor '{tensor}' has the shape [7]");
        damaged(name, with(tensor, Dtype::F16, &[7], 14), &[&says])
    };
    let is_i32 = "is stored as I32; fp32, fp16, bf16 and fp8 (e4m3, e5m2) are read";
    vec![
        missing("text-encoder-without-a-tensor", TEXT_ENCODER),
        missing("unet-without-a-tensor", UNET),
        missing("vae-without-a-tensor", VAE),
        misshapen("text-encoder-misshapen", TEXT_ENCODER),
        misshapen("unet-misshapen", UNET),
        misshapen("vae-misshapen", VAE),
        damaged("a-scalar", with(UNET, Dtype::F16, &[], 2), &[UNET, "has the shape []"]),
        damaged("a-void", with(UNET, Dtype::F16, &[0], 0), &[UNET, "has the shape [0]"]),
        damaged("integers", with(UNET, Dtype::I32, &[32], 128), &[UNET, is_i32]),
    ]
}

fn draw(daemon: &Daemon, mode: &str) -> Answer {
    let request = json!({"mode": mode, "prompt": "a fox", "seed": 7, "num_inference_steps": 1});
    daemon.post("/generate", &request)
}

fn current_mode(daemon: &Daemon) -> Value {
    daemon.get("/api/models/status").json()["current_mode"].clone()
}

/// How often a checkpoint was loaded.
fn loads(daemon: &Daemon) -> usize {
    daemon.log().lines().filter(|line| line.contains(": loaded mode=")).count()
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_refused_by_name_and_the_loaded_one_stays() {
    let good = fs::read(shipped_checkpoint()).unwrap();
    let mut files = cut(&good);
    files.extend(foreign(&good));
    files.extend(lying_headers(&good));
    files.extend(wrong_tensors(&good));
    let mut modes = "model_root: models\ndefault_mode: tiny\nmodes:\n  \
                     tiny: {model: tiny.safetensors, default_size: 64x64}\n"
        .to_owned();
    let folder = folder("");
    let models = folder.path().join("models");
    fs::create_dir(models.join("bad")).unwrap();
    for Damaged { name, bytes, .. } in &files {
        fs::write(models.join(format!("bad/{name}.safetensors")), bytes).unwrap();
    }
    fs::create_dir(models.join("bad/folder.safetensors")).unwrap();
    files.push(damaged("folder", [], &["is a folder without a model_index.json"]));
    let pipe = models.join("bad/pipe.safetensors");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    files.push(damaged("pipe", [], &["cannot be read", "is not a file"]));
    files.push(damaged("nowhere", [], &["cannot be read", "No such file"]));
    for Damaged { name, .. } in &files {
        modes += &format!("  {name}: {{model: bad/{name}.safetensors}}\n");
    }
    fs::write(folder.path().join("modes.yaml"), modes).unwrap();

    let daemon = Daemon::start_in(folder, &[]);
    assert!(daemon.log().contains("'bad/pipe.safetensors' is not a file but a pipe"));
    let image = draw(&daemon, "tiny");
    assert_eq!(image.status, 200, "{}", image.text());
    for Damaged { name, says, .. } in &files {
        let problem = draw(&daemon, name).problem(500, "model-unusable", "/generate");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with(&format!("bad/{name}.safetensors: ")), "{detail}");
        for text in says {
            assert!(detail.contains(text), "{text:?} is not in: {detail}");
        }
        assert!(!detail.contains(daemon.path().to_str().unwrap()), "{detail}");
        assert_eq!(current_mode(&daemon), "tiny", "after {name}");
        assert!(draw(&daemon, "tiny").body == image.body, "another image after {name}");
    }
    assert_eq!(loads(&daemon), 1, "{}", daemon.log());
}

#[test]
fn a_header_whose_length_looks_like_a_pickle_is_read() {
    let good = fs::read(shipped_checkpoint()).unwrap();
    let mut header = String::from_utf8(good[8..data_start(&good)].to_vec()).unwrap();
    while header.len() & 0xffff != 0x0280 {
        header.push(' ');
    }
    let padded = with_header_text(&good, &header);
    assert!(padded.starts_with(b"\x80\x02"));
    let folder = folder(MODES);
    let other = folder.path().join("models/other.safetensors");
    fs::remove_file(&other).unwrap();
    fs::write(other, padded).unwrap();
    let daemon = Daemon::start_in(folder, &[]);
    let answer = draw(&daemon, "other");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_checkpoint_that_changes_on_disk_while_it_is_loaded_goes_on_drawing() {
    let shipped = shipped_checkpoint();
    let folder = folder(MODES);
    let tiny = folder.path().join("models/tiny.safetensors");
    fs::remove_file(&tiny).unwrap(); // a link
    fs::copy(&shipped, &tiny).unwrap();
    let daemon = Daemon::start_in(folder, &[]);
    let image = draw(&daemon, "tiny");
    assert_eq!(image.status, 200, "{}", image.text());
    let truncate = || fs::File::options().write(true).open(&tiny).unwrap().set_len(1000).unwrap();
    let replace = || {
        let new = tiny.with_extension("new");
        fs::write(&new, "another file").unwrap();
        fs::rename(new, &tiny).unwrap();
    };
    let delete = || fs::remove_file(&tiny).unwrap();
    for (change, says) in [
        (&truncate as &dyn Fn(), "invalid header length"),
        (&replace, "not a safetensors file"),
        (&delete, "No such file"),
    ] {
        change();
        assert!(draw(&daemon, "tiny").body == image.body, "another image: {says}");
        // Read again, it is what it has become; and once it is whole again, it draws again.
        assert_eq!(draw(&daemon, "other").status, 200);
        let unload = json!({"mode": "tiny", "wait": true});
        assert_eq!(daemon.post("/api/models/unload", &unload).json()["modes"], json!(["tiny"]));
        let problem = draw(&daemon, "tiny").problem(500, "model-unusable", "/generate");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with("tiny.safetensors: ") && detail.contains(says), "{detail}");
        assert_eq!(current_mode(&daemon), "other");
        fs::copy(&shipped, &tiny).unwrap();
        assert!(draw(&daemon, "tiny").body == image.body, "another image, restored after: {says}");
    }
}
