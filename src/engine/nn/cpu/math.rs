//! Elementary functions over vectors: `exp`, `erf` and what the activations make of them.

use pulp::Simd;

/// e^x, within 2 ulp (the polynomial of Cephes' `expf`); 0 below -87.3.
#[inline(always)]
pub(crate) fn exp_v<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = simd.min_f32s(x, simd.splat_f32s(88.0));
    let tiny = simd.less_than_f32s(x, simd.splat_f32s(-87.3));
    let x = simd.max_f32s(x, simd.splat_f32s(-87.3));
    // Adding 1.5·2^23 rounds to an integer that then stands in the low bits.
    let magic = simd.splat_f32s(12_582_912.0);
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), magic);
    let n = simd.sub_f32s(shifted, magic);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(2.121_944_4e-4), r);
    let mut p = simd.splat_f32s(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(c));
    }
    let r2 = simd.mul_f32s(r, r);
    let p = simd.add_f32s(simd.mul_add_e_f32s(p, r2, r), simd.splat_f32s(1.0));
    // 2^n: the integer moved to the exponent, with its bias.
    let bits = simd.transmute_u32s_f32s(shifted);
    let bias = simd.splat_u32s(127u32.wrapping_sub(0x4b40_0000));
    let exponent = simd.wrapping_dyn_shl_u32s(simd.add_u32s(bits, bias), simd.splat_u32s(23));
    let result = simd.mul_f32s(p, simd.transmute_f32s_u32s(exponent));
    simd.select_f32s(tiny, simd.splat_f32s(0.0), result)
}

/// The error function, within 3e-7 (the rational approximation of Eigen's and XLA's `erf`).
#[inline(always)]
pub(crate) fn erf_v<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = simd.min_f32s(simd.max_f32s(x, simd.splat_f32s(-4.0)), simd.splat_f32s(4.0));
    let x2 = simd.mul_f32s(x, x);
    let mut p = simd.splat_f32s(-2.726_142_3e-10);
    for c in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_4e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        p = simd.mul_add_e_f32s(p, x2, simd.splat_f32s(c));
    }
    let mut q = simd.splat_f32s(-1.456_607_2e-5);
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = simd.mul_add_e_f32s(q, x2, simd.splat_f32s(c));
    }
    simd.div_f32s(simd.mul_f32s(x, p), q)
}

/// x·Φ(x), with the exact error function (PyTorch's `gelu`, not its tanh form).
#[inline(always)]
pub(crate) fn gelu_v<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let half = simd.splat_f32s(0.5);
    let erf = erf_v(simd, simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2)));
    simd.mul_f32s(x, simd.mul_add_e_f32s(half, erf, half))
}

/// x·sigmoid(a·x): SiLU for a = 1, CLIP's "quick GELU" for a = 1.702.
#[inline(always)]
pub(crate) fn swish_v<S: Simd>(simd: S, x: S::f32s, a: f32) -> S::f32s {
    let e = exp_v(simd, simd.mul_f32s(x, simd.splat_f32s(-a)));
    simd.div_f32s(x, simd.add_f32s(simd.splat_f32s(1.0), e))
}

#[cfg(test)]
pub(crate) mod tests {
    use pulp::WithSimd;

    use super::*;
    use crate::engine::nn::cpu::arch;

    /// Maclaurin's series, good for |x| < 5.
    pub(crate) fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        (sum * 2.0 / std::f64::consts::PI.sqrt()).clamp(-1.0, 1.0)
    }

    struct At(fn(f64) -> f64, [f32; 2]);

    impl WithSimd for At {
        type Output = ();
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(expected, [from, to]) = self;
            for i in 0..=20_000u16 {
                let x = from + (to - from) * f32::from(i) / 20_000.0;
                let v = simd.splat_f32s(x);
                let found = match expected(0.5) {
                    e if e == 0.5f64.exp() => exp_v(simd, v),
                    e if e == erf(0.5) => erf_v(simd, v),
                    e if e == gelu(0.5) => gelu_v(simd, v),
                    _ => swish_v(simd, v, 1.702),
                };
                let found = f64::from(simd.reduce_max_f32s(found));
                let expected = expected(f64::from(x));
                let error = (found - expected).abs();
                // gelu multiplies erf's error by x/2.
                let scale = f64::from(x.abs()).min(6.0).max(expected.abs()).max(1.0);
                assert!(error <= 4e-7 * scale, "{found} is not {expected} at {x}");
            }
        }
    }

    fn gelu(x: f64) -> f64 {
        0.5 * x * (1.0 + erf(x / 2f64.sqrt()))
    }

    fn quick_gelu(x: f64) -> f64 {
        x / (1.0 + (-1.702 * x).exp())
    }

    #[test]
    fn equal_the_functions_they_are_named_after() {
        arch().dispatch(At(f64::exp, [-100.0, 80.0]));
        arch().dispatch(At(erf, [-5.0, 5.0]));
        arch().dispatch(At(gelu, [-6.0, 6.0]));
        arch().dispatch(At(quick_gelu, [-40.0, 40.0]));
    }
}
