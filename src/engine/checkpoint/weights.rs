//! What models read their weights through.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use safetensors::Dtype;

use super::{
    Error, Found, Held, Layers, Networks, TensorFile, View,
    layers::{Layer, LayerKey, Source},
    numbers::{float_bytes, to_f32, write_f32},
};
use crate::engine::{
    backend::Backend,
    lora::Patches,
    memory::{self, OutOfMemory},
};

/// One walk of a model's loading code over a checkpoint: first as a check, which looks at names
/// and shapes alone, then to load. So that a file is refused before anything else had to go.
pub struct Reading<'a> {
    backend: Backend,
    networks: &'a Networks,
    patches: &'a Patches,
    /// Nothing in a check.
    loading: Option<Loading<'a>>,
    /// Planned, made or taken over by this one.
    layers: RefCell<Layers>,
    /// Of the layer that is being made.
    making: RefCell<Making>,
    read: Cell<u64>,
    /// Of layers that were taken over.
    spared: Cell<u64>,
    merging: Cell<Duration>,
}

/// What a reading that is no check needs besides.
pub struct Loading<'a> {
    /// What the check has found.
    pub planned: &'a Layers,
    /// Made before, by other readings.
    pub kept: Layers,
    /// Hears how many bytes are there in all, and may end the load.
    pub on_bytes: &'a dyn Fn(u64) -> ControlFlow<()>,
}

/// What has been read of a layer.
#[derive(Default)]
struct Making {
    read: Vec<(Dtype, usize)>,
    /// Its numbers as f32, before they are packed.
    numbers_bytes: u64,
    /// What is needed beside them to read one of its tensors and merge LoRAs into it.
    besides_bytes: u64,
}

/// What a reading took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadingCost {
    /// The file's bytes that were read (or would be).
    pub bytes: u64,
    /// Time spent on merging LoRAs.
    pub merging: Duration,
}

impl<'a> Reading<'a> {
    /// Looks at names, shapes and types; layers made from it hold nothing.
    pub fn check(backend: Backend, networks: &'a Networks, patches: &'a Patches) -> Self {
        Self {
            backend,
            networks,
            patches,
            loading: None,
            layers: RefCell::default(),
            making: RefCell::default(),
            read: Cell::new(0),
            spared: Cell::new(0),
            merging: Cell::default(),
        }
    }

    /// Reads the tensors of all layers but those that are kept.
    pub fn load(
        backend: Backend,
        networks: &'a Networks,
        patches: &'a Patches,
        loading: Loading<'a>,
    ) -> Self {
        Self { loading: Some(loading), ..Self::check(backend, networks, patches) }
    }

    /// The layers that were planned, or made and taken over, and what that took.
    pub fn finish(self) -> (Layers, ReadingCost) {
        let cost = ReadingCost { bytes: self.read.get(), merging: self.merging.get() };
        (self.layers.into_inner(), cost)
    }

    /// The weights below a canonical name.
    pub fn weights(&self, name: &str) -> Weights<'_> {
        Weights { reading: self, name: name.to_owned() }
    }

    /// A layer that was made before; it counts as read.
    fn kept<T: Held>(&self, key: &LayerKey) -> Option<(Layer, Arc<T>)> {
        let kept = self.loading.as_ref()?.kept.get(key)?;
        let made: Arc<dyn Any + Send + Sync> = kept.layer.clone()?;
        let made = made.downcast().ok()?;
        self.spared.update(|spared| spared + kept.file_bytes());
        Some((kept.clone(), made))
    }

    /// Whether there is room for a layer and for its making.
    fn ask_for(&self, key: &LayerKey) -> Result<(), OutOfMemory> {
        let planned = self.loading.as_ref().and_then(|loading| loading.planned.get(key));
        planned.map_or(Ok(()), |layer| memory::check(layer.bytes + layer.working_bytes))
    }

    /// Notes a tensor that is read for the layer that is being made.
    fn note(&self, dtype: Dtype, bytes: usize, view: View, merging_bytes: u64) {
        self.read.update(|read| read + bytes as u64);
        let numbers = bytes / float_bytes(dtype).unwrap_or(1);
        let numbers_bytes = (numbers * size_of::<f32>()) as u64;
        // What is stored as columns is read before it is turned.
        let turning_bytes = if view == View::Transposed { numbers_bytes } else { 0 };
        let mut making = self.making.borrow_mut();
        making.read.push((dtype, bytes));
        making.numbers_bytes += numbers_bytes;
        making.besides_bytes = making.besides_bytes.max(turning_bytes).max(merging_bytes);
    }

    fn tell(&self) -> Result<(), Error> {
        let bytes = self.read.get() + self.spared.get();
        match self.loading.as_ref().map(|loading| (loading.on_bytes)(bytes)) {
            Some(ControlFlow::Break(())) => Err(Error::Cancelled),
            Some(ControlFlow::Continue(())) | None => Ok(()),
        }
    }
}

