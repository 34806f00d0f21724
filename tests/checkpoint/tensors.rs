//! A checkpoint that lacks anything is refused by that tensor's name, and none is read in another
//! shape: an image from a part of a model would be a lie.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

use diffused::engine::checkpoint::Error;
use safetensors::SafeTensors;

use crate::{
    recipe::Recipe,
    support::{Shapes, open, write_shapes},
};

/// The shapes in the small checkpoint that comes with the source, and in the tiny ones.
fn models() -> Vec<(&'static str, Shapes)> {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden/tiny-sd15.safetensors");
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let shipped = tensors.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec()));
    let mut models = vec![("tiny-sd15", shipped.collect())];
    for model in ["small", "inpaint", "lcm", "sd2", "sdxl", "ssd", "refiner"] {
        let mut shapes = Recipe::of(model).single_file_shapes();
        for (name, shape) in leftovers(model) {
            shapes.insert((*name).to_owned(), shape.to_vec());
        }
        models.push((model, shapes));
    }
    models
}

/// What files of the family have besides, and nobody reads.
fn leftovers(model: &str) -> &'static [(&'static str, &'static [usize])] {
    match model {
        "sdxl" | "ssd" => &[
            ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids", &[1, 77]),
            ("conditioner.embedders.0.transformer.text_projection.weight", &[64, 64]),
            ("conditioner.embedders.1.model.logit_scale", &[]),
            ("denoiser.sigmas", &[1000]),
        ],
        "refiner" => &[("conditioner.embedders.0.model.logit_scale", &[])],
        "sd2" => &[("model_ema.decay", &[]), ("betas", &[1000])],
        _ => &[
            ("cond_stage_model.transformer.text_model.embeddings.position_ids", &[1, 77]),
            ("cond_stage_model.logit_scale", &[]),
            ("alphas_cumprod", &[1000]),
        ],
    }
}

/// What only training needs is not missed, nor what the reference leaves out: of SD2's text
/// encoder the last layer and all behind it, and the projection of SDXL's first one. A UNet that
/// is not told the guidance scale is one as well.
fn is_needed(model: &str, name: &str) -> bool {
    let is_unused = match model {
        "sd2" => name.contains(".resblocks.3.") || name.ends_with(".text_projection"),
        "lcm" => name.contains(".cond_proj."),
        _ => false,
    };
    let ends = [".position_ids", ".logit_scale"];
    let is_left_over = ends.iter().any(|end| name.ends_with(end))
        || leftovers(model).iter().any(|(leftover, _)| *leftover == name);
    let parts = ["model.", "first_stage_model.", "cond_stage_model.", "conditioner."];
    let is_part = parts.iter().any(|part| name.starts_with(part));
    is_part && !is_unused && !is_left_over
}

fn kind(name: &str) -> String {
    name.replace(|c: char| c.is_ascii_digit(), "")
}

/// One needed tensor of each kind: of those whose names differ in numbers alone, the last.
fn one_of_each_kind<'a>(model: &str, shapes: &'a Shapes) -> Vec<&'a String> {
    let needed = shapes.keys().filter(|name| is_needed(model, name));
    let kinds: BTreeMap<_, _> = needed.map(|name| (kind(name), name)).collect();
    kinds.into_values().collect()
}

fn check(shapes: &Shapes) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write_shapes(&path, shapes, &HashMap::new());
    open(&path).map(drop)
}

#[test]
fn every_tensor_is_missed_by_its_name() {
    for (model, shapes) in models() {
        check(&shapes).unwrap_or_else(|error| panic!("{model}: {error}"));
        for missing in one_of_each_kind(model, &shapes) {
            let mut rest = shapes.clone();
            rest.remove(missing);
            match check(&rest) {
                Err(Error::MissingTensor { tensor, .. }) => assert_eq!(&tensor, missing),
                other => panic!("{model} without {missing}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_is_not_used_is_not_missed() {
    for (model, mut shapes) in models() {
        shapes.retain(|name, _| is_needed(model, name) || name.ends_with(".text_projection"));
        check(&shapes).unwrap_or_else(|error| panic!("{model}: {error}"));
    }
}

/// Nor is a whole layer taken for one that the model was built without.
#[test]
fn every_layer_is_missed() {
    let layer = |name: &str| name.rsplit_once('.').map_or("", |(layer, _)| layer).to_owned();
    for (model, shapes) in models() {
        let needed = one_of_each_kind(model, &shapes).into_iter();
        for missing in needed.map(|name| layer(name)).collect::<BTreeSet<_>>() {
            let mut rest = shapes.clone();
            rest.retain(|name, _| layer(name) != missing);
            let refused = check(&rest);
            let Err(Error::MissingTensor { .. } | Error::WrongShape { .. }) = refused else {
                panic!("{model} without {missing}: {refused:?}")
            };
        }
    }
}

#[test]
fn no_tensor_is_read_in_another_shape() {
    let mut seen = BTreeSet::new();
    for (model, shapes) in models() {
        for name in one_of_each_kind(model, &shapes) {
            let is_new = seen.insert((kind(name), shapes[name].len()));
            for axis in 0..shapes[name].len() {
                let length = shapes[name][axis];
                for other in
                    [length + 1, 0, 2 * length].into_iter().take(if is_new { 3 } else { 1 })
                {
                    let mut wrong = shapes.clone();
                    wrong.get_mut(name).unwrap()[axis] = other;
                    let refused = check(&wrong);
                    // Sizes are read off the first tensor that tells; another one may not fit then.
                    let Err(Error::WrongShape { .. }) = refused else {
                        panic!("{model}: {name} with {other} on axis {axis}: {refused:?}")
                    };
                }
            }
        }
    }
}
