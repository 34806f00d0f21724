//! The CPU's kernels: plain functions over slices of `f32`, channels last. They know neither
//! layers nor candle. Which instructions run (AVX-512, AVX2, NEON) is found out when they run.

pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod packed;
pub(crate) mod winograd;

use std::{mem::MaybeUninit, sync::OnceLock};

use pulp::{Arch, Simd, WithSimd};

/// The best instruction set of this machine.
pub(crate) fn arch() -> Arch {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    *ARCH.get_or_init(Arch::new)
}

/// How many floats one vector holds here.
pub(crate) fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            S::F32_LANES
        }
    }
    static LANES: OnceLock<usize> = OnceLock::new();
    *LANES.get_or_init(|| arch().dispatch(Lanes))
}

/// An output that several threads write at places of their own.
#[derive(Clone, Copy)]
pub(crate) struct OutPtr {
    start: *mut f32,
    len: usize,
}

// SAFETY: each use names disjoint places (see `slice_mut`).
unsafe impl Send for OutPtr {}
unsafe impl Sync for OutPtr {}

impl OutPtr {
    pub fn new(out: &mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len() }
    }

    /// An output that nothing has been written to yet.
    pub fn uninit(out: &mut [MaybeUninit<f32>]) -> Self {
        Self { start: out.as_mut_ptr().cast(), len: out.len() }
    }

    /// The same output, counted from `at`.
    pub fn from(self, at: usize) -> Self {
        debug_assert!(at <= self.len);
        Self { start: self.start.wrapping_add(at), len: self.len - at }
    }

    /// # Safety
    /// Nobody writes these places meanwhile, and they have been written before.
    #[inline(always)]
    pub unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a [f32] {
        debug_assert!(at + len <= self.len);
        unsafe { std::slice::from_raw_parts(self.start.add(at), len) }
    }

    /// # Safety
    /// Nobody else reads or writes these places meanwhile.
    #[inline(always)]
    pub unsafe fn slice_mut<'a>(self, at: usize, len: usize) -> &'a mut [f32] {
        debug_assert!(at + len <= self.len);
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    /// Numbers in -1 ..= 1 that look random and are the same every time.
    pub(crate) fn numbers(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32)
            .map(|i| {
                let mixed = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
                ((mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32
                    - 1.0
            })
            .collect()
    }
}
