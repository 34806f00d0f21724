//! LoRAs: names and shapes of every spelling and algorithm, with changes.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use diffused::{
    engine::{
        checkpoint::Module,
        lora::{LoraCache, Patches, Recipient, Sorted},
    },
    modes::{LoraRef, OnLoraError},
};
use proptest::{prelude::*, sample::Index};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};

const NAME: &str = "fuzzed.safetensors";
/// Larger files are not written.
const MAX_NUMBERS: usize = 1 << 16;

type Tensors = BTreeMap<String, Vec<usize>>;

/// What a checkpoint has, and what LoRAs call it.
const MODULES: [(&str, &[usize], &[&str]); 4] = [
    (
        "unet.mid_block.attentions.0.attn2.to_k",
        &[16, 12],
        &[
            "lora_unet_mid_block_attentions_0_attn2_to_k",
            "lora_unet_middle_block_1_attn2_to_k",
            "unet.mid_block.attentions.0.attn2.to_k",
            "base_model.model.mid_block.attentions.0.attn2.to_k",
            "diffusion_model.middle_block.1.attn2.to_k",
        ],
    ),
    ("unet.conv_in", &[8, 6, 3, 3], &["lora_unet_conv_in", "conv_in", "lycoris_conv_in"]),
    ("unet.proj_in", &[8, 8, 1, 1], &["lora_unet_proj_in", "unet.proj_in"]),
    (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        &[8, 8],
        &[
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
            "text_encoder.encoder.layers.0.self_attn.q_proj",
        ],
    ),
];

const PARTS: [&str; 24] = [
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    "lora_A.weight",
    "lora_B.default.weight",
    "lora_magnitude_vector",
    "lora_B.bias",
    "alpha",
    "dora_scale",
    "hada_w1_a",
    "hada_w1_b",
    "hada_t1",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_t2",
    "diff",
    "diff_b",
    "oft_blocks",
    "weight",
];

fn modules() -> Vec<Module> {
    let ldm = |canonical: &str| {
        canonical.contains("attn2").then(|| "middle_block.1.attn2.to_k".to_owned())
    };
    let module = |(canonical, dims, _): (&str, &[usize], _)| Module {
        canonical: canonical.to_owned(),
        ldm: ldm(canonical),
        dims: dims.to_vec(),
    };
    MODULES.into_iter().map(module).collect()
}

/// A module's tensors as they ought to be, by one of the algorithms.
fn parts(dims: &[usize], algorithm: usize) -> Vec<(&'static str, Vec<usize>)> {
    let ([n, c], kernel) = ([dims[0], dims[1]], &dims[2..]);
    let k = c * kernel.iter().product::<usize>();
    let with = |a: usize, b: usize| [&[a, b], kernel].concat();
    let ones: Vec<usize> = kernel.iter().map(|_| 1).collect();
    let low_rank =
        [("lora_down.weight", with(2, c)), ("lora_up.weight", [&[n, 2][..], &ones].concat())];
    match algorithm {
        0 => [&low_rank[..], &[("alpha", vec![])]].concat(),
        1 => [&low_rank[..], &[("dora_scale", [&[n, 1][..], &ones].concat())]].concat(),
        2 => [&low_rank[..], &[("dora_scale", [&[1, c][..], &ones].concat())]].concat(),
        3 => vec![
            ("hada_w1_a", vec![n, 2]),
            ("hada_w1_b", vec![2, k]),
            ("hada_w2_a", vec![n, 3]),
            ("hada_w2_b", vec![3, k]),
        ],
        4 => vec![("lokr_w1", vec![2, 2]), ("lokr_w2", with(n / 2, c / 2)), ("alpha", vec![1])],
        5 => vec![
            ("lokr_w1_a", vec![4, 1]),
            ("lokr_w1_b", vec![1, 2]),
            ("lokr_w2_a", vec![n / 4, 3]),
            ("lokr_w2_b", vec![3, k / 2]),
        ],
        6 => vec![
            ("lora_down.weight", [&[2, c][..], &ones].concat()),
            ("lora_mid.weight", with(3, 2)),
            ("lora_up.weight", [&[n, 3][..], &ones].concat()),
        ],
        7 => vec![("diff", dims.to_vec()), ("diff_b", vec![n])],
        _ => vec![
            ("lora_A.weight", with(2, c)),
            ("lora_B.default.weight", [&[n, 2][..], &ones].concat()),
            ("lora_magnitude_vector", vec![n]),
            ("lora_B.bias", vec![n]),
        ],
    }
}

