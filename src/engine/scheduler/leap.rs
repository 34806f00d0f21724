//! The step that all of DPM-Solver's kin are made of: the noise is followed exactly, only the
//! denoised image is taken to change slowly (Lu et al., 2022, arXiv:2211.01095, eq. 9 and 18).

use super::Level;

/// From one level to another while the denoised image stands still.
pub(super) struct Leap {
    /// In λ; infinite to where there is no noise.
    pub length: f64,
    pub keep: f64,
    /// What is added of the denoised image.
    pub gain: f64,
    pub noise: f64,
}

impl Leap {
    /// Along the probability-flow ODE.
    pub fn ode(from: Level, to: Level) -> Self {
        let length = to.lambda() - from.lambda();
        let gain = -to.signal * (-length).exp_m1();
        Self { length, keep: to.noise / from.noise, gain, noise: 0.0 }
    }

    /// Along the reverse diffusion SDE.
    pub fn sde(from: Level, to: Level) -> Self {
        let length = to.lambda() - from.lambda();
        let lost = -(-2.0 * length).exp_m1();
        Self {
            length,
            keep: to.noise / from.noise * (-length).exp(),
            gain: to.signal * lost,
            noise: to.noise * lost.sqrt(),
        }
    }
}
