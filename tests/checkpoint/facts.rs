//! What a single file says of itself, in its markers, its title and its metadata.

use std::{collections::HashMap, path::Path};

use diffused::{
    engine::{
        Prepared,
        checkpoint::{Facts, Family},
    },
    modes::{PipelineSpec, Prediction, SchedulerId, Spacing},
};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};

use crate::{
    recipe::Recipe,
    support::{Shapes, open, refused, spec, write_shapes},
};

/// The tensors of a tiny model, and some more.
fn shapes(model: &str, markers: &[&str]) -> Shapes {
    let mut shapes = Recipe::of(model).single_file_shapes();
    shapes.extend(markers.iter().map(|marker| ((*marker).to_owned(), Vec::new())));
    shapes
}

fn facts(file: &str, shapes: &Shapes, metadata: &HashMap<&str, &str>) -> Facts {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    write_shapes(&path, shapes, metadata);
    open(&path).unwrap().facts().clone()
}

#[test]
fn a_family_is_told_by_its_names() {
    for (model, family, scheduler) in [
        ("small", Family::Sd1, SchedulerId::Ddim),
        ("inpaint", Family::Sd1, SchedulerId::Ddim),
        ("sd2", Family::Sd2, SchedulerId::Ddim),
        ("sdxl", Family::Sdxl, SchedulerId::Euler),
        ("ssd", Family::Sdxl, SchedulerId::Euler),
        ("refiner", Family::SdxlRefiner, SchedulerId::Euler),
    ] {
        let found = facts("x.safetensors", &shapes(model, &[]), &HashMap::new());
        let prediction = if model == "sd2" { Prediction::V } else { Prediction::Epsilon };
        assert_eq!(found, Facts { prediction, ..Facts::of(family) }, "{model}");
        assert_eq!(found.default_scheduler(), scheduler, "{model}");
    }
}

#[test]
fn what_a_model_predicts_is_said_by_a_marker_or_by_the_metadata() {
    use Prediction::{Epsilon, V};
    for (model, markers, said, expected) in [
        ("small", &[][..], None, (Epsilon, false)),
        ("small", &["v_pred"], None, (V, false)),
        ("sdxl", &["v_pred"], None, (V, false)),
        ("sdxl", &["v_pred", "ztsnr"], None, (V, true)),
        ("sdxl", &["ztsnr"], None, (Epsilon, true)),
        ("sdxl", &[], Some("v"), (V, false)),
        ("sdxl", &["v_pred"], Some("epsilon"), (Epsilon, false)),
        ("sdxl", &["v_pred"], Some("other"), (V, false)),
        ("sd2", &[], None, (V, false)),
        ("sd2", &[], Some("epsilon"), (Epsilon, false)),
    ] {
        let metadata = said.map(|said| ("modelspec.prediction_type", said));
        let metadata = metadata.into_iter().collect();
        let found = facts("x.safetensors", &shapes(model, markers), &metadata);
        let what = format!("{model} {markers:?} {said:?}");
        assert_eq!((found.prediction, found.zero_terminal_snr), expected, "{what}");
        let spacing = if expected.1 { Spacing::Trailing } else { Spacing::Leading };
        assert_eq!(found.default_spacing(), spacing, "{what}");
    }
}

#[test]
fn a_modes_prediction_is_more_than_what_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let said = HashMap::from([("modelspec.prediction_type", "v")]);
    write_shapes(&path, &shapes("sdxl", &["v_pred"]), &said);
    for prediction in [Prediction::Epsilon, Prediction::V] {
        let spec = PipelineSpec { prediction: Some(prediction), ..spec(&path) };
        assert_eq!(
            Prepared::open(&spec, &mut Default::default()).unwrap().facts().prediction,
            prediction
        );
    }
}

