//! From a checkpoint's tensors to libtorch's.

use rayon::prelude::*;
use safetensors::Dtype;
use tch::{Device, Kind, Tensor as Torch};

use super::{account, array::sizes, cuda};
use crate::engine::{
    backend::{self, Float},
    checkpoint::{self, Held, Home, Stored, Weights},
    nn,
};

type Load<T> = Result<T, checkpoint::Error>;

/// Where a layer's numbers are, and how they are stored.
#[derive(Clone, Copy)]
pub struct On {
    pub device: Device,
    pub kind: Kind,
    element_bytes: usize,
}

impl On {
    pub fn new(torch: backend::Torch, component: &str) -> Self {
        account::begin();
        let device = torch.card.map_or(Device::Cpu, |card| Device::Cuda(card as usize));
        let float = torch.floats.of(component);
        Self { device, kind: kind(float), element_bytes: float.bytes() }
    }
}

fn kind(float: Float) -> Kind {
    match float {
        Float::Fp32 => Kind::Float,
        Float::Bf16 => Kind::BFloat16,
        Float::Fp16 => Kind::Half,
    }
}

/// Numbers of a layer; of one that is only planned, how much they would take.
pub struct Weight {
    tensor: Option<Torch>,
    bytes: u64,
    /// Where it was made for.
    device: Device,
}

// SAFETY: it is never written to, and libtorch's tensors may be read by several threads at a time.
unsafe impl Sync for Weight {}

impl Held for Weight {
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Weight {
    /// A tensor of these dimensions; of several modules, one behind the other. In a check, nothing.
    pub fn load(on: On, parts: &[&Weights<'_>], name: &str, dims: &[usize]) -> Load<Self> {
        let bytes = (parts.len() * dims.iter().product::<usize>() * on.element_bytes) as u64;
        let loaded = parts.iter().map(|w| part(on, w, name, dims)).collect::<Load<Vec<_>>>()?;
        let mut loaded: Vec<_> = loaded.into_iter().flatten().collect();
        let tensor = match loaded.len() {
            0 => None,
            1 => loaded.pop(),
            _ => Some(Torch::f_cat(&loaded, 0).map_err(failed)?),
        };
        Ok(Self { tensor, bytes, device: on.device })
    }

    /// With its bytes in another order.
    pub fn turned(self, turn: impl FnOnce(Torch) -> Result<Torch, tch::TchError>) -> Load<Self> {
        let tensor = self.tensor.map(turn).transpose().map_err(failed)?;
        Ok(Self { tensor, ..self })
    }

    /// The same numbers, laid out alike, in the host's memory (where the card reads it by itself), or
    /// back on the device.
    pub fn moved(&self, to: Home) -> Load<Self> {
        let moved = |tensor: &Torch| match to {
            Home::Host => pinned_copy(tensor, self.bytes),
            Home::Device => tensor.f_to_device_(self.device, tensor.kind(), true, true),
        };
        let tensor = self.tensor.as_ref().map(moved).transpose().map_err(failed)?;
        Ok(Self { tensor, ..*self })
    }

    pub fn get(&self) -> nn::Result<&Torch> {
        let planned = || nn::Error::Backend("a layer that was only planned is run".to_owned());
        self.tensor.as_ref().ok_or_else(planned)
    }
}

fn failed(error: tch::TchError) -> checkpoint::Error {
    match nn::Error::from(error) {
        nn::Error::OutOfMemory(error) => error.into(),
        nn::Error::Backend(what) => checkpoint::Error::Engine(what),
    }
}

fn pinned_copy(tensor: &Torch, bytes: u64) -> Result<Torch, tch::TchError> {
    // In the order of its memory: the permutation in which it lies without gaps.
    let (dims, strides) = (tensor.size(), tensor.stride());
    let mut order: Vec<i64> = (0..dims.len() as i64).collect();
    order.sort_by_key(|dim| std::cmp::Reverse(strides[*dim as usize]));
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, dim)| back[*dim as usize] = place as i64);
    let laid: Vec<i64> = order.iter().map(|dim| dims[*dim as usize]).collect();
    let room = cuda::pinned(bytes as usize).map_err(torch_error)?;
    let mut copy = room.f_view_dtype(tensor.kind())?.f_reshape(laid)?;
    copy.f_copy_(&tensor.f_permute(order)?)?;
    copy.f_permute(back)
}

/// What one module has; in a check, nothing.
fn part(on: On, w: &Weights<'_>, name: &str, dims: &[usize]) -> Load<Option<Torch>> {
    // A matrix may be stored as a 1×1 convolution.
    let matrix = match (dims, w.dims(name)?.len()) {
        ([n, k], 4) => Some([*n, *k, 1, 1]),
        _ => None,
    };
    let found = matrix.as_ref().map_or(dims, |dims| &dims[..]);
    if w.is_check() {
        return w.load(name, found).map(|_| None);
    }
    let tensor = match w.stored(name, found)? {
        Some(stored) => of_stored(on, stored, dims),
        None => of_numbers(on, &w.load(name, found)?, dims),
    };
    tensor.map(Some).map_err(failed)
}

/// Of bytes that are used as they are in the file: they go to the device first, and are converted
/// there.
fn of_stored(on: On, stored: Stored<'_>, dims: &[usize]) -> Result<Torch, tch::TchError> {
    let kind = match stored.dtype {
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        _ => Kind::Float,
    };
    // SAFETY: the bytes are as many as the dimensions say, and are there until this returns, by when
    // they have been copied. (They may be aligned to nothing; x86 and ARM read them all the same.)
    let there =
        unsafe { Torch::f_from_blob(stored.bytes.as_ptr(), &sizes(dims), &[], kind, Device::Cpu) }?;
    match on.device {
        Device::Cpu => there.f_to_device_(Device::Cpu, on.kind, false, true),
        // By way of memory that the card reads by itself, while the next tensor is read from the file.
        card => {
            let staged = cuda::pinned(stored.bytes.len()).map_err(torch_error)?;
            fill(&staged, stored.bytes);
            let staged = staged.f_view_dtype(kind)?.f_reshape(sizes(dims))?;
            staged.f_to_device_(card, kind, true, false)?.f_to_kind(on.kind)
        }
    }
}

/// Copies bytes of a mapped file, in parallel: the kernel reads the file ahead of each thread.
fn fill(staged: &Torch, bytes: &[u8]) {
    const PIECE: usize = 1 << 20;
    // SAFETY: the tensor is of as many bytes, in the host's memory, and nobody else has it.
    let room =
        unsafe { std::slice::from_raw_parts_mut(staged.data_ptr().cast::<u8>(), bytes.len()) };
    room.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE)).for_each(|(to, from)| {
        to.copy_from_slice(from);
    });
}

fn torch_error(error: nn::Error) -> tch::TchError {
    tch::TchError::Torch(error.to_string())
}

fn of_numbers(on: On, numbers: &[f32], dims: &[usize]) -> Result<Torch, tch::TchError> {
    let there = Torch::f_from_slice(numbers)?.f_reshape(sizes(dims))?;
    match on.device {
        Device::Cpu => there.f_to_kind(on.kind),
        // Halved here: that is quicker than to send twice as much.
        card => there.f_to_kind(on.kind)?.f_to(card),
    }
}
