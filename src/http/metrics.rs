//! `GET /metrics`: numbers for Prometheus, in its text format.
//!
//! What is known beforehand (types of jobs, outcomes, stages, reasons) is there from the start, as
//! 0: a series that appears with its first event hides that event from who asks for rates.

mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use axum::{extract::State, http::header, response::IntoResponse};

use self::text::Exposition;
use super::{Api, budget};
use crate::{
    config::{ConfigStatus, Origin, ReloadOutcome},
    dispatcher::{Counters, Ending, Stage, Status},
    job::JobKind,
    vram::{Reason, Snapshot},
};

/// Counters and gauges in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "status",
    responses((status = 200, description = "Prometheus' text format, version 0.0.4",
               content_type = "text/plain")))]
pub async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let text = exposition(&api.dispatcher.status(), &api.config.status()) + &budget_exposition();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// Apart from the rest, since it is read from where it is counted.
fn budget_exposition() -> String {
    let mut text = Exposition::default();
    let help = "Memory that requests and answers have a place for at the moment.";
    let usage = budget::usage();
    let mut bytes = text.gauge("diffused_budget_bytes", help);
    usage.iter().for_each(|(part, usage)| bytes.add(&[("part", part)], usage.bytes));
    let help = "How often such a place was given out.";
    let mut places = text.counter("diffused_budget_places_total", help);
    usage.iter().for_each(|(part, usage)| places.add(&[("part", part)], usage.places));
    text.into_text()
}

fn exposition(status: &Status, config: &ConfigStatus) -> String {
    let mut text = Exposition::default();
    jobs(&mut text, status);
    times(&mut text, &status.counters);
    pipelines(&mut text, &status.vram);
    memory(&mut text, &status.vram);
    daemon(&mut text, status, config);
    text.into_text()
}

fn jobs(text: &mut Exposition, status: &Status) {
    let running = status.running.is_some().into();
    text.gauge("diffused_jobs_running", "Jobs that are being done.").add(&[], running);
    let waiting = status.queue_size as u64;
    text.gauge("diffused_jobs_waiting", "Jobs that wait.").add(&[], waiting);
    let help = "Whether nothing is begun until the queue is resumed: 1 or 0.";
    text.gauge("diffused_paused", help).add(&[], status.paused.into());
    let mut ended = text.counter("diffused_jobs_total", "Jobs that have ended.");
    for kind in JobKind::ALL {
        for ending in Ending::ALL {
            let count = status.counters.jobs.get(&(kind, ending)).copied().unwrap_or(0);
            ended.add(&[("type", kind.name()), ("outcome", ending.name())], count);
        }
    }
}

fn times(text: &mut Exposition, counters: &Counters) {
    let help = "From when a job was accepted until it was begun.";
    text.summary("diffused_queue_wait_seconds", help).add_times(&[], counters.waits);
    let help = "What parts of the work took; merge is a part of load.";
    let mut stages = text.summary("diffused_stage_seconds", help);
    for stage in Stage::ALL {
        let times = counters.stages.get(&stage).copied().unwrap_or_default();
        stages.add_times(&[("stage", stage.name())], times);
    }
    text.summary("diffused_step_seconds", "Denoising steps.").add_times(&[], counters.steps);
}

fn pipelines(text: &mut Exposition, vram: &Snapshot) {
    let mut by_mode = |name, help, counts: &BTreeMap<String, u64>| {
        let mut family = text.counter(name, help);
        for (mode, count) in counts {
            family.add(&[("mode", mode)], *count);
        }
    };
    let help = "How often a mode's pipeline was loaded.";
    by_mode("diffused_pipeline_loads_total", help, &vram.loads);
    let help = "How often a job found its mode's pipeline loaded.";
    by_mode("diffused_pipeline_hits_total", help, &vram.hits);
    let mut evictions =
        text.counter("diffused_evictions_total", "Pipelines that have left, and why.");
    for reason in Reason::ALL {
        let count = vram.evictions.get(&reason).copied().unwrap_or(0);
        evictions.add(&[("reason", reason.name())], count);
    }
    let uses = vram.lora_cache;
    let help = "How often a LoRA file that was needed was open already.";
    text.counter("diffused_lora_cache_hits_total", help).add(&[], uses.hits);
    let help = "How often a LoRA file that was needed had to be opened.";
    text.counter("diffused_lora_cache_misses_total", help).add(&[], uses.misses);
}

fn memory(text: &mut Exposition, vram: &Snapshot) {
    // A mode may have several pipelines, by its requests' LoRAs.
    let mut by_component = BTreeMap::<(&str, &str), u64>::new();
    for model in &vram.models {
        for component in &model.loaded.components {
            let key = (model.loaded.mode.as_str(), component.name.as_str());
            *by_component.entry(key).or_default() += component.bytes;
        }
    }
    let help = "Weights of what is loaded for a mode; what modes share is counted in each.";
    let mut models = text.gauge("diffused_model_bytes", help);
    for ((mode, component), bytes) in by_component {
        models.add(&[("mode", mode), ("component", component)], bytes);
    }
    let help = "All weights that are loaded, shared ones counted once.";
    text.gauge("diffused_weights_bytes", help).add(&[], vram.weights_bytes);
    let help = "What the worker has allocated, as it counts itself.";
    text.gauge("diffused_allocated_bytes", help).add(&[], vram.allocated_bytes);
    let help = "What the worker's allocator has taken from the device, as it counts itself.";
    text.gauge("diffused_reserved_bytes", help).add(&[], vram.reserved_bytes);
    let help = "The most that the worker had allocated at a time since the last job was begun.";
    text.gauge("diffused_peak_bytes", help).add(&[], vram.peak_bytes);
    let help =
        "Memory of the device that draws: all of it, what is used by whomever, and by the worker.";
    let mut device = text.gauge("diffused_device_bytes", help);
    device.add(&[("kind", "total")], vram.total_bytes);
    device.add(&[("kind", "used")], vram.used_bytes);
    // Where nobody says it, it is not 0.
    if let Some(bytes) = vram.process_bytes {
        device.add(&[("kind", "worker")], bytes);
    }
}

fn daemon(text: &mut Exposition, status: &Status, config: &ConfigStatus) {
    let help = "How often the worker process had to be started again.";
    text.counter("diffused_worker_restarts_total", help).add(&[], status.worker_restarts);
    let help = "Whether no mode is current since a switch failed: 1 or 0.";
    text.gauge("diffused_degraded", help).add(&[], status.degraded.is_some().into());
    let help = "How often the configuration file was read again.";
    let mut reloads = text.counter("diffused_config_reloads_total", help);
    for by in [Origin::File, Origin::Signal, Origin::Api] {
        for outcome in ReloadOutcome::ALL {
            let count = config.reloads.get(&(by, outcome)).copied().unwrap_or(0);
            reloads.add(&[("by", by.name()), ("outcome", outcome.name())], count);
        }
    }
}