#[derive(Debug, Clone)]
enum Change {
    Drop(Index),
    Resize(Index, Index, usize),
    /// The dimensions of one to another.
    Reshape(Index, Vec<usize>),
    Rename(Index, String),
    AddPart(Index, &'static str, Vec<usize>),
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..20_usize, 1 => Just(usize::MAX), 1 => Just(1 << 33), 1 => any::<usize>()]
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(sizes(), 0..5)
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let index = any::<Index>;
    let change = prop_oneof![
        (index(),).prop_map(|(i,)| Change::Drop(i)),
        (index(), index(), sizes()).prop_map(|(i, axis, size)| Change::Resize(i, axis, size)),
        (index(), shapes()).prop_map(|(i, dims)| Change::Reshape(i, dims)),
        (index(), "[a-z_.0-9]{0,30}").prop_map(|(i, name)| Change::Rename(i, name)),
        (index(), prop::sample::select(&PARTS[..]), shapes())
            .prop_map(|(i, part, dims)| Change::AddPart(i, part, dims)),
    ];
    prop::collection::vec(change, 0..4)
}

/// A module by number, its spelling, and the algorithm.
type Choice = (usize, Index, usize);

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    prop::collection::vec((0..MODULES.len(), any::<Index>(), 0..9_usize), 0..4)
}

fn tensors(choices: &[Choice], changes: &[Change]) -> Tensors {
    let mut tensors = Tensors::new();
    for (module, spelling, algorithm) in choices {
        let (_, dims, spellings) = MODULES[*module];
        let module = spelling.get(spellings);
        let parts = parts(dims, *algorithm).into_iter();
        tensors.extend(parts.map(|(part, dims)| (format!("{module}.{part}"), dims)));
    }
    for change in changes {
        let (Change::Drop(index)
        | Change::Resize(index, ..)
        | Change::Reshape(index, _)
        | Change::Rename(index, _)
        | Change::AddPart(index, ..)) = change;
        if tensors.is_empty() {
            break;
        }
        let name = tensors.keys().nth(index.index(tensors.len())).unwrap().clone();
        let mut dims = tensors.remove(&name).unwrap();
        match change {
            Change::Drop(_) => continue,
            Change::Resize(_, axis, size) if !dims.is_empty() => {
                let axis = axis.index(dims.len());
                dims[axis] = *size;
            }
            Change::Resize(..) => {}
            Change::Reshape(_, other) => dims.clone_from(other),
            Change::Rename(_, other) => {
                tensors.insert(other.clone(), dims);
                continue;
            }
            Change::AddPart(_, part, other) => {
                let module = name.split(".lora").next().unwrap();
                tensors.insert(format!("{module}.{part}"), other.clone());
            }
        }
        tensors.insert(name, dims);
    }
    tensors
}

/// How many numbers there are of all, if that is few enough to write them.
fn count(tensors: &Tensors) -> Option<usize> {
    let count = |dims: &Vec<usize>| dims.iter().try_fold(1usize, |a, b| a.checked_mul(*b));
    let total = tensors.values().map(count).try_fold(0usize, |a, b| a.checked_add(b?))?;
    (total <= MAX_NUMBERS).then_some(total)
}

