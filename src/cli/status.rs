//! `diffused status`: what a daemon that runs is doing, and what its memory is used for.

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;
use serde_json::Value;

use super::{
    client::{Address, Client, ClientError},
    table::{Column, bar, size, table, terminal_width},
};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    address: Address,
    /// Print what GET /api/models/status answers
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> ExitCode {
    super::print(status(arguments))
}

fn status(arguments: &Arguments) -> Result<String, ClientError> {
    let status = Client::new(&arguments.address, None).get("/api/models/status")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.map_or(0, |since| since.as_millis() as u64);
    Ok(match arguments.json {
        true => format!("{status:#}\n"),
        false => render(&status, terminal_width(), now_ms),
    })
}

/// Everything, as of a moment.
fn render(status: &Value, width: usize, now_ms: u64) -> String {
    let mut text = summary(status, width);
    let models = status["vram"]["models"].as_array().map_or(&[][..], Vec::as_slice);
    if !models.is_empty() {
        text.push('\n');
        text += &loaded(models, width, now_ms);
    }
    text
}

fn summary(status: &Value, width: usize) -> String {
    let vram = &status["vram"];
    let gb = |member: &str| vram[member].as_f64().unwrap_or(0.0);
    let name = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let count = |member: &str| status[member].as_u64().unwrap_or(0);
    let (used, total) = (gb("used_gb"), gb("total_gb"));
    let bar_width = width.saturating_sub(60).clamp(10, 40);
    let mut lines = vec![
        (
            "device",
            format!(
                "{}: {} by {} in {}",
                name(&vram["device_name"]),
                name(&vram["device"]),
                name(&vram["engine"]),
                name(&vram["precision"])
            ),
        ),
        (
            "memory",
            format!(
                "{}  {} of {} used ({:.0} %)",
                bar(&[(used, '█')], total, bar_width),
                size(used),
                size(total),
                gb("usage_percent"),
            ),
        ),
    ];
    if let Some(limit) = vram["limit_gb"].as_f64() {
        lines.push(("limit", size(limit)));
    }
    let (weights, allocated) = (size(gb("weights_gb")), size(gb("allocated_gb")));
    let restarts = match count("worker_restarts") {
        0 => String::new(),
        1 => "; restarted once".to_owned(),
        many => format!("; restarted {many} times"),
    };
    let reserved = match size(gb("reserved_gb")) {
        reserved if reserved == allocated => String::new(),
        reserved => format!(" ({reserved} reserved)"),
    };
    let worker = format!("{allocated} allocated{reserved}, {weights} of it weights{restarts}");
    lines.push(("worker", worker));
    lines.push(("mode", name(&status["current_mode"])));
    let running = u64::from(status["running_job"].is_string());
    let paused = if status["paused"] == true { "; paused" } else { "" };
    lines.push(("queue", format!("{running} running, {} waiting{paused}", count("queue_size"))));
    if let Some(reason) = status["degraded"].as_str() {
        lines.push(("degraded", reason.to_owned()));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<10}{value}\n")).collect()
}

const HEAD: [(&str, Column); 7] = [
    ("LOADED", Column::Cut),
    ("STATE", Column::Left),
    ("█ OWN, ▒ SHARED", Column::Left),
    ("OWN", Column::Right),
    ("SHARED", Column::Right),
    ("LOAD", Column::Right),
    ("USED", Column::Right),
];

/// The loaded models, each with a bar as long as its part of the largest one.
fn loaded(models: &[Value], width: usize, now_ms: u64) -> String {
    let gb = |model: &Value, member: &str| model[member].as_f64().unwrap_or(0.0);
    let largest = models.iter().map(|model| gb(model, "vram_gb")).fold(0.0, f64::max);
    let bar_width = width.saturating_sub(65).clamp(15, 40);
    let row = |model: &Value| {
        let (own, shared) = (gb(model, "own_gb"), gb(model, "shared_gb"));
        let state = match (model["active"] == true, model["pinned"] == true) {
            (true, true) => "active, pinned",
            (true, false) => "active",
            (false, true) => "pinned",
            (false, false) => "loaded",
        };
        vec![
            model["name"].as_str().unwrap_or_default().to_owned(),
            state.to_owned(),
            bar(&[(own, '█'), (shared, '▒')], largest, bar_width),
            size(own),
            size(shared),
            format!("{:.1} s", model["load_ms"].as_f64().unwrap_or(0.0) / 1000.0),
            ago(now_ms.saturating_sub(model["last_used_unix_ms"].as_u64().unwrap_or(now_ms))),
        ]
    };
    table(&HEAD, &models.iter().map(row).collect::<Vec<_>>(), width)
}

