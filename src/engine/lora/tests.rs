//! Whole files, good and bad, against a checkpoint's modules.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use safetensors::{Dtype, tensor::TensorView};

use super::{Fault, LoraCache, Match, Patches, Recipient, Sorted};
use crate::{
    engine::checkpoint::Module,
    modes::{LoraRef, OnLoraError},
};

const Q: &str = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q";
const K: &str = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";

fn modules() -> Vec<Module> {
    let module = |canonical: &str, dims: &[usize]| Module {
        canonical: canonical.to_owned(),
        ldm: None,
        dims: dims.to_vec(),
    };
    vec![
        module(Q, &[32, 32]),
        module(K, &[32, 768]),
        module("unet.conv_in", &[32, 4, 3, 3]),
        module("unet.proj_in", &[32, 32, 1, 1]),
        module("text_encoder.fc1", &[128, 32]),
    ]
}

type Tensors<'a> = &'a [(&'a str, &'a [usize])];

fn match_to_modules(tensors: Tensors<'_>, metadata: &[(&str, &str)]) -> Result<Match, Fault> {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let tensors = tensors.iter().copied();
    Sorted::of(tensors, &metadata)?.match_to(&modules(), "SD1.x", &metadata)
}

/// Names of kohya's form below one module.
fn with_parts(module: &str, parts: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    parts.iter().map(|(part, dims)| (format!("{module}.{part}"), dims.to_vec())).collect()
}

fn check(module: &str, parts: &[(&str, &[usize])]) -> Result<Match, Fault> {
    let tensors = with_parts(module, parts);
    let tensors: Vec<_> = tensors.iter().map(|(name, dims)| (name.as_str(), &**dims)).collect();
    match_to_modules(&tensors, &[])
}

