//! Schema, example and parser say the same.

use std::path::Path;

use regex::Regex;

use super::*;
use crate::config::{
    diagnostic::KeyPath,
    raw,
    reader::{Errors, Field},
    resolve::{
        LORA_KEYS, MODE_KEYS, ROOT_KEYS,
        custom::COMMAND_KEYS,
        http::HTTP_KEYS,
        jobs::{JOBS_KEYS, RETENTION_KEYS},
        memory::{LORA_CACHE_KEYS, MEMORY_KEYS},
        resolve,
        webhooks::WEBHOOKS_KEYS,
    },
};

fn parsed() -> Value {
    serde_json::from_str(&schema()).unwrap()
}

fn as_json(yaml: &str) -> Value {
    let root = raw::parse(yaml).unwrap();
    let mut errors = Errors::new(Path::new("m").into());
    Field { node: &root, key: KeyPath::default() }.json(&mut errors).unwrap()
}

/// Whether the parser takes it.
fn resolves(yaml: &str) -> bool {
    let root = raw::parse(yaml).unwrap();
    resolve(&root, Path::new("m").into(), Path::new("/x")).is_ok()
}

/// As much of JSON Schema as ours uses.
fn fits(value: &Value, schema: &Value, whole: &Value) -> bool {
    let Some(rules) = schema.as_object() else { return true };
    rules.iter().all(|(rule, asked)| match rule.as_str() {
        "$schema" | "title" | "description" | "definitions" => true,
        "$ref" => {
            let pointer = asked.as_str().unwrap().strip_prefix('#').unwrap();
            fits(value, whole.pointer(pointer).unwrap(), whole)
        }
        "type" => {
            let is = |kind: &Value| match kind.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                "number" => value.is_number(),
                "null" => value.is_null(),
                other => panic!("{other}"),
            };
            asked.as_array().map_or_else(|| is(asked), |kinds| kinds.iter().any(is))
        }
        "enum" => asked.as_array().unwrap().contains(value),
        "anyOf" => asked.as_array().unwrap().iter().any(|asked| fits(value, asked, whole)),
        "pattern" => {
            let pattern = Regex::new(asked.as_str().unwrap()).unwrap();
            value.as_str().is_none_or(|text| pattern.is_match(text))
        }
        "minLength" => {
            value.as_str().is_none_or(|text| text.len() as u64 >= asked.as_u64().unwrap())
        }
        "maxLength" => {
            value.as_str().is_none_or(|text| text.len() as u64 <= asked.as_u64().unwrap())
        }
        "minimum" => value.as_f64().is_none_or(|number| number >= asked.as_f64().unwrap()),
        "exclusiveMinimum" => value.as_f64().is_none_or(|number| number > asked.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|number| number <= asked.as_f64().unwrap()),
        "minItems" => {
            value.as_array().is_none_or(|items| items.len() as u64 >= asked.as_u64().unwrap())
        }
        "minProperties" => {
            value.as_object().is_none_or(|object| object.len() as u64 >= asked.as_u64().unwrap())
        }
        "required" => value.as_object().is_none_or(|object| {
            asked.as_array().unwrap().iter().all(|key| object.contains_key(key.as_str().unwrap()))
        }),
        "items" => {
            value.as_array().is_none_or(|items| items.iter().all(|item| fits(item, asked, whole)))
        }
        "propertyNames" => value
            .as_object()
            .is_none_or(|object| object.keys().all(|key| fits(&key.as_str().into(), asked, whole))),
        "properties" => value.as_object().is_none_or(|object| {
            let known = asked.as_object().unwrap();
            object
                .iter()
                .all(|(key, value)| known.get(key).is_none_or(|rule| fits(value, rule, whole)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|object| {
            let known = rules.get("properties").and_then(Value::as_object);
            let others = object
                .iter()
                .filter(|(key, _)| known.is_none_or(|known| !known.contains_key(*key)));
            let mut others = others.map(|(_, value)| value);
            if *asked == json!(false) {
                others.next().is_none()
            } else {
                others.all(|value| fits(value, asked, whole))
            }
        }),
        other => panic!("the test does not know '{other}'"),
    })
}

fn allowed(yaml: &str) -> bool {
    let schema = parsed();
    fits(&as_json(yaml), &schema, &schema)
}

#[test]
fn the_shipped_schema_is_the_printed_one() {
    assert_eq!(include_str!("../../../modes.schema.json"), schema() + "\n");
}

#[test]
fn it_has_the_keys_that_the_parser_knows() {
    let schema = parsed();
    for (pointer, keys) in [
        ("/properties", &ROOT_KEYS[..]),
        ("/properties/memory/properties", &MEMORY_KEYS),
        ("/properties/memory/properties/lora_cache/properties", &LORA_CACHE_KEYS),
        ("/properties/webhooks/properties", &WEBHOOKS_KEYS),
        ("/properties/http/properties", &HTTP_KEYS),
        ("/properties/jobs/properties", &JOBS_KEYS),
        ("/properties/jobs/properties/retention/properties", &RETENTION_KEYS),
        ("/properties/custom_jobs/additionalProperties/properties", &COMMAND_KEYS),
        ("/definitions/mode/properties", &MODE_KEYS),
        ("/definitions/lora/properties", &LORA_KEYS),
    ] {
        let mut known: Vec<&str> = keys.to_vec();
        known.sort_unstable();
        let properties = schema.pointer(pointer).unwrap().as_object().unwrap();
        assert_eq!(properties.keys().collect::<Vec<_>>(), known, "{pointer}");
    }
}

#[test]
fn the_example_names_it_and_fits_it() {
    let example = include_str!("../../../modes.yaml.example");
    assert!(example.starts_with("# yaml-language-server: $schema=modes.schema.json\n"));
    assert!(allowed(example));
    let shown: String =
        example.lines().map(|line| format!("{}\n", line.replacen("#: ", "", 1))).collect();
    assert!(allowed(&shown) && resolves(&shown));
}

/// A file whose mode has that line, and one that has it at the top.
fn in_mode(line: &str) -> String {
    format!("model_root: m\ndefault_mode: a\nmodes: {{a: {{model: x, {line}}}}}\n")
}

fn in_memory(line: &str) -> String {
    at_the_top(&format!("memory: {{{line}}}"))
}

fn in_jobs(line: &str) -> String {
    at_the_top(&format!("jobs: {{{line}}}"))
}

fn in_webhooks(line: &str) -> String {
    at_the_top(&format!("webhooks: {{{line}}}"))
}

fn in_command(line: &str) -> String {
    at_the_top(&format!("custom_jobs: {{job: {{command: [x], {line}}}}}"))
}

fn in_lora_cache(line: &str) -> String {
    in_memory(&format!("lora_cache: {{{line}}}"))
}

fn at_the_top(line: &str) -> String {
    let mode = "{model: x, default_size: 8x8}";
    format!("model_root: m\ndefault_mode: a\nmodes: {{a: {mode}}}\n{line}\n")
}

const AT_THE_TOP: [&str; 16] = [
    "max_pixels",
    "watch",
    "lora_root",
    "scheduling",
    "max_wait",
    "fair",
    "timeout",
    "memory",
    "jobs",
    "custom_jobs",
    "webhooks",
    "http",
    "superres",
    "engine",
    "device",
    "precision",
];

#[test]
fn it_allows_what_the_parser_takes() {
    type InFile = fn(&str) -> String;
    let places: [(&[&str], InFile); 10] = [
        (&MODE_KEYS, in_mode),
        (&AT_THE_TOP, at_the_top),
        (&["command"], |line| at_the_top(&format!("custom_jobs: {{job: {{{line}}}}}"))),
        (&["timeout", "description"], in_command),
        (&WEBHOOKS_KEYS, in_webhooks),
        (&HTTP_KEYS, |line| at_the_top(&format!("http: {{{line}}}"))),
        (&JOBS_KEYS, in_jobs),
        (&RETENTION_KEYS, |line| in_jobs(&format!("retention: {{{line}}}"))),
        (&MEMORY_KEYS, in_memory),
        (&LORA_CACHE_KEYS, in_lora_cache),
    ];
    let keys = places.iter().flat_map(|(keys, file)| keys.iter().map(|key| (*key, *file)));
    let keys: Vec<_> = keys.filter(|(key, _)| *key != "model").collect();
    for value in [
        "~",
        "1",
        "0",
        "-1",
        "1.5",
        "1000",
        "4194304",
        "99999999999",
        "true",
        "false",
        "yes",
        "1001",
        "10000",
        "10001",
        "1000000",
        "1000000.5",
        "0.0",
        "-0.5",
        "90s",
        "' 10 m '",
        "0s",
        "10d",
        "lru",
        "fifo",
        "affinity",
        "memory_pressure",
        "{max_models: 2}",
        "{max_models: 0}",
        "{max_request_pipelines: 0}",
        "{max_request_pipelines: 8}",
        "{max_gb: 0.5}",
        "{max_gb: many}",
        "x",
        "''",
        "[]",
        "{}",
        "[x]",
        "[a.b.]",
        "[a..b]",
        "['*']",
        "['https://x.example:8080']",
        "['https://x/y']",
        "['http://[::1]:80']",
        "{hosts: [x], max_connections: 2}",
        "[{path: x}]",
        "[{path: x, strength: 2}]",
        "[{path: x, strength: 101}]",
        "[{strength: 1}]",
        "[{path: x, adapter_name: y}]",
        "[{path: x, other: 1}]",
        "[1]",
        "auto",
        "cpu",
        "cuda:120",
        "candle",
        "fp32",
        "off",
        "fail",
        "skip",
        "v",
        "epsilon",
        "64x64",
        "64",
        "euler",
        "euler_b",
        "trailing",
        "cut",
        "chunk",
        "weighted",
        "{k: [1]}",
        "{k: {command: [x]}}",
        "{'a b': {command: [x]}}",
        "{secret: x, first_retry: 2s}",
        "{model: x}",
        "{model: ~}",
        "{model: x, other: 1}",
    ] {
        for (key, file) in &keys {
            // What is between two quotes is for the disk to say.
            if value == "''" && ["vae", "lora_root"].contains(key) {
                continue;
            }
            let text = file(&format!("{key}: {value}"));
            assert_eq!(allowed(&text), resolves(&text), "{text}");
        }
    }
    for text in ["a: 1", "[]", "model_root: m", "model_root: m\ndefault_mode: a\nmodes: {}"] {
        assert!(!allowed(text) && !resolves(text), "{text}");
    }
    for name in ["a b", "ü", "a/b", "..", &"x".repeat(65)] {
        let text =
            format!("model_root: m\ndefault_mode: '{name}'\nmodes: {{'{name}': {{model: x}}}}");
        assert!(!allowed(&text) && !resolves(&text), "{text}");
    }
}
