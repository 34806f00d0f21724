use std::{path::Path, time::Duration};

use super::*;
use crate::{
    config::{
        raw,
        resolve::{Resolved, resolve},
        variables,
    },
    modes::{Eviction, IdleUnload},
};

const MODES: &str = "model_root: m\ndefault_mode: a\nmodes: {a: {model: x}}\n";

fn resolved(text: &str) -> Result<Resolved, String> {
    let file = Path::new("modes.yaml");
    let mut root = raw::parse(text).unwrap();
    let variable = |name: &str| match name {
        "TEN" => Some("10".to_owned()),
        "NO" => Some("no".to_owned()),
        _ => None,
    };
    variables::expand(&mut root, &variable, &mut Errors::new(file.into()));
    let lines = |found: Vec<Diagnostic>| {
        found.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join("\n")
    };
    resolve(&root, file.into(), Path::new("/home/x")).map_err(lines)
}

fn memory(section: &str) -> Memory {
    let text = format!("{MODES}{section}\n");
    resolved(&text).unwrap_or_else(|errors| panic!("{errors}")).modes.memory
}

#[test]
fn every_key_is_optional() {
    let other = Memory::default();
    let set = |set: &dyn Fn(&mut Memory)| {
        let mut memory = Memory::default();
        set(&mut memory);
        memory
    };
    let ten_minutes = IdleUnload::After(Duration::from_secs(600));
    for (text, expected) in [
        ("", other.clone()),
        ("memory:", other.clone()),
        ("memory: {}", other.clone()),
        (
            "memory: {max_models: , limit_gb: ~, eviction: , verify: null, lora_cache: , host_cache_gb: }",
            other,
        ),
        ("memory: {host_cache_gb: 0}", Memory::default()),
        ("memory: {host_cache_gb: 1.5}", set(&|it| it.host_cache_bytes = 3 << 29)),
        ("memory: {host_cache_gb: '${TEN}'}", set(&|it| it.host_cache_bytes = 10 << 30)),
        ("memory: {max_models: 1000}", set(&|it| it.max_models = Some(1000))),
        ("memory: {max_models: '${TEN}'}", set(&|it| it.max_models = Some(10))),
        ("memory: {max_request_pipelines: ~}", Memory::default()),
        ("memory: {max_request_pipelines: 1}", set(&|it| it.max_request_pipelines = 1)),
        ("memory: {limit_gb: 1.5}", set(&|it| it.limit_bytes = Some(3 << 29))),
        ("memory: {limit_gb: 24}", set(&|it| it.limit_bytes = Some(24 << 30))),
        ("memory: {limit_gb: 1000000}", set(&|it| it.limit_bytes = Some(1_000_000 << 30))),
        ("memory: {limit_gb: '${TEN}.25'}", set(&|it| it.limit_bytes = Some(41 << 28))),
        ("memory: {limit_gb: 1e-20}", set(&|it| it.limit_bytes = Some(1))),
        ("memory: {eviction: fifo}", set(&|it| it.eviction = Eviction::Fifo)),
        ("memory: {eviction: memory_pressure}", set(&|it| it.eviction = Eviction::MemoryPressure)),
        ("memory: {idle_unload: off}", set(&|it| it.idle_unload = IdleUnload::Never)),
        ("memory: {idle_unload: 600s}", set(&|it| it.idle_unload = ten_minutes)),
        ("memory: {idle_unload: '${TEN}m'}", set(&|it| it.idle_unload = ten_minutes)),
        ("memory: {verify: true}", set(&|it| it.verify = true)),
        ("memory: {verify: TRUE}", set(&|it| it.verify = true)),
        ("memory: {verify: '${V:-True}'}", set(&|it| it.verify = true)),
        ("memory: {lora_cache: {max_files: 0}}", set(&|it| it.lora_cache.max_files = 0)),
        ("memory: {lora_cache: {max_gb: 0}}", set(&|it| it.lora_cache.max_bytes = 0)),
        ("memory: {lora_cache: {max_gb: 0.5}}", set(&|it| it.lora_cache.max_bytes = 1 << 29)),
    ] {
        assert_eq!(memory(text), expected, "{text}");
    }
}