#[test]
fn every_algorithm_is_known_by_its_parts() {
    for (module, parts) in [
        ("proj_in", &[("lora_down.weight", &[4, 32][..]), ("lora_up.weight", &[32, 4])][..]),
        (
            "proj_in",
            &[
                ("lora_down.weight", &[4, 32, 1, 1]),
                ("lora_up.weight", &[32, 4, 1, 1]),
                ("alpha", &[]),
            ],
        ),
        (
            "conv_in",
            &[
                ("lora_down.weight", &[2, 4, 3, 3]),
                ("lora_up.weight", &[32, 2, 1, 1]),
                ("alpha", &[1]),
            ],
        ),
        (
            "conv_in",
            &[
                ("lora_down.weight", &[2, 4, 1, 1]),
                ("lora_mid.weight", &[3, 2, 3, 3]),
                ("lora_up.weight", &[32, 3, 1, 1]),
            ],
        ),
        (
            "conv_in",
            &[
                ("hada_w1_a", &[32, 2]),
                ("hada_w1_b", &[2, 36]),
                ("hada_w2_a", &[32, 3]),
                ("hada_w2_b", &[3, 36]),
            ],
        ),
        (
            "conv_in",
            &[
                ("hada_t1", &[2, 2, 3, 3]),
                ("hada_w1_a", &[2, 32]),
                ("hada_w1_b", &[2, 4]),
                ("hada_t2", &[2, 2, 3, 3]),
                ("hada_w2_a", &[2, 32]),
                ("hada_w2_b", &[2, 4]),
            ],
        ),
        ("conv_in", &[("lokr_w1", &[4, 2]), ("lokr_w2", &[8, 2, 3, 3]), ("alpha", &[])]),
        ("conv_in", &[("lokr_w1", &[4, 2]), ("lokr_w2_a", &[8, 5]), ("lokr_w2_b", &[5, 18])]),
        (
            "conv_in",
            &[
                ("lokr_w1_a", &[4, 1]),
                ("lokr_w1_b", &[1, 2]),
                ("lokr_t2", &[5, 5, 3, 3]),
                ("lokr_w2_a", &[5, 8]),
                ("lokr_w2_b", &[5, 2]),
            ],
        ),
        (
            "conv_in",
            &[
                ("lora_A.weight", &[2, 4, 3, 3]),
                ("lora_B.weight", &[32, 2, 1, 1]),
                ("lora_magnitude_vector", &[1, 32, 1, 1]),
                ("lora_B.bias", &[32]),
            ],
        ),
        (
            "conv_in",
            &[
                ("lora_A.weight", &[2, 4, 3, 3]),
                ("lora_B.weight", &[32, 2, 1, 1]),
                ("dora_scale", &[1, 4, 1, 1]),
            ],
        ),
        ("conv_in", &[("diff", &[32, 4, 3, 3]), ("diff_b", &[32])]),
        ("conv_in", &[("diff_b", &[32])]),
    ] {
        let matched = check(module, parts);
        let matched = matched.unwrap_or_else(|fault| panic!("{module} {parts:?}: {fault}"));
        assert_eq!(matched.adapters.len(), 1, "{module} {parts:?}");
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    for (parts, expected) in [
        (
            &[("lora_down.weight", &[4, 32][..])][..],
            "'x.lora_down.weight' [4, 32] lacks the other half of its product",
        ),
        (
            &[("lora_down.weight", &[4, 32]), ("lora_up.weight", &[32, 5])],
            "'x.lora_up.weight' [32, 5] has another rank than 'x.lora_down.weight' [4, 32]",
        ),
        (
            &[("lora_down.weight", &[4, 32]), ("lora_up.weight", &[32])],
            "'x.lora_up.weight' [32] is not a matrix",
        ),
        (
            &[("lora_down.weight", &[]), ("lora_up.weight", &[32, 1])],
            "'x.lora_down.weight' [] is not a matrix",
        ),
        (
            &[("lora_down.weight", &[0, 32]), ("lora_up.weight", &[32, 0])],
            "'x.lora_down.weight' [0, 32] has no size that makes sense",
        ),
        (
            &[("lora_down.weight", &[1, 1 << 40]), ("lora_up.weight", &[1 << 40, 1])],
            "'x.lora_down.weight' [1, 1099511627776] and its like make a matrix that is too large",
        ),
        (
            &[("lora_down.weight", &[1 << 40, 1 << 40]), ("lora_up.weight", &[1, 1])],
            "[1099511627776, 1099511627776] has no size that makes sense",
        ),
        (
            &[("lokr_w1", &[1 << 40, 1]), ("lokr_w2", &[1 << 40, 1])],
            "'x.lokr_w2' [1099511627776, 1] and its like make a matrix that is too large",
        ),
        (
            &[("lora_down.weight", &[4, 32]), ("lora_up.weight", &[32, 4]), ("alpha", &[2])],
            "'x.alpha' [2] must be a single number",
        ),
        (
            &[("lora_down.weight", &[4, 32]), ("lora_up.weight", &[32, 4]), ("hada_w1_a", &[1, 1])],
            "'x.hada_w1_a' [1, 1] does not belong to the others of its module",
        ),
        (
            &[("hada_w1_a", &[32, 2]), ("hada_w1_b", &[2, 36])],
            "'x.hada_w1_a' [32, 2] lacks its hada_w2_a",
        ),
        (&[("lokr_w1", &[4, 2])], "'x.lokr_w1' [4, 2] lacks its lokr_w2"),
        (&[("dora_scale", &[4])], "'x.dora_scale' [4] has no weights beside it"),
        (&[("diff", &[4])], "'x.diff' [4] is neither a matrix nor a kernel"),
        (&[("oft_blocks", &[4])], "'x.oft_blocks' belongs to OFT"),
        (
            &[("lora_down.weight", &[4, 32]), ("lora_A.weight", &[4, 32])],
            "'x.lora_A.weight' [4, 32] means the same as 'x.lora_down.weight'",
        ),
    ] {
        let fault = check("x", parts).unwrap_err().to_string();
        assert!(fault.contains(expected), "{parts:?}: {fault}");
    }
}

const FITTING: Tensors<'_> =
    &[("proj_in.lora_down.weight", &[4, 32]), ("proj_in.lora_up.weight", &[32, 4])];
const STRANGE: Tensors<'_> =
    &[("nowhere.lora_down.weight", &[4, 32]), ("nowhere.lora_up.weight", &[32, 4])];

#[test]
fn some_may_have_no_place() {
    let matched = match_to_modules(&[FITTING, STRANGE].concat(), &[]).unwrap();
    assert_eq!(matched.unmatched, ["nowhere"]);
    assert!(matched.adapters.contains_key("unet.proj_in"));
    // Normalisations are not merged, and not passed over either.
    let norm: Tensors<'_> = &[("norm1.w_norm", &[32]), ("norm1.b_norm", &[32])];
    let matched = match_to_modules(&[FITTING, norm].concat(), &[]).unwrap();
    assert_eq!(matched.unmatched, ["norm1"]);
    // All of it has a place: whatever the file says it is for.
    assert!(match_to_modules(FITTING, &[("ss_base_model_version", "sdxl_base_v1-0")]).is_ok());
}

#[test]
fn who_does_not_fit_is_told_what_it_is_for() {
    let to_k = |width: usize| {
        vec![
            (format!("{K}.lora_A.weight"), vec![4, width]),
            (format!("{K}.lora_B.weight"), vec![32, 4]),
        ]
    };
    let wide = to_k(2048);
    let wide: Vec<_> = wide.iter().map(|(name, dims)| (name.as_str(), &**dims)).collect();
    let odd = to_k(64);
    let odd: Vec<_> = odd.iter().map(|(name, dims)| (name.as_str(), &**dims)).collect();
    let sdxl = &[("ss_base_model_version", "sdxl_base_v1-0")][..];
    for (tensors, metadata, expected) in [
        (
            &[FITTING, STRANGE].concat(),
            sdxl,
            "is a LoRA for SDXL (ss_base_model_version 'sdxl_base_v1-0'), not for this SD1.x \
             checkpoint; 1 of its 2 modules found a place",
        ),
        (
            &STRANGE.to_vec(),
            &[],
            "does not fit this SD1.x checkpoint, and does not say what it is for; 0 of its 1 module \
             found a place",
        ),
        (
            &wide,
            &[],
            "is a LoRA for SDXL (its cross-attention reads 2048 numbers), not for this SD1.x \
             checkpoint; 0 of its 1 module found a place, and 'unet.down_blocks.0.attentions.0.\
             transformer_blocks.0.attn2.to_k' is made for [32, 2048] where the checkpoint has \
             [32, 768]",
        ),
        (
            &odd,
            &[("modelspec.architecture", "stable-diffusion-v1/lora")],
            "is a LoRA for SD1.x (modelspec.architecture 'stable-diffusion-v1/lora'), but does not \
             fit this checkpoint; 0 of its 1 module found a place",
        ),
        (
            &odd,
            &[],
            "is a LoRA for text embeddings of width 64 (its cross-attention reads 64 numbers), not \
             for this SD1.x checkpoint",
        ),
        (
            &vec![("lora_te2_text_projection.diff", &[4, 4][..])],
            &[],
            "is a LoRA for SDXL (it changes a second text encoder), not for this SD1.x checkpoint",
        ),
        (
            &vec![("emb_params", &[4, 4][..])],
            &[],
            "is not a LoRA: none of its 1 tensors is named as a LoRA's are",
        ),
        (&vec![], &[], "is not a LoRA"),
        (
            &[FITTING, &[("unet.proj_in.diff_b", &[32][..])]].concat(),
            &[],
            "'unet.proj_in' is there twice, under two names",
        ),
    ] {
        let fault = match_to_modules(tensors, metadata).unwrap_err().to_string();
        assert!(fault.starts_with(expected), "{fault}\n{expected}");
    }
}

/// Writes a file of f32 tensors; their numbers are 0, 1, 2 …
fn write(folder: &Path, name: &str, tensors: Tensors<'_>) -> LoraRef {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dims)| {
            let count: usize = dims.iter().product();
            (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
        })
        .collect();
    let views: BTreeMap<_, _> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, dims), bytes)| {
            (*name, TensorView::new(Dtype::F32, dims.to_vec(), bytes).unwrap())
        })
        .collect();
    let path = folder.join(name);
    safetensors::serialize_to_file(views, None, &path).unwrap();
    LoraRef { name: name.to_owned(), path, strength: 0.5, adapter_name: None }
}

