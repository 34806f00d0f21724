use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::{
    modes::{CheckpointRef, LongPrompts, LoraName, PipelineSpec, PromptSyntax, Timeout},
    request::MAX_PROMPT_BYTES,
};

fn mode() -> Mode {
    let checkpoint = CheckpointRef { name: "x".into(), path: PathBuf::from("/m/x") };
    Mode {
        name: "portrait".into(),
        pipeline: PipelineSpec::of(checkpoint),
        defaults: Defaults {
            size: Size { width: 512, height: 768 },
            steps: 20,
            guidance_scale: 7.5,
            scheduler: Some(SchedulerId::Ddim),
            negative_prompt: Some("blurry".into()),
            clip_skip: 1,
            guidance_rescale: 0.5,
            timestep_spacing: Some(Spacing::Linspace),
            long_prompts: LongPrompts::Chunk,
            prompt_syntax: PromptSyntax::Weighted,
        },
        pinned: false,
        preload: false,
        metadata: serde_json::Map::new(),
        timeout: Timeout::Off,
    }
}

fn context(mode: &Mode) -> Context<'_> {
    Context { mode, max_pixels: 1024 * 1024, init_image: None, superres: None }
}

/// What a request becomes in the mode.
fn resolved(body: Value) -> Result<GenerateRequest, InvalidFields> {
    Overrides::parse(&body)?.resolve(context(&mode()), || 7)
}

/// What is wrong with it, by its pointers.
fn errors(body: Value) -> Vec<String> {
    let InvalidFields(errors) = resolved(body).expect_err("errors");
    errors.into_iter().map(|FieldError { pointer, detail }| format!("{pointer} {detail}")).collect()
}

fn image(bytes: &[u8]) -> Option<EncodedImage> {
    Some(EncodedImage(bytes.into()))
}

#[test]
fn the_mode_fills_what_is_absent() {
    assert_eq!(
        resolved(json!({"prompt": "a fox", "seed": null})).unwrap(),
        GenerateRequest {
            negative_prompt: Some("blurry".into()),
            size: Size { width: 512, height: 768 },
            steps: 20,
            guidance_scale: 7.5,
            seed: 7,
            scheduler: Some(SchedulerId::Ddim),
            clip_skip: 1,
            guidance_rescale: 0.5,
            timestep_spacing: Some(Spacing::Linspace),
            long_prompts: LongPrompts::Chunk,
            prompt_syntax: PromptSyntax::Weighted,
            ..GenerateRequest::of("portrait", "a fox")
        }
    );
}

#[test]
fn the_caller_prevails() {
    let full = json!({
        "mode": "portrait", "prompt": "", "negative_prompt": "", "size": "64x128",
        "num_inference_steps": 1, "guidance_scale": 0, "seed": u64::MAX,
        "scheduler": "lcm", "clip_skip": 0, "n": 8, "eta": 1, "guidance_rescale": 0,
        "timestep_spacing": "trailing",
    });
    let overrides = Overrides::parse(&full).unwrap();
    assert_eq!(
        overrides.resolve(context(&mode()), || unreachable!()).unwrap(),
        GenerateRequest {
            negative_prompt: Some(String::new()),
            size: Size { width: 64, height: 128 },
            steps: 1,
            guidance_scale: 0.0,
            seed: u64::MAX,
            scheduler: Some(SchedulerId::Lcm),
            n: 8,
            eta: 1.0,
            timestep_spacing: Some(Spacing::Trailing),
            long_prompts: LongPrompts::Chunk,
            prompt_syntax: PromptSyntax::Weighted,
            ..GenerateRequest::of("portrait", "")
        }
    );
}

