//! Computations on a card as CUDA graphs: one for each combination of shapes.
//!
//! The first time runs as it always does, and lets libtorch choose its algorithms; the second is
//! recorded; from then on it is repeated. A recording reads its inputs from memory of its own, to which
//! they are copied. Where something cannot be recorded, it goes on as without.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tch::{Device, Tensor as Torch};

use super::{Array, cuda::Graph};
use crate::engine::nn::{Error, Result, Tensor, repeated::Compute};

/// How many are kept of one network: sizes and batches that take turns. Each holds its activations.
const KEPT: usize = 4;

#[derive(Default)]
pub struct Recordings(Mutex<State>);

#[derive(Default)]
struct State {
    /// The one that was used last is the last.
    known: VecDeque<Known>,
    /// Something could not be recorded: it is not tried again.
    failed: bool,
}

/// A combination of shapes that has been seen.
struct Known {
    shapes: Vec<Vec<usize>>,
    recording: Option<Recording>,
}

struct Recording {
    repeat: Repeat,
    varying: Vec<Torch>,
    fixed: Vec<Torch>,
    /// The fixed inputs that were copied last; held, so that nothing else gets their place.
    copied: Vec<Tensor>,
    output: Array,
}

enum Repeat {
    Graph(Graph),
    /// By computing it again on the same memory: what can be seen of it without a card.
    #[cfg(test)]
    Again,
}

/// Graphs are for cards; `DIFFUSED_CUDA_GRAPHS=off` does without, to compare.
fn is_wanted(device: Device) -> bool {
    let is_off = || std::env::var_os("DIFFUSED_CUDA_GRAPHS").is_some_and(|value| value == "off");
    device.is_cuda() && !is_off()
}

impl Recordings {
    /// `None`: it is to be computed as always.
    pub fn run(
        &self,
        varying: &[&Tensor],
        fixed: &[Tensor],
        compute: Compute<'_>,
    ) -> Result<Option<Tensor>> {
        // The fixed inputs come from layers, and are where those are.
        let Some(device) = fixed.iter().find_map(Tensor::on_torch).map(Array::device) else {
            return Ok(None);
        };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failed || !is_wanted(device) {
            return Ok(None);
        }
        let repeated = state.run(device, varying, fixed, |varying, fixed| {
            let (graph, output) = Graph::record(|| compute(varying, fixed))?;
            Ok((Repeat::Graph(graph), output))
        });
        match repeated {
            Err(error @ Error::OutOfMemory(_)) => {
                // What is recorded holds memory: without, there may be room.
                state.known.clear();
                Err(error)
            }
            Err(error) => {
                tracing::warn!("drawing without CUDA graphs from now on: {error}");
                *state = State { failed: true, ..State::default() };
                Ok(None)
            }
            done => done,
        }
    }
}

impl State {
    fn run(
        &mut self,
        device: Device,
        varying: &[&Tensor],
        fixed: &[Tensor],
        record: impl FnOnce(&[Tensor], &[Tensor]) -> Result<(Repeat, Tensor)>,
    ) -> Result<Option<Tensor>> {
        let inputs = varying.iter().copied().chain(fixed);
        let shapes: Vec<_> = inputs.map(|input| input.dims().to_vec()).collect();
        let found = self.known.iter().position(|known| known.shapes == shapes);
        let Some(mut known) = found.and_then(|at| self.known.remove(at)) else {
            self.known.push_back(Known { shapes, recording: None });
            if self.known.len() > KEPT {
                self.known.pop_front();
            }
            return Ok(None);
        };
        let recording = match &mut known.recording {
            Some(recording) => recording,
            none => none.insert(Recording::of(device, varying, fixed, record)?),
        };
        let output = recording.repeat(varying, fixed)?;
        self.known.push_back(known);
        Ok(Some(output))
    }
}

/// Memory of one's own with the same numbers.
fn copy(input: &Tensor, device: Device) -> Result<Torch> {
    input.to_torch(device)?.copied()
}

fn handed(owned: &[Torch]) -> Vec<Tensor> {
    owned.iter().map(|tensor| Array::from(tensor.shallow_clone()).into()).collect()
}

