//! Tokens, text embeddings, noise, one UNet step, one VAE decode.

use std::collections::BTreeMap;

use diffused::engine::{
    model::Conditioning,
    noise::Generator,
    tokenizer::{Padding, decode, encode, tokenize},
};
use serde::Deserialize;

use crate::golden::{Tensors, assert_close, json, pipelines};

#[test]
fn tokens_are_the_references() {
    #[derive(Deserialize)]
    struct Golden {
        prompts: Vec<Prompt>,
    }
    #[derive(Deserialize)]
    struct Prompt {
        prompt: String,
        ids: Vec<u32>,
    }
    let golden: Golden = json("tokens.json");
    assert!(golden.prompts.len() > 40);
    let differing: Vec<_> = golden
        .prompts
        .iter()
        .filter(|golden| tokenize(&golden.prompt) != golden.ids)
        .map(|golden| {
            format!("{:?}\n{:?}\n{:?}", golden.prompt, tokenize(&golden.prompt), golden.ids)
        })
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn all_ids_of_a_text_are_the_references_and_read_back() {
    #[derive(Deserialize)]
    struct Golden {
        texts: Vec<Text>,
    }
    #[derive(Deserialize)]
    struct Text {
        text: String,
        clip: Vec<u32>,
        open_clip: Vec<u32>,
        decoded: String,
    }
    let golden: Golden = json("texts.json");
    assert!(golden.texts.len() > 40);
    for Text { text, clip, open_clip, decoded } in &golden.texts {
        assert_eq!(encode(text, Padding::End), *clip, "{text:?}");
        assert_eq!(encode(text, Padding::Zero), *open_clip, "{text:?}");
        assert_eq!(decode(clip), *decoded, "{text:?}");
    }
}

#[test]
fn text_embeddings_are_the_references() {
    #[derive(Deserialize)]
    struct Golden {
        prompts: Vec<String>,
    }
    let (golden, tensors): (Golden, _) = (json("text.json"), Tensors::open("text.safetensors"));
    for (backend, pipeline) in pipelines() {
        let text_encoder = pipeline.models().text_encoder.as_ref().unwrap();
        for (i, prompt) in golden.prompts.iter().enumerate() {
            for clip_skip in [0, 1] {
                let name = format!("{i}.clip_skip_{clip_skip}");
                let found = text_encoder.encode(&[tokenize(prompt)], clip_skip).unwrap();
                let (expected, dims) = tensors.plain(&name);
                assert_eq!(found.dims(), dims);
                let what = format!("{}: {name}", backend.engine());
                assert_close(&what, &found.to_vec().unwrap(), &expected, 1e-5);
            }
        }
    }
}

#[test]
fn noise_is_torchs() {
    let tensors = Tensors::open("noise.safetensors");
    for seed in [0, 42, (1 << 32) + 5, (1 << 63) + 1] {
        for size in ["8x8", "8x12", "5x7", "1x1", "1x3"] {
            let mut generator = Generator::new(seed);
            for draw in ["first", "second"] {
                let name = format!("{seed}.{size}.{draw}");
                let (expected, _) = tensors.plain(&name);
                assert_close(&name, &generator.randn(expected.len()), &expected, 5e-7);
            }
        }
    }
}

#[test]
fn a_unet_step_is_the_references() {
    #[derive(Deserialize)]
    struct Golden {
        timesteps: BTreeMap<String, f32>,
    }
    let (golden, tensors): (Golden, _) = (json("unet.json"), Tensors::open("unet.safetensors"));
    let cases = golden.timesteps.iter();
    let cases = cases.flat_map(|case| pipelines().iter().map(move |engine| (case, engine)));
    for ((name, timestep), (backend, pipeline)) in cases {
        let unet = &pipeline.models().unet;
        let part = |part: &str| tensors.get(&format!("{name}.{part}"));
        let (latents, expected) = (part("latents"), part("out"));
        let conditioning = Conditioning { context: part("context"), added: None, guidance: None };
        // The others are to make no difference.
        let told = unet.tell(&conditioning, &[17.0, *timestep, 980.0]).unwrap();
        let found = unet.step(&latents, &told, 1).unwrap();
        assert_eq!(found.dims(), expected.dims());
        let (found, expected) = (found.to_vec().unwrap(), expected.to_vec().unwrap());
        assert_close(&format!("{}: {name}", backend.engine()), &found, &expected, 2e-5);
    }
}

#[test]
fn a_vae_decode_is_the_references() {
    let tensors = Tensors::open("vae.safetensors");
    let cases = ["8x8", "8x12", "5x7"].into_iter();
    let cases = cases.flat_map(|case| pipelines().iter().map(move |engine| (case, engine)));
    for (name, (backend, pipeline)) in cases {
        let vae = &pipeline.models().vae;
        let latents = tensors.get(&format!("{name}.latents"));
        let found = vae.decode(&latents.scale(1.0 / 0.18215).unwrap()).unwrap();
        let expected = tensors.get(&format!("{name}.image"));
        assert_eq!(found.dims(), expected.dims());
        let what = format!("{}: {name}", backend.engine());
        assert_close(&what, &found.to_vec().unwrap(), &expected.to_vec().unwrap(), 2e-5);
    }
}