#[test]
fn files_are_merged_in_order_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let first = write(folder.path(), "first.safetensors", &[("text_encoder.fc1.diff", &[128, 32])]);
    let second = write(folder.path(), "second.safetensors", &[("text_encoder.fc1.diff_b", &[128])]);
    let off = LoraRef { strength: 0.0, ..first.clone() };
    let to = Recipient::new("SD1.x", Vec::new(), modules);
    let merge = |loras: &[LoraRef], policy| Patches::of(loras, &to, policy, &mut LoraCache::new());
    let (patches, reports) =
        merge(&[first.clone(), off, first.clone(), second], OnLoraError::Fail).unwrap();
    assert!(reports.iter().all(|report| (report.merged, report.unmatched) == (1, 0)));
    let mut weight = vec![1.0; 128 * 32];
    patches.apply("text_encoder.fc1.weight", &[128, 32], &mut weight);
    assert_eq!(weight[..3], [1.0, 2.0, 3.0]);
    let mut bias = vec![1.0; 128];
    patches.apply("text_encoder.fc1.bias", &[128], &mut bias);
    assert_eq!(bias[..3], [1.0, 1.5, 2.0]);
    let keys = |tensor: &str| patches.key(tensor).len();
    assert_eq!((keys("text_encoder.fc1.weight"), keys("text_encoder.fc1.bias")), (2, 1));
    assert_eq!((keys("text_encoder.fc2.weight"), keys("unet.conv_in.weight")), (0, 0));
}

