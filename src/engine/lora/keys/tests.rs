//! Names as trainers write them.

use super::*;

fn modules() -> Vec<Module> {
    let block = "down_blocks.0.attentions.1.transformer_blocks.0.attn1";
    let ldm = "input_blocks.2.1.transformer_blocks.0.attn1";
    [
        (format!("unet.{block}.to_q"), Some(format!("{ldm}.to_q"))),
        (format!("unet.{block}.to_out.0"), Some(format!("{ldm}.to_out.0"))),
        ("unet.conv_in".to_owned(), Some("input_blocks.0.0".to_owned())),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj".to_owned(), None),
        ("text_encoder.text_model.encoder.layers.0.self_attn.out_proj".to_owned(), None),
        ("text_encoder_2.text_projection".to_owned(), None),
    ]
    .map(|(canonical, ldm)| Module { canonical, ldm, dims: vec![4, 4] })
    .to_vec()
}

#[test]
fn every_spelling_finds_its_module() {
    let modules = modules();
    let targets = Targets::of(&modules);
    let q = "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q";
    let out = "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0";
    let text_q = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj";
    let text_out = "text_encoder.text_model.encoder.layers.0.self_attn.out_proj";
    for (name, canonical, part) in [
        (
            "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
            q,
            Part::Down,
        ),
        ("lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_out_0.alpha", out, Part::Alpha),
        ("lora_unet_input_blocks_0_0.lora_mid.weight", "unet.conv_in", Part::Core),
        ("lora_unet_conv_in.diff_b", "unet.conv_in", Part::FullBias),
        ("lycoris_conv_in.lokr_w2_a", "unet.conv_in", Part::Kron2Up),
        (
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
            q,
            Part::Down,
        ),
        (
            "base_model.model.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_B.default.weight",
            q,
            Part::Up,
        ),
        (
            "base_model.model.unet.conv_in.lora_magnitude_vector.default.weight",
            "unet.conv_in",
            Part::Magnitude,
        ),
        (
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.lora.up.weight",
            out,
            Part::Up,
        ),
        (
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_q_lora.up.weight",
            q,
            Part::Up,
        ),
        (
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
            out,
            Part::Down,
        ),
        (
            "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.lora_magnitude_vector",
            q,
            Part::Magnitude,
        ),
        ("model.diffusion_model.input_blocks.0.0.hada_w1_b", "unet.conv_in", Part::Hada1Down),
        (
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.dora_scale",
            text_q,
            Part::DoraScale,
        ),
        ("lora_te1_text_model_encoder_layers_0_self_attn_out_proj.alpha", text_out, Part::Alpha),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight",
            text_q,
            Part::Down,
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight",
            text_out,
            Part::Up,
        ),
        (
            "text_encoder.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
            text_q,
            Part::Up,
        ),
        (
            "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
            text_q,
            Part::Down,
        ),
        ("lora_te2_text_projection.lora_up.weight", "text_encoder_2.text_projection", Part::Up),
        (
            "text_encoder_2.text_projection.lora_B.bias",
            "text_encoder_2.text_projection",
            Part::UpBias,
        ),
    ] {
        let key = Key::of(name).unwrap_or_else(|_| panic!("{name}"));
        let found = targets.find(&key.module).map(|module| module.canonical.as_str());
        assert_eq!((found, key.part), (Some(canonical), part), "{name}");
    }
}

#[test]
fn what_is_no_key_is_told() {
    for name in [
        "",
        ".alpha",
        "alpha",
        "emb_params",
        "conv_in.weight",
        "conv_in.lora_A.a.b.weight",
        "x.processor.to_z_lora.up.weight",
    ] {
        assert_eq!(Key::of(name), Err(NotAKey::Unknown), "{name}");
    }
    let oft = Key::of("lora_unet_conv_in.oft_blocks");
    assert_eq!(oft, Err(NotAKey::Unsupported("OFT")));
}

#[test]
fn other_components_are_not_mixed_up() {
    let modules = modules();
    let targets = Targets::of(&modules);
    for module in ["lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "text_projection"] {
        assert!(targets.find(module).is_none(), "{module}");
    }
}
