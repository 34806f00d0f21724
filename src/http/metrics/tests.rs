use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::*;
use crate::{
    config::Revision,
    dispatcher::Times,
    modes::{CheckpointRef, PipelineSpec},
    vram::{
        Loaded, ResidentModel,
        ledger::{Component, LoraCacheUse, PipelineId},
    },
};

/// What a strict reader makes of the text: the types of families, and the value of each series.
struct Read {
    types: BTreeMap<String, String>,
    series: BTreeMap<String, f64>,
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// The rest behind `{name="value",…}`.
fn after_labels(text: &str) -> &str {
    let mut rest = text.strip_prefix('{').unwrap();
    loop {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{text}"));
        assert!(is_name(name) && !name.contains(':'), "{text}");
        let mut escaped = false;
        let end = value.char_indices().find(|(_, c)| {
            if escaped {
                assert!(matches!(c, '\\' | '"' | 'n'), "{text}");
            }
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let (end, _) = end.unwrap_or_else(|| panic!("an open string: {text}"));
        rest = &value[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return rest.strip_prefix('}').unwrap_or_else(|| panic!("{text}")),
        }
    }
}

fn read(text: &str) -> Read {
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let (mut types, mut series) = (BTreeMap::new(), BTreeMap::new());
    let (mut helped, mut closed) = (BTreeSet::new(), BTreeSet::<String>::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, says) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !says.is_empty() && helped.insert(name.to_owned()), "{line}");
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
            assert!(helped.contains(name), "{line}");
            assert!(closed.insert(std::mem::replace(&mut current, name.to_owned())), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            continue;
        }
        let end = line.find(['{', ' ']).unwrap();
        let (name, rest) = line.split_at(end);
        let value = if rest.starts_with('{') { after_labels(rest) } else { rest };
        let value: f64 = value.strip_prefix(' ').unwrap().parse().unwrap();
        assert!(is_name(name) && value.is_finite() && value >= 0.0, "{line}");
        let family = match types[&current].as_str() {
            "summary" => name.strip_suffix("_sum").or(name.strip_suffix("_count")).unwrap(),
            _ => name,
        };
        assert_eq!(family, current, "a sample of another family: {line}");
        let (key, _) = line.rsplit_once(' ').unwrap();
        assert!(series.insert(key.to_owned(), value).is_none(), "twice: {line}");
    }
    Read { types, series }
}

fn model(mode: &str, id: u64, bytes: u64) -> ResidentModel {
    let checkpoint = CheckpointRef { name: "x".into(), path: PathBuf::from("/secret/x") };
    let unet = Component {
        name: "unet".into(),
        stored: "fp16".into(),
        dtype: "fp32".into(),
        file_bytes: 1,
        bytes,
    };
    ResidentModel {
        loaded: Loaded {
            id: PipelineId(id),
            mode: mode.into(),
            pipeline: PipelineSpec::of(checkpoint),
            family: "SD1.x".into(),
            components: vec![unet],
            estimated_bytes: 2,
            measured_bytes: 2,
            load_ms: 1,
            merge_ms: 1,
            loras: vec![],
        },
        active: false,
        pinned: false,
        own_bytes: 1,
        shared_bytes: 1,
        activation_peak_bytes: None,
        last_used_unix_ms: 7,
    }
}

fn config() -> ConfigStatus {
    let in_force = Revision { id: String::new(), at: SystemTime::UNIX_EPOCH, by: Origin::Start };
    ConfigStatus { in_force, warnings: [].into(), rejected: None, reloads: BTreeMap::new() }
}

#[test]
fn the_text_is_what_a_strict_reader_reads() {
    let mut status = Status { paused: true, degraded: Some("gone".into()), ..Status::default() };
    status.counters.jobs.insert((JobKind::Load, Ending::Failed), 3);
    status.counters.waits = Times { count: 2, total: Duration::from_millis(2500) };
    let denoise = Times { count: 1, total: Duration::from_millis(125) };
    status.counters.stages.insert(Stage::Denoise, denoise);
    status.vram = Snapshot {
        total_bytes: 16 << 30,
        process_bytes: Some(6),
        reserved_bytes: 5,
        peak_bytes: 7,
        lora_cache: LoraCacheUse { files: 1, bytes: 1, hits: 5, misses: 4 },
        // What configuration lets through as a name is less than this.
        models: vec![model("a\"b\\c\nd", 1, 10), model("a", 2, 20), model("a", 3, 1)],
        loads: BTreeMap::from([("a".into(), 2), ("a\"b\\c\nd".into(), 1)]),
        evictions: BTreeMap::from([(Reason::Idle, 9)]),
        ..Snapshot::default()
    };
    let Read { types, series } = read(&exposition(&status, &config()));
    assert_eq!(types["diffused_stage_seconds"], "summary");
    for (key, value) in [
        ("diffused_jobs_running", 0.0),
        ("diffused_jobs_total{type=\"load\",outcome=\"failed\"}", 3.0),
        ("diffused_jobs_total{type=\"mode_switch\",outcome=\"cancelled\"}", 0.0),
        ("diffused_queue_wait_seconds_sum", 2.5),
        ("diffused_queue_wait_seconds_count", 2.0),
        ("diffused_stage_seconds_sum{stage=\"denoise\"}", 0.125),
        ("diffused_stage_seconds_count{stage=\"merge\"}", 0.0),
        ("diffused_pipeline_loads_total{mode=\"a\"}", 2.0),
        ("diffused_pipeline_loads_total{mode=\"a\\\"b\\\\c\\nd\"}", 1.0),
        ("diffused_model_bytes{mode=\"a\",component=\"unet\"}", 21.0),
        ("diffused_evictions_total{reason=\"idle\"}", 9.0),
        ("diffused_evictions_total{reason=\"max_models\"}", 0.0),
        ("diffused_device_bytes{kind=\"total\"}", f64::from(1 << 30) * 16.0),
        ("diffused_device_bytes{kind=\"worker\"}", 6.0),
        ("diffused_reserved_bytes", 5.0),
        ("diffused_peak_bytes", 7.0),
        ("diffused_lora_cache_misses_total", 4.0),
        ("diffused_paused", 1.0),
        ("diffused_degraded", 1.0),
        ("diffused_config_reloads_total{by=\"api\",outcome=\"applied\"}", 0.0),
    ] {
        assert_eq!(series.get(key), Some(&value), "{key}");
    }
}

#[test]
fn a_daemon_that_has_done_nothing_has_all_families() {
    let Read { types, series } = read(&exposition(&Status::default(), &config()));
    assert_eq!(types.len(), 21, "{types:?}");
    assert!(series.values().all(|value| *value == 0.0), "{series:?}");
}