/// A tensor as it is in the file.
pub struct Stored<'a> {
    /// `F32`, `F16` or `BF16`.
    pub dtype: Dtype,
    pub bytes: &'a [u8],
}

/// The tensors below one canonical name.
pub struct Weights<'a> {
    reading: &'a Reading<'a>,
    name: String,
}

impl Weights<'_> {
    pub fn at(&self, name: &str) -> Self {
        Self { reading: self.reading, name: format!("{}.{name}", self.name) }
    }

    /// Whether the file has anything of this module.
    pub fn exists(&self) -> bool {
        self.reading.networks.has_module(&self.name)
    }

    /// The network that they belong to: `unet`, `vae`, …
    pub fn component(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// Where they are loaded to.
    pub fn backend(&self) -> Backend {
        self.reading.backend
    }

    /// Whether this is a walk that keeps nothing.
    pub fn is_check(&self) -> bool {
        self.reading.loading.is_none()
    }

    /// How many modules there are that are called by this name and a number, from 0 on.
    pub fn count(&self) -> usize {
        (0..).take_while(|i| self.at(&i.to_string()).exists()).count()
    }

    /// A tensor's dimensions, of which there is at least one.
    pub fn dims(&self, name: &str) -> Result<Vec<usize>, Error> {
        let Found { file, tensor, view, entry } = self.find(name)?;
        let dims = view.dims(&entry.dims);
        if dims.is_empty() || dims.contains(&0) {
            return Err(wrong_shape(file, tensor, &entry.dims, "no empty tensor"));
        }
        Ok(dims)
    }

    /// A tensor that must have these dimensions, as f32; in a check, nothing.
    pub fn load(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, Error> {
        if self.is_check() {
            return self.load_into(name, dims, &mut []).map(|()| Vec::new());
        }
        let mut numbers = vec![0.0; dims.iter().product()];
        self.load_into(name, dims, &mut numbers)?;
        Ok(numbers)
    }

    /// A tensor's bytes as they are in the file, where they are just what is meant: nothing is merged
    /// into them, and they are floats that every backend has. Else it must be loaded.
    pub fn stored(&self, name: &str, dims: &[usize]) -> Result<Option<Stored<'_>>, Error> {
        let (dtype, bytes, view) = self.bytes_of(name, dims)?;
        let is_common = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let is_changed = !self.reading.patches.key(&self.canonical(name)).is_empty();
        if view == View::Transposed || !is_common || is_changed {
            return Ok(None);
        }
        self.reading.note(dtype, bytes.len(), view, 0);
        self.reading.tell()?;
        Ok(Some(Stored { dtype, bytes }))
    }

    /// The same, to where there is room for as many numbers; in a check, there is none.
    pub fn load_into(&self, name: &str, dims: &[usize], numbers: &mut [f32]) -> Result<(), Error> {
        let (dtype, bytes, view) = self.bytes_of(name, dims)?;
        let merging_bytes = self.reading.patches.working_bytes(&self.canonical(name), dims);
        self.reading.note(dtype, bytes.len(), view, merging_bytes);
        if self.is_check() {
            return Ok(());
        }
        self.reading.tell()?;
        match view {
            View::Whole | View::Third(_) => write_f32(dtype, bytes, numbers),
            View::Transposed => transpose(&to_f32(dtype, bytes), dims[0], numbers),
        }
        let started = Instant::now();
        self.reading.patches.apply(&self.canonical(name), dims, numbers);
        self.reading.merging.update(|merging| merging + started.elapsed());
        Ok(())
    }

    /// Of a tensor that must have these dimensions: how it is stored, the bytes that are meant, and
    /// how they are to be seen.
    fn bytes_of(&self, name: &str, dims: &[usize]) -> Result<(Dtype, &[u8], View), Error> {
        let Found { file, tensor, view, entry } = self.find(name)?;
        if view.dims(&entry.dims) != dims || !view.divides(&entry.dims) {
            let expected = format!("{:?}", view.stored(dims));
            return Err(wrong_shape(file, tensor, &entry.dims, &expected));
        }
        let Some(size) = float_bytes(entry.dtype) else {
            let (file, dtype) = (file.name.clone(), format!("{:?}", entry.dtype));
            return Err(Error::WrongType { file, tensor, dtype });
        };
        let bytes = file.bytes(entry);
        let bytes = match view {
            View::Whole | View::Transposed => bytes,
            View::Third(i) => {
                let len = dims.iter().product::<usize>() * size;
                &bytes[i * len..][..len]
            }
        };
        Ok((entry.dtype, bytes, view))
    }

    /// What `make` makes of these tensors of these modules, or what it made of the very same ones
    /// for another pipeline.
    pub fn share<T: Held>(
        modules: &[&Self],
        tensors: &[&str],
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Arc<T>, Error> {
        let Some(first) = modules.first() else { return make().map(Arc::new) };
        let sources = modules.iter().flat_map(|w| tensors.iter().map(|name| w.source(name)));
        let key = LayerKey::of::<T>(&first.name, sources.collect());
        let reading = first.reading;
        if let Some((kept, made)) = reading.kept(&key) {
            reading.layers.borrow_mut().insert(key, kept);
            reading.tell()?;
            return Ok(made);
        }
        reading.ask_for(&key)?;
        reading.making.take();
        let made = Arc::new(make()?);
        let Making { read, numbers_bytes, besides_bytes } = reading.making.take();
        let working_bytes = numbers_bytes + besides_bytes;
        let layer = (!first.is_check()).then(|| made.clone() as Arc<dyn Held>);
        let layer = Layer { layer, bytes: made.bytes(), working_bytes, read };
        reading.layers.borrow_mut().insert(key, layer);
        Ok(made)
    }

    /// Where a tensor comes from and what is done to it; nothing if it is not there.
    fn source(&self, name: &str) -> Option<Source> {
        let Found { file, tensor, .. } = self.find(name).ok()?;
        let patches = self.reading.patches.key(&self.canonical(name));
        Some(Source { file: file.identity.clone(), tensor, patches })
    }

    fn canonical(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// Refuses a tensor whose first dimension is not a multiple of `of`.
    pub fn expect_multiple_of(&self, name: &str, of: usize) -> Result<(), Error> {
        let dims = self.dims(name)?;
        if dims[0] % of == 0 { Ok(()) } else { self.refuse(name, &format!("a multiple of {of}")) }
    }

    /// An error that says what shape belongs where this tensor is.
    pub fn refuse<T>(&self, name: &str, expected: &str) -> Result<T, Error> {
        let Found { file, tensor, entry, .. } = self.find(name)?;
        Err(wrong_shape(file, tensor, &entry.dims, expected))
    }

    fn find(&self, name: &str) -> Result<Found<'_>, Error> {
        self.reading.networks.find(&self.canonical(name))
    }
}

fn wrong_shape(file: &TensorFile, tensor: String, found: &[usize], expected: &str) -> Error {
    let (file, found) = (file.name.clone(), found.to_vec());
    Error::WrongShape { file, tensor, found, expected: expected.to_owned() }
}

/// A `[k, n]` matrix as `[n, k]`.
fn transpose(numbers: &[f32], n: usize, out: &mut [f32]) {
    let k = numbers.len() / n.max(1);
    for (row, out) in out.chunks_exact_mut(k.max(1)).enumerate() {
        out.iter_mut().enumerate().for_each(|(column, x)| *x = numbers[column * n + row]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed() {
        let mut out = [0.0; 6];
        transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, &mut out);
        assert_eq!(out, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
