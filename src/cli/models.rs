//! `diffused models`: all modes of a daemon that runs, and which of them are loaded.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{
    client::{Address, Client, ClientError},
    table::{Column, size, table, terminal_width},
};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    address: Address,
    /// Print what GET /api/models answers
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> ExitCode {
    super::print(models(arguments))
}

fn models(arguments: &Arguments) -> Result<String, ClientError> {
    let models = Client::new(&arguments.address, None).get("/api/models")?;
    Ok(match arguments.json {
        true => format!("{models:#}\n"),
        false => render(&models, terminal_width()),
    })
}

/// Names are never cut: they are what `switch` takes.
const HEAD: [(&str, Column); 7] = [
    ("MODE", Column::Left),
    ("STATE", Column::Left),
    ("MODEL", Column::Cut),
    ("LORAS", Column::Cut),
    ("OWN", Column::Right),
    ("SHARED", Column::Right),
    ("ESTIMATED", Column::Right),
];

/// The modes, and below them what requests' LoRAs made of them.
fn render(models: &Value, width: usize) -> String {
    let list = |member: &str| models[member].as_array().map_or(&[][..], Vec::as_slice);
    let declared = list("modes").iter().map(|model| row(&model["name"], "", model));
    let others = list("others").iter().map(|model| row(&model["mode"], " +", model));
    let rows: Vec<_> = declared.chain(others).collect();
    let mut text = table(&HEAD, &rows, width);
    if !list("others").is_empty() {
        text += "\n+: with the LoRAs of requests, or from before the file was changed\n";
    }
    text
}

fn row(name: &Value, mark: &str, model: &Value) -> Vec<String> {
    let figures = &model["figures"];
    let gb = |member: &str| figures[member].as_f64().map_or("-".to_owned(), size);
    let pinned = if model["pinned"] == true { ", pinned" } else { "" };
    let state = model["state"].as_str().unwrap_or_default().replace('_', " ");
    vec![
        format!("{}{mark}", name.as_str().unwrap_or_default()),
        format!("{state}{pinned}"),
        model["model"].as_str().unwrap_or_default().to_owned(),
        loras(&model["loras"]),
        gb("own_gb"),
        gb("shared_gb"),
        gb("estimated_gb"),
    ]
}

/// Each with its strength, where that is not 1.
fn loras(loras: &Value) -> String {
    let lora = |lora: &Value| {
        let path = lora["path"].as_str().unwrap_or_default();
        let name = path.strip_suffix(".safetensors").unwrap_or(path);
        match lora["strength"].as_f64() {
            Some(strength) if strength != 1.0 => {
                format!("{name}:{}", (strength * 100.0).round() / 100.0)
            }
            _ => name.to_owned(),
        }
    };
    let loras = loras.as_array().map_or(&[][..], Vec::as_slice);
    match loras {
        [] => "-".to_owned(),
        loras => loras.iter().map(lora).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_modes_in_a_table() {
        let figures = json!({"own_gb": 1.5, "shared_gb": 4.25, "estimated_gb": 5.75});
        let ink = json!([{"path": "ink.safetensors", "strength": 0.800000011920929, "adapter_name": null}]);
        let models = json!({
            "current_mode": "ink",
            "modes": [
                {"name": "ink", "state": "active", "model": "sd15/x.safetensors", "loras": ink,
                 "pinned": false, "figures": figures},
                {"name": "plain", "state": "loaded", "model": "sd15/x.safetensors", "loras": [],
                 "pinned": true, "figures": figures},
                {"name": "xl", "state": "not_loaded", "model": "sdxl/a-long-name-of-a-model.safetensors",
                 "loras": [], "pinned": false, "figures": null},
            ],
            "others": [],
        });
        insta::assert_snapshot!(render(&models, 120), @r"
        MODE   STATE           MODEL                                    LORAS         OWN    SHARED  ESTIMATED
        ink    active          sd15/x.safetensors                       ink:0.8  1.50 GiB  4.25 GiB   5.75 GiB
        plain  loaded, pinned  sd15/x.safetensors                       -        1.50 GiB  4.25 GiB   5.75 GiB
        xl     not loaded      sdxl/a-long-name-of-a-model.safetensors  -               -         -          -
        ");
        insta::assert_snapshot!(render(&models, 80), @r"
        MODE   STATE           MODEL              LORAS         OWN    SHARED  ESTIMATED
        ink    active          sd15/x.safetenso…  ink:0.8  1.50 GiB  4.25 GiB   5.75 GiB
        plain  loaded, pinned  sd15/x.safetenso…  -        1.50 GiB  4.25 GiB   5.75 GiB
        xl     not loaded      sdxl/a-long-name…  -               -         -          -
        ");
        let mut with_others = models;
        with_others["others"] = json!([{"mode": "plain", "state": "loaded", "model": "sd15/x.safetensors",
            "loras": [{"path": "oil.safetensors", "strength": 1.0}], "figures": figures}]);
        insta::assert_snapshot!(render(&with_others, 120), @r"
        MODE     STATE           MODEL                                    LORAS         OWN    SHARED  ESTIMATED
        ink      active          sd15/x.safetensors                       ink:0.8  1.50 GiB  4.25 GiB   5.75 GiB
        plain    loaded, pinned  sd15/x.safetensors                       -        1.50 GiB  4.25 GiB   5.75 GiB
        xl       not loaded      sdxl/a-long-name-of-a-model.safetensors  -               -         -          -
        plain +  loaded          sd15/x.safetensors                       oil      1.50 GiB  4.25 GiB   5.75 GiB

        +: with the LoRAs of requests, or from before the file was changed
        ");
    }
}
