//! A computation that is the same many times over: where the device can record it (a card, as a CUDA
//! graph), it is told once what to do, and repeats it by itself.

#[cfg(feature = "libtorch")]
use super::torch::Recordings;
use super::{Result, Tensor};

/// From inputs that vary from time to time, and such that are mostly fixed, to an output.
pub type Compute<'a> = &'a dyn Fn(&[Tensor], &[Tensor]) -> Result<Tensor>;

/// What is remembered of a computation. It must be asked for the same one always; shapes may differ.
#[derive(Default)]
pub struct Repeated {
    #[cfg(feature = "libtorch")]
    recordings: Recordings,
}

impl Repeated {
    /// What `compute` says for these inputs.
    pub fn run(
        &self,
        varying: &[&Tensor],
        fixed: &[Tensor],
        compute: Compute<'_>,
    ) -> Result<Tensor> {
        #[cfg(feature = "libtorch")]
        if let Some(repeated) = self.recordings.run(varying, fixed, compute)? {
            return Ok(repeated);
        }
        let varying: Vec<_> = varying.iter().map(|x| (*x).clone()).collect();
        compute(&varying, fixed)
    }
}