fn write(tensors: &Tensors, path: &Path) {
    let zeros = vec![0; 4 * MAX_NUMBERS];
    let views = tensors.iter().map(|(name, dims)| {
        let bytes = &zeros[..4 * dims.iter().product::<usize>()];
        (name, TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

proptest! {
    #![proptest_config(crate::cases(500))]

    #[test]
    fn what_is_right_fits(choices in choices()) {
        let (mut seen, none) = (Vec::new(), HashMap::new());
        let choices: Vec<_> = choices
            .into_iter()
            .filter(|(module, ..)| !seen.contains(module) && { seen.push(*module); true })
            .collect();
        let tensors = tensors(&choices, &[]);
        let sorted = Sorted::of(tensors.iter().map(|(name, dims)| (name.as_str(), &**dims)), &none);
        let matched = sorted.and_then(|sorted| sorted.match_to(&modules(), "SD1.x", &none));
        match matched {
            Ok(matched) => {
                prop_assert_eq!(matched.adapters.len(), choices.len());
                prop_assert!(matched.unmatched.is_empty());
            }
            Err(fault) => prop_assert!(choices.is_empty(), "{}", fault),
        }
    }

    #[test]
    fn whatever_is_in_a_file_is_merged_or_refused(choices in choices(), changes in changes()) {
        let (tensors, modules, none) = (tensors(&choices, &changes), modules(), HashMap::new());
        let sorted = Sorted::of(tensors.iter().map(|(name, dims)| (name.as_str(), &**dims)), &none);
        let verdict = sorted.and_then(|sorted| {
            // What is no part of a LoRA is counted by its modules.
            let all = sorted.adapters.len()..=sorted.adapters.len() + sorted.strangers.len();
            Ok((sorted.match_to(&modules, "SD1.x", &none)?, all))
        });
        if let Ok((matched, all)) = &verdict {
            prop_assert!(all.contains(&(matched.adapters.len() + matched.unmatched.len())));
            let known = |name: &String| modules.iter().any(|module| module.canonical == *name);
            prop_assert!(matched.adapters.keys().all(known));
        }
        if count(&tensors).is_none() {
            return Ok(());
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&tensors, &path);
        let lora = LoraRef { name: NAME.to_owned(), path: path.clone(), strength: -0.5, adapter_name: None };
        let to = Recipient::new("SD1.x", Vec::new(), || modules.clone());
        match (Patches::of(&[lora], &to, OnLoraError::Fail, &mut LoraCache::new()), verdict) {
            (Ok((patches, reports)), Ok((matched, _))) => {
                prop_assert_eq!(reports[0].merged, matched.adapters.len());
                for Module { canonical, dims, .. } in &modules {
                    let mut weight = vec![1.0; dims.iter().product()];
                    patches.apply(&format!("{canonical}.weight"), dims, &mut weight);
                    prop_assert!(weight.iter().all(|x| x.is_finite()));
                    patches.apply(&format!("{canonical}.bias"), &dims[..1], &mut weight[..dims[0]]);
                }
            }
            (Err(error), Err(fault)) => {
                prop_assert_eq!(error.to_string(), format!("{NAME}: {fault}"));
            }
            (found, verdict) => prop_assert!(false, "{:?} {:?}", found.map(|found| found.1), verdict),
        }
    }

    #[test]
    fn any_names_and_shapes_have_a_verdict(
        tensors in prop::collection::btree_map("\\PC{0,40}|[a-z_.]{0,30}\\.(alpha|lora_A\\.weight|diff)", shapes(), 0..8),
        modules in prop::collection::vec(("[a-z_.]{0,30}", shapes()), 0..4),
        metadata in prop::collection::hash_map("modelspec.architecture|lora_adapter_metadata", "\\PC{0,60}", 0..3),
    ) {
        let modules: Vec<_> = modules
            .into_iter()
            .map(|(canonical, dims)| Module { canonical, ldm: None, dims })
            .collect();
        let tensors = tensors.iter().map(|(name, dims)| (name.as_str(), &**dims));
        if let Err(fault) = Sorted::of(tensors, &metadata)
            .and_then(|sorted| sorted.match_to(&modules, "SDXL", &metadata))
        {
            prop_assert!(!fault.to_string().is_empty());
        }
    }
}