#[test]
fn every_wrong_field_is_reported_at_once() {
    let body = json!({
        "mode": 1, "negative_prompt": "x".repeat(MAX_PROMPT_BYTES + 1), "size": "500x500",
        "num_inference_steps": 0, "guidance_scale": "7", "seed": -1, "scheduler": "eulr",
        "clip_skip": 1.5, "n": 9, "eta": 1.5, "timestep_spacing": "trailin", "steps": 4, "num_inference_step": 4, "a/b": 1,
    });
    let InvalidFields(errors) = Overrides::parse(&body).unwrap_err();
    let found: BTreeMap<_, _> =
        errors.iter().map(|e| (e.pointer.as_str(), e.detail.as_str())).collect();
    let expected = BTreeMap::from([
        ("/mode", "expected a string, found a number"),
        ("/prompt", "is required"),
        ("/negative_prompt", "is 16385 bytes long; 16384 is the most"),
        ("/size", "500x500: width and height must be positive multiples of 8"),
        ("/num_inference_steps", "0 is not a whole number from 1 to 999"),
        ("/guidance_scale", "expected a number, found a string"),
        ("/seed", "-1 is not a whole number from 0 to 18446744073709551615"),
        ("/scheduler", found["/scheduler"]),
        ("/n", "9 is not a whole number from 1 to 8"),
        ("/eta", "1.5 is not between 0 and 1"),
        (
            "/timestep_spacing",
            "there is no timestep spacing 'trailin'; did you mean 'trailing'? \
             (there are: leading, linspace, trailing)",
        ),
        ("/clip_skip", "1.5 is not a whole number from 0 to 12"),
        ("/steps", found["/steps"]),
        ("/num_inference_step", "unknown field; did you mean 'num_inference_steps'?"),
        ("/a~1b", found["/a~1b"]),
    ]);
    assert_eq!(found, expected);
    let scheduler = "there is no scheduler 'eulr'; did you mean 'euler'? (there are: ddim, ";
    assert!(found["/scheduler"].starts_with(scheduler));
    assert!(found["/a~1b"].starts_with("unknown field (known fields: mode, prompt,"));
}

#[test]
fn a_value_at_its_bound() {
    let fits = |field: &str, value: serde_json::Value| {
        let mut body = json!({"prompt": "x"});
        body[field] = value;
        Overrides::parse(&body).is_ok()
    };
    for (field, value, ok) in [
        ("num_inference_steps", json!(999), true),
        ("num_inference_steps", json!(1000), false),
        ("num_inference_steps", json!(u64::MAX), false),
        ("guidance_scale", json!(100), true),
        ("guidance_scale", json!(100.1), false),
        ("guidance_scale", json!(-0.1), false),
        ("guidance_scale", json!(1e300), false),
        ("clip_skip", json!(12), true),
        ("clip_skip", json!(13), false),
        ("n", json!(8), true),
        ("n", json!(0), false),
        ("eta", json!(-0.1), false),
        ("guidance_rescale", json!(1), true),
        ("guidance_rescale", json!(1.01), false),
        ("seed", json!(0), true),
        ("seed", json!(1.5), false),
        ("prompt", json!("x".repeat(MAX_PROMPT_BYTES)), true),
        ("prompt", json!("a\0b"), false),
        ("prompt", json!(["x"]), false),
    ] {
        assert_eq!(fits(field, value.clone()), ok, "{field}: {value:.40}");
    }
    assert!(Overrides::parse(&json!([])).is_err());
}

#[test]
fn loras_are_named_in_a_list_and_in_the_prompt() {
    let overrides = Overrides::parse(&json!({
        "prompt": "a fox <lora:oil:0.5>",
        "loras": [{"path": "x/ink.safetensors"}, {"name": "ink", "strength": -2}],
    }))
    .unwrap();
    let wish = |name, strength, pointer: &str| LoraWish { name, strength, pointer: pointer.into() };
    let expected = [
        wish(LoraName::Path("x/ink.safetensors".into()), 1.0, "/loras/0/path"),
        wish(LoraName::Name("ink".into()), -2.0, "/loras/1/name"),
        wish(LoraName::Name("oil".into()), 0.5, "/prompt"),
    ];
    assert_eq!(overrides.loras, expected);
    let request = overrides.resolve(context(&mode()), || 7).unwrap();
    assert_eq!(request.prompt, "a fox ");
}