/// As `_legacy_load_scheduler` of the reference does.
#[test]
fn sd2_is_told_by_how_long_it_was_trained() {
    let step = |step: i64| Some((Dtype::I64, step.to_le_bytes().to_vec()));
    let inpainting = |shapes: &mut Shapes| {
        shapes.get_mut("model.diffusion_model.input_blocks.0.0.weight").unwrap()[1] = 9;
    };
    for (step, inpaints, expected) in [
        (None, false, Prediction::V),
        (step(875_000), false, Prediction::Epsilon),
        (step(110_000), false, Prediction::V),
        (Some((Dtype::I32, 875_000i32.to_le_bytes().to_vec())), false, Prediction::Epsilon),
        (Some((Dtype::F32, 875_000f32.to_le_bytes().to_vec())), false, Prediction::Epsilon),
        (None, true, Prediction::Epsilon),
        (step(460_000), true, Prediction::Epsilon),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let mut shapes = shapes("sd2", &[]);
        if inpaints {
            inpainting(&mut shapes);
        }
        write_with(&path, &shapes, step.as_ref());
        let found = open(&path).unwrap().facts().prediction;
        assert_eq!(found, expected, "{step:?}, inpaints: {inpaints}");
    }
}

/// Writes tensors of zeros, and how long the model was trained.
fn write_with(path: &Path, shapes: &Shapes, step: Option<&(Dtype, Vec<u8>)>) {
    let largest = shapes.values().map(|shape| shape.iter().product::<usize>()).max().unwrap();
    let zeros = vec![0; 2 * largest];
    let views = shapes.iter().map(|(name, shape)| {
        let bytes = &zeros[..2 * shape.iter().product::<usize>()];
        (name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap())
    });
    let step = step
        .map(|(dtype, bytes)| ("global_step", TensorView::new(*dtype, Vec::new(), bytes).unwrap()));
    serialize_to_file(views.chain(step), None, path).unwrap();
}

#[test]
fn lcm_is_told_by_name_title_or_shape() {
    let title = |title| HashMap::from([("modelspec.title", title)]);
    for (model, file, metadata, expected) in [
        ("small", "x.safetensors", HashMap::new(), false),
        ("small", "dream_LCM-v7.safetensors", HashMap::new(), true),
        ("sdxl", "x.safetensors", title("SDXL (lcm)"), true),
        ("sdxl", "x.safetensors", title("Helcmet"), false),
        ("lcm", "x.safetensors", HashMap::new(), true),
    ] {
        let found = facts(file, &shapes(model, &[]), &metadata);
        let what = format!("{model} {file} {metadata:?}");
        assert_eq!(found.is_lcm, expected, "{what}");
        assert_eq!(found.default_scheduler() == SchedulerId::Lcm, expected, "{what}");
    }
}

#[test]
fn what_is_no_stable_diffusion_is_refused_by_its_name() {
    let of = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), vec![1])).collect();
    let lora = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight";
    let drawn_with = "SD1.x, SD2.x and SDXL are drawn with";
    for (shapes, says) in [
        (shapes("sdxl", &["edm_mean", "edm_std"]), "an SDXL model of another noise schedule (EDM)"),
        (shapes("sdxl", &["edm_vpred.sigma_max"]), "an SDXL model of another noise schedule (EDM)"),
        (of(&["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"]), "an SD3 model"),
        (of(&["double_blocks.0.img_attn.qkv.weight"]), "a Flux model"),
        (of(&["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"]), "a Flux model"),
        (of(&[lora]), "a LoRA, not a checkpoint; name it under 'loras'"),
        (of(&["unet.conv_in.lora.down.weight"]), "a LoRA, not a checkpoint"),
        (of(&["unet.conv_in.lora_A.weight"]), "a LoRA, not a checkpoint"),
        (of(&["model.diffusion_model.out.0.weight"]), "without its text encoder"),
        (of(&["weight"]), "no Stable Diffusion model that is known here"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write_shapes(&path, &shapes, &HashMap::new());
        let error = refused(&path);
        assert!(error.starts_with("x.safetensors: ") && error.contains(says), "{error}");
        let is_foreign = ["EDM", "SD3", "Flux"].iter().any(|name| says.contains(name));
        assert_eq!(error.contains(drawn_with), is_foreign, "{error}");
    }
}
