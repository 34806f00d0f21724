//! A LoRA's tensors, sorted by the modules that they are for. No file is read.

use std::collections::{BTreeMap, HashMap};

use super::{
    Fault,
    adapter::{Adapter, Group},
    algorithm::{Tensor, malformed, product},
    keys::{Key, NotAKey, Part},
    scales::Scales,
};

/// A file's tensors, put together by the modules that they are for.
#[derive(Debug, Default, PartialEq)]
pub struct Sorted {
    /// By what the file calls the module.
    pub adapters: BTreeMap<String, Adapter>,
    /// Tensors that are no part of a LoRA.
    pub strangers: Vec<String>,
}

impl Sorted {
    /// # Errors
    /// Tensors that are named as a LoRA's are, but are not what they ought to be.
    pub fn of<'a>(
        tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
        metadata: &HashMap<String, String>,
    ) -> Result<Self, Fault> {
        let (mut groups, mut sorted) = (BTreeMap::<String, Group>::new(), Self::default());
        for (name, dims) in tensors {
            let Key { module, part } = match Key::of(name) {
                Ok(key) => key,
                Err(NotAKey::Unknown) => {
                    sorted.strangers.push(name.to_owned());
                    continue;
                }
                Err(NotAKey::Unsupported(algorithm)) => {
                    return Err(Fault::Unsupported { tensor: name.to_owned(), algorithm });
                }
            };
            let tensor = Tensor { name: name.to_owned(), dims: dims.to_vec() };
            if dims.contains(&0) || product(dims).is_none() {
                return Err(malformed(&tensor, "has no size that makes sense"));
            }
            if let Some(other) = groups.entry(module).or_default().insert(part, tensor.clone()) {
                return Err(malformed(&tensor, &format!("means the same as '{}'", other.name)));
            }
        }
        let scales = Scales::of(metadata);
        for (module, group) in groups {
            // Left over where a module was taken out of a file: it changes nothing.
            if group.keys().all(|part| *part == Part::Alpha) {
                continue;
            }
            let adapter = Adapter::of(group, |rank| scales.of_module(&module, rank))?;
            sorted.adapters.insert(module, adapter);
        }
        Ok(sorted)
    }
}