#[test]
fn a_lora_that_is_not_named_rightly_is_an_error_at_its_place() {
    let many = json!(vec![json!({"name": "x"}); 17]);
    for (prompt, negative, loras, expected) in [
        ("", "", json!("ink"), "/loras expected a list, found a string"),
        ("", "", json!(["ink"]), "/loras/0 expected a JSON object, found a string"),
        ("", "", json!([{}]), "/loras/0 needs a 'path' or a 'name'"),
        (
            "",
            "",
            json!([{"name": "x"}, {"name": 1}]),
            "/loras/1/name expected a string, found a number",
        ),
        (
            "",
            "",
            json!([{"name": "x", "path": "y"}]),
            "/loras/0/name is one too many beside 'path'",
        ),
        (
            "",
            "",
            json!([{"nam": "x", "path": "y"}]),
            "/loras/0/nam unknown field; did you mean 'name'?",
        ),
        (
            "",
            "",
            json!([{"name": "x", "strength": 101}]),
            "/loras/0/strength 101 is not between -100 and 100",
        ),
        ("", "", many, "/loras 17 LoRAs; 16 are the most"),
        (
            "",
            "<lora:x>",
            json!([]),
            "/negative_prompt a <lora:…> belongs into the prompt or into 'loras'",
        ),
        (
            "<lora:x:y>",
            "",
            json!(null),
            "/prompt '<lora:x:y>' is not understood; write it as <lora:NAME> or <lora:NAME:STRENGTH>, \
             with a strength from -100 to 100",
        ),
    ] {
        let body = json!({"prompt": prompt, "negative_prompt": negative, "loras": loras});
        assert_eq!(errors(body), [expected]);
    }
}

#[test]
fn images_come_in_base64_or_beside_the_fields() {
    let parse = |body: Value, files| Overrides::parse_with(&body, files).unwrap();
    for text in ["/9g=", "/9g", "data:image/jpeg;base64,/9g=", "data:;base64,/9\r\n g=\n"] {
        let overrides = parse(json!({"prompt": "", "init_image": text}), Files::default());
        assert_eq!(overrides.init_image, image(b"\xff\xd8"), "{text:?}");
    }
    let files = Files { init_image: image(b"i"), mask_image: image(b"m"), image: None };
    let overrides = parse(json!({"prompt": "", "denoise_strength": 0.5}), files.clone());
    assert_eq!(
        (&overrides.init_image, &overrides.mask_image),
        (&files.init_image, &files.mask_image)
    );
    let request = overrides
        .resolve(Context { init_image: Some((64, 64)), ..context(&mode()) }, || 7)
        .unwrap();
    let source =
        Source { image: EncodedImage(b"i"[..].into()), mask: image(b"m"), denoise_strength: 0.5 };
    assert_eq!(request.source, Some(source));

    let both = Overrides::parse_with(&json!({"prompt": "", "init_image": "AAAA"}), files);
    let InvalidFields(errors) = both.unwrap_err();
    assert_eq!(errors, [FieldError::of("init_image", "is here twice, as a file and as a field")]);
}

#[test]
fn an_image_that_cannot_be_read_or_is_missing_is_an_error() {
    for (body, expected) in [
        (json!({"init_image": 1}), &["/init_image expected a string, found a number"][..]),
        (json!({"init_image": "a%"}), &["/init_image is not base64: Invalid symbol 37, offset 1."]),
        (
            json!({"init_image": "data:image/png,x"}),
            &["/init_image is a data: URL, but not in base64"],
        ),
        (json!({"mask_image": "AAAA"}), &["/mask_image needs an init_image"]),
        (json!({"denoise_strength": 0.5}), &["/denoise_strength needs an init_image"]),
        (
            json!({"denoise_strength": 1.5, "init_image": "AAAA"}),
            &["/denoise_strength 1.5 is not between 0 and 1"],
        ),
    ] {
        let mut body = body;
        body["prompt"] = json!("");
        assert_eq!(errors(body.clone()), expected, "{body}");
    }
}

#[test]
fn a_source_is_redrawn_in_part_and_with_a_mask_wholly() {
    for (body, strength) in [
        (json!({"prompt": "", "init_image": "AAAA"}), 0.8),
        (json!({"prompt": "", "init_image": "AAAA", "mask_image": "AAAA"}), 1.0),
        (
            json!({"prompt": "", "init_image": "AAAA", "mask_image": "AAAA", "denoise_strength": 0}),
            0.0,
        ),
    ] {
        let overrides = Overrides::parse(&body).unwrap();
        let mode = mode();
        let context = Context { init_image: Some((64, 64)), ..context(&mode) };
        let source = overrides.resolve(context, || 7).unwrap().source.unwrap();
        assert_eq!(source.denoise_strength, strength, "{body}");
    }
}

