//! How much noise the models were trained with at each timestep.

use super::{
    Level, TRAIN_STEPS,
    plan::Call,
    timesteps::{karras, nearest_timestep},
};

/// What the reference takes for nothing, where it divides by it: the smallest number of f16.
const ALMOST_ZERO: f32 = 1.0 / 16_777_216.0;

/// How much of the image is left at each training step: ᾱ, falling from almost 1 to almost 0.
pub(super) struct NoiseSchedule {
    /// Rounded to f32 where the reference is.
    alphas_cumprod: Vec<f32>,
}

impl NoiseSchedule {
    /// With `zero_terminal_snr`, falling to 0.
    pub fn stable_diffusion(zero_terminal_snr: bool) -> Self {
        let (start, end) = (0.00085f64.sqrt() as f32, 0.012f64.sqrt() as f32);
        let step = (end - start) / (TRAIN_STEPS - 1) as f32;
        let betas = (0..TRAIN_STEPS).map(|i| {
            let root = if i < TRAIN_STEPS / 2 {
                start + step * i as f32
            } else {
                end - step * (TRAIN_STEPS - 1 - i) as f32
            };
            root * root
        });
        let schedule = Self::of_betas(betas);
        if zero_terminal_snr { schedule.rescaled() } else { schedule }
    }

    fn of_betas(betas: impl Iterator<Item = f32>) -> Self {
        let mut product = 1.0f64;
        let alphas_cumprod = betas.map(|beta| {
            product *= f64::from(1.0 - beta);
            product as f32
        });
        Self { alphas_cumprod: alphas_cumprod.collect() }
    }

    /// √ᾱ moved and stretched so that it begins where it did and ends at 0 (Lin et al., 2023,
    /// arXiv:2305.08891, algorithm 1). Near the end it hangs on how f32 rounds.
    fn rescaled(&self) -> Self {
        let roots: Vec<f32> = self.alphas_cumprod.iter().map(|alpha| alpha.sqrt()).collect();
        let (first, last) = (roots[0], roots[TRAIN_STEPS - 1]);
        let scale = first / (first - last);
        let squares: Vec<f32> =
            roots.iter().map(|root| (root - last) * scale).map(|root| root * root).collect();
        let ratios = squares.windows(2).map(|pair| pair[1] / pair[0]);
        Self::of_betas([squares[0]].into_iter().chain(ratios).map(|alpha| 1.0 - alpha))
    }

    /// At unit variance; before the first training step there is hardly any noise, but not none.
    pub fn level(&self, timestep: isize) -> Level {
        let last = TRAIN_STEPS as isize - 1;
        let alpha = f64::from(self.alphas_cumprod[timestep.clamp(0, last) as usize]);
        Level { signal: alpha.sqrt(), noise: (1.0 - alpha).sqrt() }
    }

    /// Noise to signal, √((1 - ᾱ)/ᾱ).
    fn sigma(&self, timestep: usize) -> f64 {
        let alpha = self.alphas_cumprod[timestep].max(ALMOST_ZERO);
        f64::from(((1.0 - alpha) / alpha).sqrt())
    }

    /// The same between timesteps.
    fn interpolated_sigma(&self, timestep: f32) -> f64 {
        let last = TRAIN_STEPS - 1;
        let below = (timestep as usize).min(last);
        let (low, high) = (self.sigma(below), self.sigma((below + 1).min(last)));
        f64::from((low + (high - low) * f64::from(timestep).fract()) as f32)
    }

    /// Calls at whole timesteps, at unit variance.
    pub fn calls(&self, timesteps: Vec<f64>) -> Vec<Call> {
        let call = |t: f64| Call { timestep: t as f32, level: self.level(t as isize) };
        timesteps.into_iter().map(call).collect()
    }

    /// Calls of the samplers that think in sigmas.
    pub fn exploding_calls(&self, timesteps: Vec<f64>) -> Vec<Call> {
        let call = |timestep: f32| {
            let level = Level::exploding(self.interpolated_sigma(timestep));
            Call { timestep, level }
        };
        timesteps.into_iter().map(|t| call(t as f32)).collect()
    }

    /// Calls at unit variance of the samplers that get there by sigmas.
    pub fn preserving_calls(&self, timesteps: Vec<f64>) -> Vec<Call> {
        let call = |timestep: f32| {
            let level = Level::preserving(self.interpolated_sigma(timestep));
            Call { timestep, level }
        };
        timesteps.into_iter().map(|t| call(t as f32)).collect()
    }

    /// Calls at unit variance whose sigmas are spaced as Karras et al. do it.
    pub fn karras_calls(&self, steps: usize) -> Vec<Call> {
        let all: Vec<f64> = (0..TRAIN_STEPS).map(|t| self.sigma(t)).collect();
        let call = |sigma: f64| Call {
            timestep: nearest_timestep(&all, sigma) as f32,
            level: Level::preserving(f64::from(sigma as f32)),
        };
        karras(all[0], all[TRAIN_STEPS - 1], steps).map(call).collect()
    }
}
