//! A request's JSON: any value, and values where others belong.

use diffused::{
    modes::{CheckpointRef, Defaults, Mode, PipelineSpec, Size, Timeout},
    request::{
        Context, FieldError, GenerateRequest, InvalidFields, MAX_PROMPT_BYTES, Overrides, Superres,
    },
};
use proptest::prelude::*;
use serde_json::{Map, Number, Value};

const FIELDS: [&str; 22] = [
    "mode",
    "prompt",
    "negative_prompt",
    "size",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "timestep_spacing",
    "seed",
    "scheduler",
    "clip_skip",
    "n",
    "eta",
    "init_image",
    "mask_image",
    "denoise_strength",
    "loras",
    "superres",
    "superres_magnitude",
    "superres_format",
    "superres_quality",
    "x",
];
const WORDS: [&str; 12] = [
    "",
    "512x512",
    "8x8",
    "0x0",
    "4096x4096",
    "4294967295x4294967295",
    "euler",
    "lcm",
    "a fox",
    "\0",
    "aGVsbG8=",
    "<lora:x:1>",
];

fn scalars() -> impl Strategy<Value = Value> {
    let numbers = prop_oneof![
        any::<i64>().prop_map(Number::from),
        any::<u64>().prop_map(Number::from),
        (-2..40_i64).prop_map(Number::from),
        any::<f64>().prop_filter_map("JSON has only finite numbers", Number::from_f64),
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        numbers.prop_map(Value::Number),
        prop::sample::select(&WORDS[..]).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        (0..2 * MAX_PROMPT_BYTES).prop_map(|len| Value::from("x".repeat(len))),
    ]
}

pub fn values() -> impl Strategy<Value = Value> {
    scalars().prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn requests() -> impl Strategy<Value = Value> {
    let field = (prop::sample::select(&FIELDS[..]), values());
    prop::collection::vec(field, 0..8).prop_map(|fields| {
        let mut body = Map::from_iter([("prompt".to_owned(), Value::from("a fox"))]);
        body.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Value::Object(body)
    })
}

fn mode() -> Mode {
    let checkpoint = CheckpointRef { name: "x".into(), path: "/x".into() };
    Mode {
        name: "mode".into(),
        pipeline: PipelineSpec::of(checkpoint),
        defaults: Defaults::default(),
        pinned: false,
        preload: false,
        metadata: Map::new(),
        timeout: Timeout::Off,
    }
}

proptest! {
    #![proptest_config(crate::cases(500))]

    #[test]
    fn a_request_is_valid_or_says_where_not(body in prop_oneof![3 => requests(), 1 => values()]) {
        let mode = mode();
        let max_pixels = Size::DEFAULT_MAX_PIXELS;
        let context = Context { mode: &mode, max_pixels, init_image: Some((72, 104)), superres: None };
        match Overrides::parse(&body).and_then(|overrides| overrides.resolve(context, || 7)) {
            Ok(request) => {
                prop_assert!(request.size.pixels() <= max_pixels);
                prop_assert!((1..=Defaults::MAX_STEPS).contains(&request.steps));
                prop_assert!((0.0..=Defaults::MAX_GUIDANCE_SCALE).contains(&request.guidance_scale));
                prop_assert!(request.clip_skip <= Defaults::MAX_CLIP_SKIP);
                if let Some(superres) = &request.superres {
                    let pixels = request.size.pixels() * u64::from(request.n);
                    let factor = u64::from(superres.factor());
                    prop_assert!(factor <= 8 && pixels * factor * factor <= Superres::MAX_PIXELS);
                }
                prop_assert!(request.prompt.len() <= MAX_PROMPT_BYTES);
                // It travels between processes as it is.
                let json = serde_json::to_string(&request).unwrap();
                prop_assert_eq!(serde_json::from_str::<GenerateRequest>(&json).unwrap(), request);
            }
            Err(InvalidFields(errors)) => {
                prop_assert!(!errors.is_empty());
                for FieldError { pointer, detail } in errors {
                    prop_assert!(pointer.is_empty() || pointer.starts_with('/'), "{pointer}");
                    prop_assert!(!detail.is_empty());
                }
            }
        }
    }

    #[test]
    fn any_text_is_json_or_not(text in any::<String>()) {
        if let Ok(body) = serde_json::from_str::<Value>(&text) {
            let _ = Overrides::parse(&body);
        }
    }
}
