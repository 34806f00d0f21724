use super::*;
use crate::{
    config::raw,
    modes::{
        Defaults, Jobs, LongPrompts, LoraRef, OnLoraError, Order, PipelineSpec, Prediction,
        PromptSyntax, Retention, SchedulerId, Scheduling, Spacing, Switch, Time,
    },
};

fn resolved(text: &str) -> Result<Resolved, Vec<Diagnostic>> {
    let root = raw::parse(text).unwrap();
    resolve(&root, Path::new("modes.yaml").into(), Path::new("/home/x"))
}

fn errors(text: &str) -> String {
    let errors = resolved(text).expect_err(text);
    let lines: Vec<_> = errors.iter().map(Diagnostic::to_string).collect();
    lines.join("\n").replace(&SchedulerId::NAMES.join(", "), "…")
}

/// The errors of one mode's lines.
fn errors_of_mode(lines: &str) -> String {
    errors(&format!("model_root: m\ndefault_mode: a\nmodes:\n  a:\n    model: x\n    {lines}\n"))
}

#[test]
fn a_full_file_resolves() {
    let text = r#"
model_root: models
lora_root: /srv/loras
default_mode: portrait
max_pixels: 589824
modes:
  sd15: {model: ./sd15/x.safetensors, loras: , default_size: 512X768}
  portrait:
    model: sd15/x.safetensors
    vae: vae/fine.safetensors
    prediction: v
    on_lora_error: skip
    loras: [a.safetensors, {path: sub/b.safetensors, strength: -0.8, adapter_name: portrait}]
    default_size: "640x512"
    default_steps: 20
    default_guidance: 7.5
    default_scheduler: dpmpp_2m_karras
    default_negative_prompt: no
    clip_skip: 1
    guidance_rescale: 0.7
    timestep_spacing: trailing
    long_prompts: chunk
    prompt_syntax: weighted
    metadata: {description: "…", any_key: [1, 2.5, null, true, {x: y}], big: 18446744073709551615}
"#;
    let Resolved { modes, mentions, warnings } = resolved(text).unwrap();
    assert_eq!(modes.default_mode, "portrait");
    let sd15 = &modes.modes["sd15"];
    assert_eq!(sd15.name, "sd15");
    assert_eq!(sd15.pipeline.checkpoint.name, "./sd15/x.safetensors");
    assert_eq!(sd15.pipeline.checkpoint.path, Path::new("/home/x/models/./sd15/x.safetensors"));
    assert_eq!(
        sd15.defaults,
        Defaults { size: Size { width: 512, height: 768 }, ..Defaults::default() }
    );
    assert_eq!((&modes.lora_root, modes.max_pixels), (&"/srv/loras".into(), 768 * 768));
    assert_eq!(sd15.pipeline, PipelineSpec::of(sd15.pipeline.checkpoint.clone()));
    let portrait = &modes.modes["portrait"];
    let vae = portrait.pipeline.vae.as_ref().unwrap();
    assert_eq!(vae.name, "vae/fine.safetensors");
    assert_eq!(vae.path, Path::new("/home/x/models/vae/fine.safetensors"));
    assert_eq!(portrait.pipeline.prediction, Some(Prediction::V));
    assert_eq!(portrait.pipeline.on_lora_error, OnLoraError::Skip);
    assert_eq!(
        portrait.pipeline.loras,
        [
            LoraRef {
                name: "a.safetensors".into(),
                path: "/srv/loras/a.safetensors".into(),
                strength: 1.0,
                adapter_name: None
            },
            LoraRef {
                name: "sub/b.safetensors".into(),
                path: "/srv/loras/sub/b.safetensors".into(),
                strength: -0.8,
                adapter_name: Some("portrait".into())
            }
        ]
    );
    assert_eq!(
        portrait.defaults,
        Defaults {
            size: Size { width: 640, height: 512 },
            steps: 20,
            guidance_scale: 7.5,
            guidance_rescale: 0.7,
            scheduler: Some(SchedulerId::Dpmpp2mKarras),
            timestep_spacing: Some(Spacing::Trailing),
            negative_prompt: Some("no".into()),
            clip_skip: 1,
            long_prompts: LongPrompts::Chunk,
            prompt_syntax: PromptSyntax::Weighted,
        }
    );
    assert_eq!(
        serde_json::Value::from(portrait.metadata.clone()),
        serde_json::json!({
            "description": "…", "any_key": [1, 2.5, null, true, {"x": "y"}], "big": u64::MAX
        })
    );
    assert_eq!((mentions.len(), warnings.len()), (7, 0));
}