#[test]
fn a_bad_file_fails_or_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let good = write(folder.path(), "good.safetensors", FITTING);
    let bad = write(folder.path(), "bad.safetensors", STRANGE);
    let missing = LoraRef {
        name: "missing.safetensors".to_owned(),
        path: folder.path().join("missing.safetensors"),
        ..good.clone()
    };
    let cut = LoraRef {
        name: "cut.safetensors".to_owned(),
        path: folder.path().join("cut.safetensors"),
        ..good.clone()
    };
    let whole = fs::read(&good.path).unwrap();
    fs::write(&cut.path, &whole[..whole.len() - 1]).unwrap();
    let to = Recipient::new("SD1.x", Vec::new(), modules);
    let merge = |loras: &[LoraRef], policy| Patches::of(loras, &to, policy, &mut LoraCache::new());
    for (lora, expected) in [
        (&bad, "bad.safetensors: does not fit"),
        (&missing, "missing.safetensors: cannot be read"),
        (&cut, "cut.safetensors: is truncated"),
    ] {
        let error = match merge(&[good.clone(), lora.clone()], OnLoraError::Fail) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{} was merged", lora.name),
        };
        assert!(error.starts_with(expected), "{error}");
        let (patches, reports) = merge(&[good.clone(), lora.clone()], OnLoraError::Skip).unwrap();
        assert_eq!(reports[0].skipped, None);
        assert!(reports[1].skipped.as_ref().is_some_and(|why| why.starts_with(expected)));
        assert_eq!(patches.key("unet.proj_in.weight").len(), 1);
    }
}