impl Recording {
    fn of(
        device: Device,
        varying: &[&Tensor],
        fixed: &[Tensor],
        record: impl FnOnce(&[Tensor], &[Tensor]) -> Result<(Repeat, Tensor)>,
    ) -> Result<Self> {
        let copied = fixed.to_vec();
        let varying =
            varying.iter().map(|input| copy(input, device)).collect::<Result<Vec<_>>>()?;
        let fixed = fixed.iter().map(|input| copy(input, device)).collect::<Result<Vec<_>>>()?;
        let (repeat, output) = record(&handed(&varying), &handed(&fixed))?;
        Ok(Self { repeat, varying, fixed, copied, output: output.to_torch(device)? })
    }

    fn repeat(&mut self, varying: &[&Tensor], fixed: &[Tensor]) -> Result<Tensor> {
        for (own, given) in self.varying.iter_mut().zip(varying) {
            own.f_copy_(given.to_torch(own.device())?.tensor())?;
        }
        let is_the_same = |(a, b): (&Tensor, &Tensor)| match (a.on_torch(), b.on_torch()) {
            (Some(a), Some(b)) => a.tensor().data_ptr() == b.tensor().data_ptr(),
            _ => false,
        };
        if !self.copied.iter().zip(fixed).all(is_the_same) {
            for (own, given) in self.fixed.iter_mut().zip(fixed) {
                own.f_copy_(given.to_torch(own.device())?.tensor())?;
            }
            self.copied = fixed.to_vec();
        }
        match &self.repeat {
            Repeat::Graph(graph) => graph.replay()?,
            #[cfg(test)]
            Repeat::Again => tests::again(self)?,
        }
        // The next time writes over it.
        Ok(Array::from(self.output.copied()?).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x·a + t.
    fn compute(varying: &[Tensor], fixed: &[Tensor]) -> Result<Tensor> {
        varying[0].mul(&fixed[0])?.add(&varying[1])
    }

    pub fn again(recording: &Recording) -> Result<()> {
        let output = compute(&handed(&recording.varying), &handed(&recording.fixed))?;
        let mut own = recording.output.tensor().shallow_clone();
        own.f_copy_(output.to_torch(own.device())?.tensor())?;
        Ok(())
    }

    fn tensor(numbers: &[f32]) -> Tensor {
        Array::of(numbers, &[numbers.len()], Device::Cpu).unwrap().into()
    }

    #[test]
    fn a_recording_sees_what_it_is_given_and_keeps_what_it_gave() {
        let mut state = State::default();
        let mut recorded = 0;
        let mut run = |x: &[f32], a: &Tensor, t: &[f32]| {
            let (x, t) = (tensor(x), tensor(t));
            let record = |varying: &[Tensor], fixed: &[Tensor]| {
                recorded += 1;
                Ok((Repeat::Again, compute(varying, fixed)?))
            };
            let fixed = std::slice::from_ref(a);
            let found = state.run(Device::Cpu, &[&x, &t], fixed, record).unwrap();
            assert!(state.known.len() <= KEPT);
            (found, recorded)
        };
        let numbers = |found: &Option<Tensor>| found.as_ref().map(|it| it.to_vec().unwrap());
        let (a, b) = (tensor(&[2.0, 3.0]), tensor(&[-1.0, 5.0]));
        // Seen once, then recorded, then repeated.
        assert_eq!(numbers(&run(&[1.0, 1.0], &a, &[0.0, 0.0]).0), None);
        let (first, count) = run(&[1.0, 1.0], &a, &[0.5, 0.5]);
        assert_eq!((numbers(&first), count), (Some(vec![2.5, 3.5]), 1));
        let (second, count) = run(&[2.0, 0.0], &a, &[0.0, 1.0]);
        assert_eq!((numbers(&second), count), (Some(vec![4.0, 1.0]), 1));
        // Other fixed inputs of the same shape: the same recording.
        let (third, count) = run(&[2.0, 1.0], &b, &[0.0, 0.0]);
        assert_eq!((numbers(&third), count), (Some(vec![-2.0, 5.0]), 1));
        assert_eq!(numbers(&run(&[1.0, 1.0], &a, &[0.0, 0.0]).0), Some(vec![2.0, 3.0]));
        assert_eq!(numbers(&second), Some(vec![4.0, 1.0]));
        // Other shapes are something else, and those that were used last are kept.
        for len in 3..3 + KEPT {
            let x = vec![1.0; len];
            assert_eq!(numbers(&run(&x, &tensor(&x), &x).0), None);
            assert_eq!(numbers(&run(&x, &tensor(&x), &x).0), Some(vec![2.0; len]));
        }
        assert_eq!(numbers(&run(&[1.0, 1.0], &a, &[0.0, 0.0]).0), None, "it was let go");
    }
}
