//! How long an upscaler of real size takes, what memory, and what its tiles cost in exactness:
//!
//! ```text
//! python tests/parity/upscalers.py bench FILE    # makes FILE, and times torch on the same weights
//! cargo bench --bench upscale -- FILE
//! ```

use std::{ops::ControlFlow, path::Path, time::Instant};

use diffused::{
    engine::{
        memory,
        upscale::{Tiling, Upscaled, Upscaler},
    },
    image::Rgb,
    modes::{CheckpointRef, gib},
};

fn main() {
    let file = std::env::args().find(|argument| argument.ends_with(".safetensors"));
    let Some(file) = file else { return eprintln!("name a .safetensors file of an upscaler") };
    let began = Instant::now();
    let path = Path::new(&file).to_owned();
    let upscaler = Upscaler::load(&CheckpointRef { name: file, path }).expect("a usable file");
    let held = gib(upscaler.weights_bytes());
    println!("loaded in {:.2} s: {held:.2} GiB", began.elapsed().as_secs_f32());
    let image = waves(128);
    let whole = run(&upscaler, &image, Tiling { tile: 4096, halo: 0 });
    for halo in [0, 4, 8, 12, 16, 24, 32] {
        let tiled = run(&upscaler, &image, Tiling { tile: 64, halo });
        let apart = whole.bytes.iter().zip(&tiled.bytes).map(|(a, b)| a.abs_diff(*b));
        let (most, differing) = (apart.clone().max(), apart.filter(|apart| *apart > 0).count());
        println!("halo {halo}: off by {most:?} at most, {differing} of {}", whole.bytes.len());
    }
    for _ in 0..3 {
        run(&upscaler, &waves(512), Tiling::DEFAULT);
    }
}

/// Waves and edges, RGB.
fn waves(side: u32) -> Upscaled {
    let byte = |i: u32| {
        let (x, y, c) = (i / 3 % side, i / 3 / side, i % 3);
        let wave = ((x * (c + 1)) as f32 / 9.0).sin() + (y as f32 / 5.0).cos();
        (127.5 + 40.0 * wave) as u8 ^ if (x / 32 + y / 32) % 2 == 0 { 0 } else { 0x50 }
    };
    Upscaled { width: side, height: side, bytes: (0..3 * side * side).map(byte).collect() }
}

fn run(upscaler: &Upscaler, image: &Upscaled, tiling: Tiling) -> Upscaled {
    let Upscaled { width, height, ref bytes } = *image;
    memory::reset_peak();
    let (before, began) = (memory::allocated_bytes(), Instant::now());
    let mut on_tile = || ControlFlow::Continue(());
    let made = upscaler.run(Rgb { width, height, bytes }, tiling, &mut on_tile).expect("drawn");
    let (seconds, peak) = (began.elapsed().as_secs_f32(), memory::peak_bytes() - before);
    println!("{width}x{height} in tiles of {tiling:?}: {seconds:.1} s, {:.2} GiB", gib(peak));
    made
}
