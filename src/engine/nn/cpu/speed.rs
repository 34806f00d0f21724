#[cfg(test)]
mod tests {
    use crate::engine::nn::cpu::{attention::*, conv::*, gemm::*, norm::*, tests::numbers, *};
    fn cpu() -> f64 {
        let s = std::fs::read_to_string("/proc/self/stat").unwrap();
        let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
        (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 200.0
    }
    fn best(mut f: impl FnMut()) -> f64 {
        f();
        let c = cpu();
        let mut n = 0;
        while cpu() - c < 0.5 {
            f();
            n += 1;
        }
        (cpu() - c) / n as f64
    }
    #[allow(dead_code)]
    fn best_wall(mut f: impl FnMut()) -> f64 {
        let mut b = f64::MAX;
        for _ in 0..4 {
            let t = std::time::Instant::now();
            f();
            b = b.min(t.elapsed().as_secs_f64());
        }
        b
    }
    #[test]
    fn speed() {
        for (b, h, c, n, up) in [
            (2usize, 64usize, 320usize, 320usize, 1usize),
            (2, 32, 640, 640, 1),
            (2, 16, 1280, 1280, 1),
            (2, 16, 2560, 1280, 1),
            (2, 8, 1280, 1280, 1),
            (1, 512, 128, 128, 1),
            (1, 256, 256, 256, 1),
            (1, 256, 512, 512, 1),
            (1, 128, 512, 512, 2),
            (1, 512, 128, 3, 1),
        ] {
            let x = numbers(b * h * h * c, 1);
            let w =
                PackedWeights::pack(9, c, n, |n, t, k| ((n * 31 + t * 7 + k) % 17) as f32 * 0.01);
            let mut out = vec![0.0; b * h * h * n * up * up];
            let g = Geometry {
                kernel: 3,
                stride: 1,
                pad_before: 1,
                stored: [h, h],
                seen: [h * up, h * up],
                out: [h * up, h * up],
            };
            let t = best(|| conv2d(&x, b, g, &w, None, Finish::Store, OutPtr::new(&mut out)));
            println!(
                "conv {b}x{h}x{h}x{c}->{n} up{up}: {:.1} ms {:.1} GFLOP/s",
                t * 1e3,
                2e-9 * (b * h * h * c * n * 9 * up * up) as f64 / t
            );
        }
        for (b, l, heads, d, kl) in [
            (2usize, 4096usize, 8usize, 40usize, 4096usize),
            (2, 1024, 8, 80, 1024),
            (2, 256, 8, 160, 256),
            (1, 4096, 1, 512, 4096),
            (2, 4096, 8, 40, 77),
        ] {
            let x = numbers(b * l * heads * d, 1);
            let hd = Heads { data: &x, stride: heads * d, offset: 0, len: l };
            let kv = Heads { len: kl, ..hd };
            let mut out = vec![0.0; x.len()];
            let t = best(|| {
                Attention { q: hd, k: kv, v: kv, batch: b, heads, head_dim: d, causal: false }
                    .run(OutPtr::new(&mut out))
            });
            println!(
                "attention {l} d{d} x{kl}: {:.1} ms {:.1} GFLOP/s",
                t * 1e3,
                4e-9 * (b * heads * l * kl * d) as f64 / t
            );
        }
        for (b, rows, c) in
            [(2usize, 4096usize, 320usize), (1, 512 * 512, 128), (1, 512 * 512, 256)]
        {
            let x = numbers(b * rows * c, 1);
            let w = vec![1.0; c];
            let a = Affine { weight: &w, bias: &w, epsilon: 1e-5 };
            let mut out = vec![0.0; x.len()];
            let t = best(|| {
                group_norm(
                    &x,
                    b,
                    32,
                    &a,
                    crate::engine::nn::Activation::Silu,
                    OutPtr::new(&mut out),
                )
            });
            println!(
                "groupnorm {rows}x{c}: {:.1} ms {:.1} GB/s",
                t * 1e3,
                12e-9 * x.len() as f64 / t
            );
            if c == 320 {
                let t = best(|| layer_norm(&x, &a, OutPtr::new(&mut out)));
                println!("layernorm: {:.1} ms {:.1} GB/s", t * 1e3, 8e-9 * x.len() as f64 / t);
            }
        }
        let (m, k, half) = (8192usize, 320usize, 1280usize);
        let x = numbers(m * k, 1);
        let w = numbers(2 * half * k, 2);
        let bias = numbers(2 * half, 3);
        let (pw, pb) = PackedWeights::pack_geglu(k, half, &w, &bias);
        let mut out = vec![0.0; m * half];
        let t = best(|| {
            Product {
                rows: Dense { data: &x, stride: k, count: m },
                images: 1,
                rows_per_image: m,
                weights: &pw,
                bias: Some(&pb),
                finish: Finish::Geglu,
                columns: half,
                out_stride: half,
            }
            .run(OutPtr::new(&mut out))
        });
        println!("geglu {:.1} ms {:.1} GFLOP/s", t * 1e3, 2e-9 * (m * k * 2 * half) as f64 / t);
    }
}
