//! Whole images: every scheduler, square and not, with and without guidance.

use std::{collections::BTreeSet, ops::ControlFlow};

use diffused::{
    modes::{SchedulerId, Size},
    request::GenerateRequest,
};
use serde::Deserialize;

use crate::golden::{folder, json, pipelines};

/// Of the peak signal to noise; 45 dB is a mean difference of 1.4 of 255 levels.
pub const MIN_PSNR_DB: f64 = 45.0;

#[derive(Deserialize)]
struct Golden {
    file: String,
    prompt: String,
    negative_prompt: Option<String>,
    width: u32,
    height: u32,
    steps: u32,
    guidance_scale: f32,
    scheduler: SchedulerId,
    seed: u64,
    clip_skip: u32,
}

#[test]
fn images_are_the_references() {
    let golden: Vec<Golden> = json("images/images.json");
    let schedulers: BTreeSet<_> = golden.iter().map(|golden| golden.scheduler.name()).collect();
    assert_eq!(schedulers, SchedulerId::NAMES.iter().copied().collect());
    let mut worst: (f64, String) = (f64::INFINITY, String::new());
    for golden in golden {
        let expected = image::open(folder().join("images").join(&golden.file)).unwrap().to_rgb8();
        let request = GenerateRequest {
            negative_prompt: golden.negative_prompt,
            size: Size::new(golden.width, golden.height).unwrap(),
            steps: golden.steps,
            guidance_scale: golden.guidance_scale,
            seed: golden.seed,
            scheduler: Some(golden.scheduler),
            clip_skip: golden.clip_skip,
            ..GenerateRequest::of("tiny", golden.prompt)
        };
        for (backend, pipeline) in pipelines() {
            let drawn = pipeline.draw(&request, &mut |_| ControlFlow::Continue(())).unwrap();
            let size = (drawn.size.width, drawn.size.height);
            assert_eq!(size, expected.dimensions(), "{}", golden.file);
            let psnr = psnr_db(&drawn.images[0], expected.as_raw());
            let what = format!("{} by {}", golden.file, backend.engine());
            assert!(psnr >= MIN_PSNR_DB, "{what}: {psnr:.1} dB");
            if psnr < worst.0 {
                worst = (psnr, what);
            }
        }
    }
    println!("the image that differs most: {} with {:.1} dB", worst.1, worst.0);
}

pub fn psnr_db(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255.0f64.powi(2) / (squares / a.len() as f64)).log10()
}