#[test]
fn a_mode_is_pinned_and_preloaded_where_it_says_so() {
    let text = "model_root: m\ndefault_mode: a\nmodes: {a: {model: x}, b: {model: x, pinned: true}, \
                c: {model: x, preload: true, pinned: '${P:-false}'}}";
    let modes = resolved(text).unwrap().modes.modes;
    let said: Vec<_> = modes.values().map(|mode| (mode.pinned, mode.preload)).collect();
    assert_eq!(said, [(false, false), (true, false), (false, true)]);
}

#[test]
fn a_value_that_does_not_fit_says_what_would() {
    let table = [
        "memory: big",
        "memory: [lru]",
        "memory: {max_models: 0, limit_gb: 0, lora_cache: {max_files: 10001, max_gb: -1}}",
        "memory: {max_models: 1001, limit_gb: 1000000.5, lora_cache: {max_gb: 1000001}}",
        "memory: {max_models: 1.5, limit_gb: 24gb, lora_cache: {max_files: few, max_gb: [4]}}",
        "memory: {limit_gb: .inf, lora_cache: {max_gb: .nan}}",
        "memory: {limit_gb: '${NO}', max_models: '${NO}', verify: '${NO}'}",
        "memory: {limit_gb: -0.5, lora_cache: 4}",
        "memory: {eviction: lrru, verify: yes, idle_unload: 90}",
        "memory: {eviction: true, verify: 1, idle_unload: never}",
        "memory: {verify: \"true\", idle_unload: 0s}",
        "memory: {max_model: 2, lora_cach: {}}",
        "memory: {lora_cache: {max_file: 2, zzz: 1}}",
        "memori: {}",
    ];
    let lines: Vec<_> = table
        .iter()
        .map(|section| resolved(&format!("{MODES}{section}\n")).expect_err(section))
        .collect();
    insta::assert_snapshot!(lines.join("\n--\n"), @r"
    modes.yaml:4:9: error: memory: expected a mapping (key: value), found the text 'big'
    --
    modes.yaml:4:9: error: memory: expected a mapping (key: value), found a list
    --
    modes.yaml:4:22: error: memory.max_models: 0 is not between 1 and 1000
    modes.yaml:4:35: error: memory.limit_gb: 0 is not more than 0 and at most 1000000
    modes.yaml:4:62: error: memory.lora_cache.max_files: 10001 is not between 0 and 10000
    modes.yaml:4:77: error: memory.lora_cache.max_gb: -1 is not between 0 and 1000000
    --
    modes.yaml:4:22: error: memory.max_models: 1001 is not between 1 and 1000
    modes.yaml:4:38: error: memory.limit_gb: 1000000.5 is not more than 0 and at most 1000000
    modes.yaml:4:70: error: memory.lora_cache.max_gb: 1000001 is not between 0 and 1000000
    --
    modes.yaml:4:22: error: memory.max_models: expected a whole number, found the number 1.5
    modes.yaml:4:37: error: memory.limit_gb: expected a number, found the text '24gb'
    modes.yaml:4:67: error: memory.lora_cache.max_files: expected a whole number, found the text 'few'
    modes.yaml:4:80: error: memory.lora_cache.max_gb: expected a number, found a list
    --
    modes.yaml:4:20: error: memory.limit_gb: expected a finite number
    modes.yaml:4:47: error: memory.lora_cache.max_gb: expected a finite number
    --
    modes.yaml:4:20: error: memory.limit_gb: expected a number, found the value of '${NO}'
    modes.yaml:4:41: error: memory.max_models: expected a whole number, found the value of '${NO}'
    modes.yaml:4:58: error: memory.verify: expected true or false, found the value of '${NO}'
    --
    modes.yaml:4:20: error: memory.limit_gb: -0.5 is not more than 0 and at most 1000000
    modes.yaml:4:38: error: memory.lora_cache: expected a mapping (key: value), found the number 4
    --
    modes.yaml:4:20: error: memory.eviction: there is no eviction policy 'lrru'; did you mean 'lru'? (there are: lru, fifo, memory_pressure)
    modes.yaml:4:34: error: memory.verify: expected true or false, found the text 'yes'
    modes.yaml:4:52: error: memory.idle_unload: '90' is not a time: write 90s, 10m, 2h or 7d, or off
    --
    modes.yaml:4:20: error: memory.eviction: there is no eviction policy 'true' (there are: lru, fifo, memory_pressure)
    modes.yaml:4:34: error: memory.verify: expected true or false, found the number 1
    modes.yaml:4:50: error: memory.idle_unload: 'never' is not a time: write 90s, 10m, 2h or 7d, or off
    --
    modes.yaml:4:18: error: memory.verify: expected true or false, found the text 'true'
    modes.yaml:4:39: error: memory.idle_unload: '0s' is not a time: write 90s, 10m, 2h or 7d, or off
    --
    modes.yaml:4:10: error: memory.max_model: unknown key; did you mean 'max_models'?
    modes.yaml:4:24: error: memory.lora_cach: unknown key; did you mean 'lora_cache'?
    --
    modes.yaml:4:23: error: memory.lora_cache.max_file: unknown key; did you mean 'max_files'?
    modes.yaml:4:36: error: memory.lora_cache.zzz: unknown key (known keys: max_files, max_gb)
    --
    modes.yaml:4:1: error: memori: unknown key; did you mean 'memory'?
    ");
}

#[test]
fn a_mode_is_told_of_what_is_not_true_or_false() {
    let table = ["pinned: yes", "preload: 1", "pinned: '${NO}'", "preload: []", "pined: true"];
    let mode = |line: &str| MODES.replace("model: x", &format!("model: x, {line}"));
    let lines: Vec<_> = table.iter().map(|line| resolved(&mode(line)).expect_err(line)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    modes.yaml:3:31: error: modes.a.pinned: expected true or false, found the text 'yes'
    modes.yaml:3:32: error: modes.a.preload: expected true or false, found the number 1
    modes.yaml:3:31: error: modes.a.pinned: expected true or false, found the value of '${NO}'
    modes.yaml:3:32: error: modes.a.preload: expected true or false, found a list
    modes.yaml:3:23: error: modes.a.pined: unknown key; did you mean 'pinned'?
    ");
}

/// What a file warns of whose modes are these, and at most so many of them loaded.
fn warnings(max_models: &str, modes: &str) -> String {
    let text = format!(
        "model_root: m\ndefault_mode: a\nmemory: {{max_models: {max_models}}}\nmodes: {modes}\n"
    );
    let warnings = resolved(&text).unwrap().warnings;
    warnings.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn more_wishes_than_room_are_warned_of() {
    let three = "{a: {model: x, pinned: true}, b: {model: y, pinned: true}, c: {model: z}}";
    let same = "{a: {model: x, pinned: true}, b: {model: x, pinned: true, default_steps: 9}}";
    let alone = "{a: {model: x}, b: {model: y, preload: true}}";
    for (max_models, modes) in [("", three), ("2", three), ("1", same), ("2", alone)] {
        assert_eq!(warnings(max_models, modes), "", "{max_models}: {modes}");
    }
    let many: Vec<_> = (0..9).map(|i| format!("m{i}: {{model: x{i}, preload: true}}")).collect();
    let many = format!("{{a: {{model: x, loras: [y], pinned: true}}, {}}}", many.join(", "));
    insta::assert_snapshot!(
        [warnings("1", three), warnings("1", alone), warnings("4", &many)].join("\n"),
        @r"
    modes.yaml:3:22: warning: memory.max_models: 1 is fewer than the 2 models of the modes with 'pinned': a, b
    modes.yaml:3:22: warning: memory.max_models: 1 is fewer than the 2 models of the default mode and the modes with 'preload': a, b
    modes.yaml:3:22: warning: memory.max_models: 4 is fewer than the 10 models of the default mode and the modes with 'preload': a, m0, m1, m2, m3, …
    "
    );
}
