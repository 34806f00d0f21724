//! A checkpoint that lacks anything is refused by that tensor's name, and none is read in another
//! shape: an image from a part of a model would be a lie.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
};

use diffused::{
    engine::{Prepared, checkpoint::Error},
    modes::{CheckpointRef, PipelineSpec},
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

type Shapes = BTreeMap<String, Vec<usize>>;

/// The shapes in the small checkpoint that comes with the source.
fn shipped() -> Shapes {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/tiny-sd15.safetensors");
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect()
}

/// What only training needs is not missed.
fn is_needed(name: &str) -> bool {
    ["model.", "first_stage_model.", "cond_stage_model."].iter().any(|part| name.starts_with(part))
        && !name.ends_with(".position_ids")
}

/// One tensor of each kind: of those whose names differ in numbers alone, the last.
fn one_of_each_kind(shapes: &Shapes) -> Vec<&String> {
    let kind = |name: &str| name.replace(|c: char| c.is_ascii_digit(), "");
    let kinds: BTreeMap<_, _> = shapes.keys().map(|name| (kind(name), name)).collect();
    kinds.into_values().collect()
}

/// Checks a file of these tensors. Their numbers are a hole in it: nobody looks at them.
fn check(shapes: &Shapes) -> Result<(), Error> {
    let mut end = 0;
    let entries = shapes.iter().map(|(name, shape)| {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        (name.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}))
    });
    let header = Value::from_iter(entries).to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    let checkpoint = CheckpointRef { name: "x".to_owned(), path };
    Prepared::open(&PipelineSpec::of(checkpoint)).map(drop)
}

#[test]
fn every_tensor_is_missed_by_its_name() {
    let shapes = shipped();
    check(&shapes).unwrap();
    for missing in one_of_each_kind(&shapes) {
        let mut rest = shapes.clone();
        rest.remove(missing);
        match check(&rest) {
            Ok(()) => assert!(!is_needed(missing), "{missing} is not missed"),
            Err(Error::MissingTensor { tensor, .. }) => assert_eq!(&tensor, missing),
            Err(other) => panic!("without {missing}: {other}"),
        }
    }
}

/// Nor is a whole layer taken for one that the model was built without.
#[test]
fn every_layer_is_missed() {
    let shapes = shipped();
    let layer = |name: &str| name.rsplit_once('.').map_or("", |(layer, _)| layer).to_owned();
    let needed = one_of_each_kind(&shapes).into_iter().filter(|name| is_needed(name));
    for missing in needed.map(|name| layer(name)).collect::<BTreeSet<_>>() {
        let mut rest = shapes.clone();
        rest.retain(|name, _| layer(name) != missing);
        let refused = check(&rest);
        let Err(Error::MissingTensor { .. } | Error::WrongShape { .. }) = refused else {
            panic!("without {missing}: {refused:?}")
        };
    }
}

#[test]
fn no_tensor_is_read_in_another_shape() {
    let shapes = shipped();
    for name in one_of_each_kind(&shapes).into_iter().filter(|name| is_needed(name)) {
        for axis in 0..shapes[name].len() {
            let length = shapes[name][axis];
            for other in [0, length + 1, 2 * length] {
                let mut wrong = shapes.clone();
                wrong.get_mut(name).unwrap()[axis] = other;
                let refused = check(&wrong);
                // Sizes are read off the first tensor that tells; another one may not fit it then.
                let Err(Error::WrongShape { .. }) = refused else {
                    panic!("{name} with {other} on axis {axis}: {refused:?}")
                };
            }
        }
    }
}