#[test]
fn sizes_and_numbers_of_images_have_bounds() {
    let size = |body: Value, init_image, max_pixels| {
        let mode = mode();
        let context = Context { mode: &mode, max_pixels, init_image, superres: None };
        let overrides = Overrides::parse(&body).unwrap();
        match overrides.resolve(context, || 7) {
            Ok(request) => request.size.to_string(),
            Err(InvalidFields(errors)) => format!("{} {}", errors[0].pointer, errors[0].detail),
        }
    };
    let plain = |fields: Value| {
        let mut body = json!({"prompt": ""});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let large = 2048 * 2048;
    let source = json!({"init_image": "AAAA"});
    for (fields, init_image, max_pixels, expected) in [
        (json!({}), None, large, "512x768"),
        (json!({"size": "64x128"}), None, 64 * 128, "64x128"),
        (
            json!({"size": "72x128"}),
            None,
            64 * 128,
            "/size 72x128 is more than the 8192 pixels that are allowed",
        ),
        (source.clone(), Some((71, 800)), large, "64x800"),
        (json!({"init_image": "AAAA", "size": "64x64"}), Some((71, 9999)), large, "64x64"),
        (source.clone(), Some((7, 800)), large, "/init_image is 7x800; 8x8 is the least"),
        (
            source.clone(),
            Some((2056, 2048)),
            large,
            "/init_image 2056x2048 is more than the 4194304 pixels that are allowed; name a smaller 'size'",
        ),
        (
            source,
            Some((8192, 8192)),
            large,
            "/init_image 8192x8192 is larger than 16777216 pixels (4096x4096); name a 'size'",
        ),
        (json!({"size": "2048x2048", "n": 4}), None, large, "2048x2048"),
        (
            json!({"size": "2048x2048", "n": 5}),
            None,
            large,
            "/n 5 images of 2048x2048 are too many at once; 4 are the most",
        ),
    ] {
        assert_eq!(size(plain(fields.clone()), init_image, max_pixels), expected, "{fields}");
    }
}

#[test]
fn seeds_follow_each_other() {
    let request = GenerateRequest { n: 3, seed: u64::MAX - 1, ..GenerateRequest::of("a", "") };
    assert_eq!(request.seeds().collect::<Vec<_>>(), [u64::MAX - 1, u64::MAX, 0]);
}

#[test]
fn a_priority_says_when_and_not_what() {
    let with = |priority: Value| json!({"prompt": "x", "priority": priority});
    for (value, expected) in [(json!(-10), Some(-10)), (json!(10), Some(10)), (Value::Null, None)] {
        let overrides = Overrides::parse(&with(value)).unwrap();
        assert_eq!(overrides.priority, expected);
        assert_eq!(overrides.resolve(context(&mode()), || 7), resolved(json!({"prompt": "x"})));
    }
    for value in [json!(11), json!(-11), json!(300), json!(1.5), json!(i64::MIN), json!(u64::MAX)] {
        let told = format!("/priority {value} is not a whole number from -10 to 10");
        assert_eq!(errors(with(value)), [told]);
    }
    assert_eq!(errors(with(json!("1"))), ["/priority expected a whole number, found a string"]);
}

#[test]
fn an_image_is_made_larger_by_what_the_configuration_names() {
    let (mode, model) = (mode(), CheckpointRef { name: "e/x4".into(), path: "/m/e/x4".into() });
    let resolved = |body: Value, superres| {
        let context = Context { superres, ..context(&mode) };
        Overrides::parse(&body).unwrap().resolve(context, || 7).unwrap().superres
    };
    let asked = json!({"prompt": "x", "superres": true});
    let by_default = Superres { magnitude: 1, model: None, format: None };
    assert_eq!(resolved(asked.clone(), None), Some(by_default.clone()));
    let of_model = Superres { model: Some(model.clone()), ..by_default };
    assert_eq!(resolved(asked, Some(&model)), Some(of_model));
    for body in [json!({"prompt": "x"}), json!({"prompt": "x", "superres": false})] {
        assert_eq!(resolved(body, Some(&model)), None);
    }
    let body =
        json!({"prompt": "x", "superres": true, "superres_magnitude": 3, "superres_quality": 7});
    let format = Some(Format::Jpeg { quality: 7 });
    assert_eq!(resolved(body, None), Some(Superres { magnitude: 3, model: None, format }));
}