#[test]
fn loras_are_looked_for_beside_the_models_where_no_folder_is_named() {
    let text = "model_root: m\ndefault_mode: a\nmodes: {a: {model: x, loras: [y]}}";
    let modes = resolved(text).unwrap().modes;
    assert_eq!(modes.modes["a"].pipeline.loras[0].path, Path::new("/home/x/m/y"));
}

#[test]
fn modes_share_lines_through_anchors_and_merges() {
    let text = "model_root: m\ndefault_mode: b\nmodes:\n  a: &a {model: x, default_steps: 9}\n  \
                b: {<<: *a, model: y}\n";
    let modes = resolved(text).unwrap().modes;
    assert_eq!(modes.modes["b"].defaults.steps, 9);
    assert_eq!(modes.modes["b"].pipeline.checkpoint.name, "y");
}

#[test]
fn every_error_of_a_file_is_reported_at_once() {
    let text = r#"model_rot: models
lora_root: 7
default_mode: portrit
modes:
  portrait:
    modle: x.safetensors
    default_stps: 4
    default_steps: 0
    default_guidance: .inf
    default_size: 500x500
    default_scheduler: eulr
    default_negative_prompt: [a]
    clip_skip: "2"
    loras:
      - ../outside.safetensors
      - {path: /etc/passwd, strength: strong, adaptor_name: x}
      - {strength: 1}
      - 5
    metadata: {x: .nan, y: [1, -.inf]}
  "bad name!":
    model: ..
    zzz: 1
  nothing:
  text: x
"#;
    insta::assert_snapshot!(errors(text), @r#"
    modes.yaml:1:1: error: model_rot: unknown key; did you mean 'model_root'?
    modes.yaml:1:1: error: required key 'model_root' is missing
    modes.yaml:2:12: error: lora_root: expected text, found the number 7; put it in quotes
    modes.yaml:3:15: error: default_mode: there is no mode 'portrit'; did you mean 'portrait'?
    modes.yaml:5:3: error: modes.portrait: required key 'model' is missing
    modes.yaml:6:5: error: modes.portrait.modle: unknown key; did you mean 'model'?
    modes.yaml:7:5: error: modes.portrait.default_stps: unknown key; did you mean 'default_steps'?
    modes.yaml:8:20: error: modes.portrait.default_steps: 0 is not between 1 and 999
    modes.yaml:9:23: error: modes.portrait.default_guidance: expected a finite number
    modes.yaml:10:19: error: modes.portrait.default_size: 500x500: width and height must be positive multiples of 8
    modes.yaml:11:24: error: modes.portrait.default_scheduler: there is no scheduler 'eulr'; did you mean 'euler'? (there are: …)
    modes.yaml:12:30: error: modes.portrait.default_negative_prompt: expected text, found a list
    modes.yaml:13:16: error: modes.portrait.clip_skip: expected a whole number, found the text '2'
    modes.yaml:15:9: error: modes.portrait.loras[0]: must stay inside its root folder: '..' is not allowed
    modes.yaml:16:16: error: modes.portrait.loras[1].path: must be relative to its root folder, not an absolute path
    modes.yaml:16:39: error: modes.portrait.loras[1].strength: expected a number, found the text 'strong'
    modes.yaml:16:47: error: modes.portrait.loras[1].adaptor_name: unknown key; did you mean 'adapter_name'?
    modes.yaml:17:9: error: modes.portrait.loras[2]: required key 'path' is missing
    modes.yaml:18:9: error: modes.portrait.loras[3]: expected a file name or a mapping {path, strength, adapter_name}
    modes.yaml:19:19: error: modes.portrait.metadata.x: expected a finite number (JSON has no other)
    modes.yaml:19:32: error: modes.portrait.metadata.y[1]: expected a finite number (JSON has no other)
    modes.yaml:20:3: error: modes."bad name!": a mode's name is made of letters, digits, '.', '_' and '-'
    modes.yaml:21:12: error: modes."bad name!".model: must stay inside its root folder: '..' is not allowed
    modes.yaml:22:5: error: modes."bad name!".zzz: unknown key (known keys: model, vae, loras, on_lora_error, prediction, default_size, default_steps, default_guidance, guidance_rescale, default_scheduler, timestep_spacing, default_negative_prompt, clip_skip, long_prompts, prompt_syntax, pinned, preload, timeout, metadata)
    modes.yaml:23:10: error: modes.nothing: expected a mapping (key: value), found nothing
    modes.yaml:24:9: error: modes.text: expected a mapping (key: value), found the text 'x'
    "#);
}

#[test]
fn a_value_that_does_not_fit_says_what_would() {
    let table = [
        "default_steps: 4.5",
        "default_steps: 1000",
        "default_steps: many",
        "default_steps: -99999999999999999999999",
        "default_guidance: -1",
        "default_guidance: 1e300",
        "default_guidance: true",
        "default_size: 512",
        "default_size: 4096x4104",
        "clip_skip: 13",
        "default_negative_prompt: 3",
        "loras: a.safetensors",
        "metadata: text",
        "loras: [{path: a, strength: .nan}]",
        "loras: ['']",
        "loras: [.]",
        "default_scheduler: true",
        "vae: /x/vae.safetensors",
        "vae: [x]",
        "prediction: epsilo",
        "on_lora_error: true",
        "long_prompts: chunked",
        "prompt_syntax: weighed",
        "timestep_spacing: 7",
        "guidance_rescale: 1.1",
        "guidance_rescal: 1",
        "loras: [{path: a, strength: -101}]",
        "default_size: 2048x2056",
    ];
    let lines: Vec<_> = table.iter().map(|line| errors_of_mode(line)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    modes.yaml:6:20: error: modes.a.default_steps: expected a whole number, found the number 4.5
    modes.yaml:6:20: error: modes.a.default_steps: 1000 is not between 1 and 999
    modes.yaml:6:20: error: modes.a.default_steps: expected a whole number, found the text 'many'
    modes.yaml:6:20: error: modes.a.default_steps: expected a whole number, found the number -100000000000000000000000
    modes.yaml:6:23: error: modes.a.default_guidance: -1 is not between 0 and 100
    modes.yaml:6:23: error: modes.a.default_guidance: expected a finite number
    modes.yaml:6:23: error: modes.a.default_guidance: expected a number, found true
    modes.yaml:6:19: error: modes.a.default_size: '512' is not a size; write it as WIDTHxHEIGHT, for example 512x512
    modes.yaml:6:19: error: modes.a.default_size: 4096x4104 is larger than 16777216 pixels (4096x4096)
    modes.yaml:6:16: error: modes.a.clip_skip: 13 is not between 0 and 12
    modes.yaml:6:30: error: modes.a.default_negative_prompt: expected text, found the number 3; put it in quotes
    modes.yaml:6:12: error: modes.a.loras: expected a list, found the text 'a.safetensors'
    modes.yaml:6:15: error: modes.a.metadata: expected a mapping (key: value), found the text 'text'
    modes.yaml:6:33: error: modes.a.loras[0].strength: expected a finite number
    modes.yaml:6:13: error: modes.a.loras[0]: is not the name of a file
    modes.yaml:6:13: error: modes.a.loras[0]: is not the name of a file
    modes.yaml:6:24: error: modes.a.default_scheduler: there is no scheduler 'true' (there are: …)
    modes.yaml:6:10: error: modes.a.vae: must be relative to its root folder, not an absolute path
    modes.yaml:6:10: error: modes.a.vae: expected text, found a list
    modes.yaml:6:17: error: modes.a.prediction: there is no prediction 'epsilo'; did you mean 'epsilon'? (there are: epsilon, v)
    modes.yaml:6:20: error: modes.a.on_lora_error: there is no choice 'true' (there are: fail, skip)
    modes.yaml:6:19: error: modes.a.long_prompts: there is no choice 'chunked'; did you mean 'chunk'? (there are: cut, chunk)
    modes.yaml:6:20: error: modes.a.prompt_syntax: there is no prompt syntax 'weighed'; did you mean 'weighted'? (there are: plain, weighted)
    modes.yaml:6:23: error: modes.a.timestep_spacing: there is no timestep spacing '7' (there are: leading, linspace, trailing)
    modes.yaml:6:23: error: modes.a.guidance_rescale: 1.1 is not between 0 and 1
    modes.yaml:6:5: error: modes.a.guidance_rescal: unknown key; did you mean 'guidance_rescale'?
    modes.yaml:6:33: error: modes.a.loras[0].strength: -101 is not between -100 and 100
    modes.yaml:6:19: error: modes.a.default_size: 2048x2056 is more than the 4194304 pixels of max_pixels
    "#);
}

#[test]
fn a_file_of_another_shape() {
    let table = [
        "[]",
        "model_root: m",
        "model_root: m\ndefault_mode: a\nmodes: {}",
        "model_root: ''\ndefault_mode: 3\nmodes: {a: {model: x}}",
        "model_root: m\ndefault_mode: [a]\nmodes: [a]",
        "model_root: m\ndefault_mode: ..\nmodes: {..: {model: x}, '': {model: x}}",
        "model_root: m\ndefault_mode: a\nmax_pixels: 16777217\nmodes: {a: {model: x}}",
        "model_root: m\ndefault_mode: a\nmax_pixels: 63\nmax_pixel: 1\nmodes: {a: {model: x}}",
        "model_root: m\ndefault_mode: a\nmax_pixels: 512x512\nmodes: {a: {model: x}}",
        "model_root: m\ndefault_mode: a\nmax_pixels: 4096\nmodes: {a: {model: x}, \
         b: {model: x, default_size: 64x72}, c: {model: x, default_size: 64x64}}",
    ];
    let lines: Vec<_> = table.iter().map(|text| errors(text)).collect();
    insta::assert_snapshot!(lines.join("\n--\n"), @r#"
    modes.yaml:1:1: error: expected a mapping (key: value), found a list
    --
    modes.yaml:1:1: error: required key 'default_mode' is missing
    modes.yaml:1:1: error: required key 'modes' is missing
    --
    modes.yaml:2:15: error: default_mode: there is no mode 'a'
    modes.yaml:3:8: error: modes: declares no mode; at least one is needed
    --
    modes.yaml:1:13: error: model_root: is empty; write '.' for the folder of this file
    modes.yaml:2:15: error: default_mode: expected text, found the number 3; put it in quotes
    --
    modes.yaml:2:15: error: default_mode: expected text, found a list
    modes.yaml:3:8: error: modes: expected a mapping (key: value), found a list
    --
    modes.yaml:3:9: error: modes."..": a mode's name is made of letters, digits, '.', '_' and '-'
    modes.yaml:3:25: error: modes."": a mode's name is made of letters, digits, '.', '_' and '-'
    --
    modes.yaml:3:13: error: max_pixels: 16777217 is not between 64 and 16777216
    --
    modes.yaml:3:13: error: max_pixels: 63 is not between 64 and 16777216
    modes.yaml:4:1: error: max_pixel: unknown key; did you mean 'max_pixels'?
    --
    modes.yaml:3:13: error: max_pixels: expected a whole number, found the text '512x512'
    --
    modes.yaml:4:9: error: modes.a.default_size: 512x512 is more than the 4096 pixels of max_pixels
    modes.yaml:4:52: error: modes.b.default_size: 64x72 is more than the 4096 pixels of max_pixels
    "#);
}

#[test]
fn the_order_of_work() {
    let file = "model_root: m\ndefault_mode: a\nmodes: {a: {model: x}}\n";
    for (lines, scheduling, seconds) in [
        ("", Scheduling::Fifo, 30),
        ("scheduling:\nmax_wait: ~", Scheduling::Fifo, 30),
        ("scheduling: affinity", Scheduling::Affinity, 30),
        ("max_wait: 2m", Scheduling::Fifo, 120),
    ] {
        let order = resolved(&format!("{file}{lines}\n")).unwrap().modes.order;
        let max_wait = Time::of_secs(seconds);
        assert_eq!(order, Order { scheduling, max_wait, fair: false }, "{lines}");
    }
    assert!(resolved(&format!("{file}fair: true\n")).unwrap().modes.order.fair);
    let wrong = format!("{file}scheduling: affine\nmax_wait: off\nfair: yes\n");
    insta::assert_snapshot!(errors(&wrong), @"
    modes.yaml:4:13: error: scheduling: there is no choice 'affine'; did you mean 'affinity'? (there are: fifo, affinity)
    modes.yaml:5:11: error: max_wait: 'off' is not a time: write 90s, 10m, 2h or 7d
    modes.yaml:6:7: error: fair: expected true or false, found the text 'yes'
    ");
}

#[test]
fn how_long_drawing_may_take() {
    let text = "model_root: m\ndefault_mode: a\ntimeout: 10m\n\
                modes: {a: {model: x}, b: {model: x, timeout: 90s}, c: {model: x, timeout: off}}\n";
    let modes = resolved(text).unwrap().modes;
    let said: Vec<_> = modes.modes.values().map(|mode| mode.timeout.secs()).collect();
    assert_eq!((modes.timeout.secs(), said), (Some(600), vec![None, Some(90), None]));
    insta::assert_snapshot!(errors(&text.replace("10m", "10").replace("90s", "1.5h")), @"
    modes.yaml:3:10: error: timeout: '10' is not a time: write 90s, 10m, 2h or 7d, off or auto
    modes.yaml:4:47: error: modes.b.timeout: '1.5h' is not a time: write 90s, 10m, 2h or 7d, off or auto
    ");
}

#[test]
fn what_is_kept_of_jobs() {
    let file = "model_root: m\ndefault_mode: a\nmodes: {a: {model: x}}\n";
    let other = Jobs::default();
    let short = Retention { max_age: Time::of_secs(3600), max_jobs: 5, max_bytes: 1 << 29 };
    for (line, expected) in [
        ("", other),
        ("jobs:", other),
        ("jobs: {journal: off}", Jobs { journal: Switch::Off, ..other }),
        ("jobs: {max_attempts: 7}", Jobs { max_attempts: 7, ..other }),
        (
            "jobs: {retention: {max_age: 1h, max_jobs: 5, max_gb: 0.5}}",
            Jobs { retention: short, ..other },
        ),
    ] {
        assert_eq!(resolved(&format!("{file}{line}\n")).unwrap().modes.jobs, expected, "{line}");
    }
    let wrong =
        "jobs: {journal: maybe, max_attempts: 0, retain: 1, retention: {max_gb: -1, max_age: 1}}";
    insta::assert_snapshot!(errors(&format!("{file}{wrong}\n")), @"
    modes.yaml:4:17: error: jobs.journal: there is no choice 'maybe' (there are: on, off)
    modes.yaml:4:38: error: jobs.max_attempts: 0 is not between 1 and 100
    modes.yaml:4:41: error: jobs.retain: unknown key; did you mean 'retention'?
    modes.yaml:4:72: error: jobs.retention.max_gb: -1 is not between 0 and 1000000
    modes.yaml:4:85: error: jobs.retention.max_age: '1' is not a time: write 90s, 10m, 2h or 7d
    ");
}

#[test]
fn an_upscaler_is_a_name_or_a_mapping() {
    let text = |superres: &str| {
        format!(
            "model_root: m\ndefault_mode: a\nmodes: {{a: {{model: x}}}}\nsuperres: {superres}\n"
        )
    };
    let expected = CheckpointRef { name: "e/x4".into(), path: "/home/x/m/e/x4".into() };
    for superres in ["e/x4", "{model: e/x4}"] {
        let Resolved { modes, mentions, .. } = resolved(&text(superres)).unwrap();
        assert_eq!(modes.superres.as_ref(), Some(&expected), "{superres}");
        let mention = mentions.iter().find(|mention| mention.name == "e/x4").unwrap();
        assert_eq!((&mention.path, mention.at.line), (&expected.path, 4));
    }
    assert_eq!(resolved(&text("")).unwrap().modes.superres, None);
    for (superres, expected) in [
        ("4", "modes.yaml:4:11: error: superres: expected a file name or a mapping {model}"),
        ("{}", "modes.yaml:4:11: error: superres: required key 'model' is missing"),
        (
            "{modle: x}",
            "modes.yaml:4:12: error: superres.modle: unknown key; did you mean 'model'?",
        ),
        (
            "../x",
            "modes.yaml:4:11: error: superres: must stay inside its root folder: '..' is not allowed",
        ),
    ] {
        let errors = errors(&text(superres));
        assert!(errors.lines().any(|line| line == expected), "{superres}: {errors}");
    }
}
