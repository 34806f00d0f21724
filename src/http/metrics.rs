//! `GET /metrics`: numbers for Prometheus, in its text format.

use std::fmt::Write;

use axum::{extract::State, http::header, response::IntoResponse};

use super::Api;
use crate::config::{ConfigStatus, Origin, ReloadOutcome};

/// Counters and gauges in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "status",
    responses((status = 200, description = "Prometheus' text format, version 0.0.4",
               content_type = "text/plain")))]
pub async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let (status, config) = (api.dispatcher.status(), api.config.status());
    let running = u64::from(status.running.is_some());
    let waiting = status.queue_size as u64;
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, values: Vec<(String, u64)>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let alone = |value| vec![(String::new(), value)];
    family("diffused_jobs_running", "gauge", "Jobs that are being done.", alone(running));
    family("diffused_jobs_waiting", "gauge", "Jobs that wait.", alone(waiting));
    let help = "How often a pipeline was loaded.";
    family(
        "diffused_pipeline_loads_total",
        "counter",
        help,
        alone(status.vram.loads.values().sum()),
    );
    let help = "How often the configuration file was read again.";
    family("diffused_config_reloads_total", "counter", help, reloads(&config));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// For each who had it read, and each outcome; what never happened is 0.
fn reloads(status: &ConfigStatus) -> Vec<(String, u64)> {
    let origins = [Origin::File, Origin::Signal, Origin::Api].into_iter();
    let kinds = origins.flat_map(|by| ReloadOutcome::ALL.map(|outcome| (by, outcome)));
    kinds
        .map(|(by, outcome)| {
            let labels = format!("{{by=\"{}\",outcome=\"{}\"}}", by.name(), outcome.name());
            (labels, *status.reloads.get(&(by, outcome)).unwrap_or(&0))
        })
        .collect()
}