/// How long ago that was, in the largest unit that it has one of.
fn ago(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_000_000_000;

    fn status() -> Value {
        let model = |name: &str, active, pinned, own: f64, shared: f64, ago_ms| {
            json!({"name": name, "vram_gb": own + shared, "own_gb": own, "shared_gb": shared,
                   "active": active, "pinned": pinned, "load_ms": 1234,
                   "last_used_unix_ms": NOW - ago_ms})
        };
        json!({
            "current_mode": "sd15", "queue_size": 3, "running_job": "x", "degraded": null,
            "worker_restarts": 2,
            "vram": {
                "engine": "candle", "device": "cpu", "precision": "fp32",
                "device_name": "CPU (host memory)", "reserved_gb": 4.25, "total_gb": 16.0, "used_gb": 5.0,
                "usage_percent": 31.3, "limit_gb": 12.0, "weights_gb": 3.5, "allocated_gb": 4.0,
                "models": [
                    model("sd15", true, false, 1.5, 1.0, 5_000),
                    model("ink", false, true, 0.05, 1.0, 200_000),
                    model("a-name-as-long-as-this-one", false, false, 1.0, 0.0, 90_000_000),
                ],
            },
        })
    }

    #[test]
    fn what_runs_and_what_is_loaded() {
        insta::assert_snapshot!(render(&status(), 80, NOW), @r"
        device    CPU (host memory): cpu by candle in fp32
        memory    ██████░░░░░░░░░░░░░░  5.00 GiB of 16.00 GiB used (31 %)
        limit     12.00 GiB
        worker    4.00 GiB allocated (4.25 GiB reserved), 3.50 GiB of it weights; restarted 2 times
        mode      sd15
        queue     1 running, 3 waiting

        LOADED             STATE   █ OWN, ▒ SHARED       OWN    SHARED   LOAD       USED
        sd15               active  █████████▒▒▒▒▒▒  1.50 GiB  1.00 GiB  1.2 s    5 s ago
        ink                pinned  █▒▒▒▒▒▒░░░░░░░░    51 MiB  1.00 GiB  1.2 s  3 min ago
        a-name-as-long-a…  loaded  ██████░░░░░░░░░  1.00 GiB     0 MiB  1.2 s    1 d ago
        ");
        let wide = render(&status(), 120, NOW);
        assert!(wide.contains("a-name-as-long-as-this-one  "), "{wide}");
    }

    #[test]
    fn a_daemon_without_a_mode_says_why() {
        let mut status = status();
        status["current_mode"] = Value::Null;
        status["running_job"] = Value::Null;
        status["degraded"] = "x.safetensors is damaged".into();
        status["worker_restarts"] = 0.into();
        status["vram"]["models"] = json!([]);
        status["vram"]["limit_gb"] = Value::Null;
        insta::assert_snapshot!(render(&status, 80, NOW), @r"
        device    CPU (host memory): cpu by candle in fp32
        memory    ██████░░░░░░░░░░░░░░  5.00 GiB of 16.00 GiB used (31 %)
        worker    4.00 GiB allocated (4.25 GiB reserved), 3.50 GiB of it weights
        mode      none
        queue     0 running, 3 waiting
        degraded  x.safetensors is damaged
        ");
    }

    #[test]
    fn times() {
        for (ms, expected) in [
            (0, "0 s ago"),
            (59_999, "59 s ago"),
            (180_000, "3 min ago"),
            (7_200_000, "2 h ago"),
            (172_800_000, "2 d ago"),
        ] {
            assert_eq!(ago(ms), expected);
        }
    }
}
