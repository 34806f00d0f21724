//! Files of tensors whose numbers nobody looks at, and images of those with numbers.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write,
    ops::ControlFlow,
    path::Path,
};

use diffused::{
    engine::{Prepared, checkpoint::Error},
    modes::{CheckpointRef, PipelineSpec, SchedulerId, Size},
    request::GenerateRequest,
};
use serde_json::{Value, json};

pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Writes a header of fp16 tensors; their numbers are a hole in the file.
pub fn write_shapes(path: &Path, shapes: &Shapes, metadata: &HashMap<&str, &str>) {
    let mut end = 0;
    let entries = shapes.iter().map(|(name, shape)| {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        (name.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}))
    });
    let mut header = Value::from_iter(entries);
    header["__metadata__"] = json!(metadata);
    let header = header.to_string();
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

/// A pipeline of the file or folder, which the user calls by its last name.
pub fn spec(path: &Path) -> PipelineSpec {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    PipelineSpec::of(CheckpointRef { name, path: path.to_owned() })
}

pub fn open(path: &Path) -> Result<Prepared, Error> {
    Prepared::open(&spec(path), &mut Default::default())
}

/// What it says of the file or folder that it refuses.
#[track_caller]
pub fn refused(path: &Path) -> String {
    match open(path) {
        Ok(_) => panic!("{} is not refused", path.display()),
        Err(error) => error.to_string(),
    }
}

/// An image that it draws, for comparison with another one.
pub fn draw(path: &Path) -> Vec<u8> {
    let pipeline = open(path).unwrap().load(Default::default(), &|_| ()).unwrap();
    let request = GenerateRequest {
        size: Size::new(64, 64).unwrap(),
        steps: 2,
        guidance_scale: 3.0,
        seed: 7,
        // One that none of these files asks for.
        scheduler: Some(SchedulerId::EulerA),
        ..GenerateRequest::of("tiny", "a red fox in the snow")
    };
    pipeline.draw(&request, &mut |_| ControlFlow::Continue(())).unwrap().images.remove(0)
}
