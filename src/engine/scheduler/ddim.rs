//! DDIM (Song, Meng & Ermon, 2020, arXiv:2010.02502, eq. 12 with η = 0; diffusers' `DDIMScheduler`
//! with `set_alpha_to_one` and `clip_sample` false).

use super::{NoiseSchedule, Plan, PlanStep, TRAIN_STEPS};

pub(super) fn plan(schedule: &NoiseSchedule, steps: usize) -> Plan {
    let stride = (TRAIN_STEPS / steps) as isize;
    let step = |t: usize| {
        let (alpha, previous) = (schedule.alpha(t as isize), schedule.alpha(t as isize - stride));
        let keep = ((1.0 - previous) / (1.0 - alpha)).sqrt();
        PlanStep {
            timestep: t as f32,
            input_scale: 1.0,
            denoised: (alpha.sqrt().recip(), -((1.0 - alpha) / alpha).sqrt()),
            keep,
            history: vec![previous.sqrt() - alpha.sqrt() * keep],
            noise: 0.0,
        }
    };
    let steps = NoiseSchedule::leading(steps, steps).map(step).collect();
    Plan { init_noise_sigma: 1.0, steps }
}
