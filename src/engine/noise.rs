//! Random numbers equal to PyTorch's: `torch.Generator("cpu").manual_seed(seed)` and `torch.randn`.

use std::f64::consts::TAU;

const N: usize = 624;
const M: usize = 397;

/// PyTorch's CPU generator: the Mersenne Twister MT19937 (Matsumoto & Nishimura, 1998).
pub struct Generator {
    state: [u32; N],
    next: usize,
    /// The second of a pair of normal numbers, when only one was asked for.
    cached: Option<f64>,
}

impl Generator {
    /// Only the seed's low 32 bits count, as in PyTorch.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; N];
        state[0] = seed as u32;
        for i in 1..N {
            let previous: u32 = state[i - 1];
            state[i] =
                (previous ^ (previous >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N, cached: None }
    }

    /// `torch.randn(count, generator=…)` in float32: 16 numbers at a time through Box and Muller's
    /// transform of 8 pairs, or one after the other where there are fewer than 16.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        let mut numbers: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        let whole = count / 16 * 16;
        numbers[..whole].as_chunks_mut().0.iter_mut().for_each(box_muller);
        if whole < count {
            // The last 16 are drawn anew, over some that were drawn before.
            let mut tail = [0.0; 16];
            tail.fill_with(|| self.uniform_f32());
            box_muller(&mut tail);
            numbers[count - 16..].copy_from_slice(&tail);
        }
        numbers
    }

    fn normal(&mut self) -> f64 {
        if let Some(cached) = self.cached.take() {
            return cached;
        }
        let (angle, u) = (TAU * self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u).ln_1p()).sqrt();
        self.cached = Some(radius * angle.sin());
        radius * angle.cos()
    }

    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.next_u32()), u64::from(self.next_u32()));
        let bits = (high << 32 | low) & ((1 << 53) - 1);
        bits as f64 / (1u64 << 53) as f64
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Eight pairs of uniform numbers, eight apart, into eight pairs of normal ones.
fn box_muller(block: &mut [f32; 16]) {
    for i in 0..8 {
        let (u, angle) = (1.0 - block[i], TAU * f64::from(block[i + 8]));
        let radius = (-2.0 * f64::from(u).ln()).sqrt();
        block[i] = (radius * angle.cos()) as f32;
        block[i + 8] = (radius * angle.sin()) as f32;
    }
}
