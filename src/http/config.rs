//! The configuration file: reading it again, what is in force and what was refused.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    guards::{Admin, WithFile},
    problem::{Problem, field_error},
};
use crate::{
    config::{ConfigStatus, Diagnostic, Origin, Rejected, ReloadReport},
    modes::{
        Compute, EngineChoice, Eviction, LoraCacheLimits, Memory, Precision, Watch, gb_of_bytes,
    },
    request::FieldError,
};

/// What a reload changed; names of modes.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReloadAnswer {
    /// SHA-256 of the file that is now in force, its first 16 digits.
    #[schema(example = "5891b5b522d5df08")]
    revision: String,
    added: Vec<String>,
    removed: Vec<String>,
    /// There as before, and not what they were.
    changed: Vec<String>,
    /// Of the changed ones those whose files are others, or were replaced: they are loaded again
    /// before they are drawn with.
    to_reload: Vec<String>,
    /// Other keys at the top of the file that changed.
    settings: Vec<&'static str>,
    /// As of now.
    default_mode: String,
    /// What will fail when it is used, such as a model file that is not there.
    warnings: Vec<FieldError>,
}

/// Reads the configuration file again, and looks whether models or LoRAs were replaced. A file with
/// errors changes nothing.
#[utoipa::path(post, path = "/api/modes/reload", tag = "modes",
    params(("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    responses(
        (status = 200, body = ReloadAnswer),
        (status = 401, description = "Without the admin key"),
        (status = 409, description = "There is no file"),
        (status = 422, description = "The file has errors"),
    ))]
pub async fn reload(
    _: Admin,
    _: WithFile,
    State(api): State<Api>,
) -> Result<Json<ReloadAnswer>, Problem> {
    let config = api.config.clone();
    let reload = tokio::task::spawn_blocking(move || config.reload(Origin::Api));
    let ReloadReport { revision, diff, warnings } = reload.await.map_err(Problem::internal)??;
    Ok(Json(ReloadAnswer {
        revision,
        changed: diff.changed(),
        added: diff.added,
        removed: diff.removed,
        to_reload: diff.to_reload,
        settings: diff.settings,
        default_mode: api.config.current().default_mode.clone(),
        warnings: warnings.iter().map(field_error).collect(),
    }))
}

/// How the configuration came to be what it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConfigAnswer {
    in_force: RevisionInfo,
    /// How edits of the file are noticed: `auto`, `native`, `poll` or `off`.
    #[schema(value_type = String)]
    watch: Watch,
    memory: MemoryInfo,
    #[serde(flatten)]
    compute: ComputeInfo,
    /// What will fail when it is used, such as a model file that is not there.
    warnings: Vec<DiagnosticInfo>,
    /// The last state of the file that could not be used; `null` if there was none.
    rejected: Option<RejectedInfo>,
}

/// What is wished to compute: as arguments or the environment say it, else the file. What does,
/// `GET /api/vram` says; a change counts from the daemon's next start on.
#[derive(Debug, Serialize, ToSchema)]
pub struct ComputeInfo {
    /// `auto`, `candle` or `libtorch`.
    #[schema(value_type = String)]
    engine: EngineChoice,
    /// `auto`, `cpu`, `cuda:0` or `metal`.
    #[schema(example = "cuda:0")]
    device: String,
    /// `auto`, `fp32`, `bf16` or `fp16`.
    #[schema(value_type = String)]
    precision: Precision,
}

impl From<Compute> for ComputeInfo {
    fn from(Compute { engine, device, precision }: Compute) -> Self {
        Self { engine, device: device.to_string(), precision }
    }
}

/// What may stay loaded, as the file says it, its defaults filled in.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemoryInfo {
    /// `null`: as many as there is room for.
    max_models: Option<u32>,
    /// How many of them requests' own LoRAs may make.
    max_request_pipelines: u32,
    /// In gb of 2^30 bytes; `null`: all there is.
    limit_gb: Option<f64>,
    /// `lru`, `fifo` or `memory_pressure`.
    #[schema(value_type = String)]
    eviction: Eviction,
    /// As in `600s`, or `off`.
    #[schema(example = "600s")]
    idle_unload: String,
    verify: bool,
    lora_cache: LoraCacheInfo,
    /// On a card: how much of the host's memory keeps the weights of models that have left, in gb of
    /// 2^30 bytes.
    host_cache_gb: f64,
}

/// How much of the LoRA files that were read stays open.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoraCacheInfo {
    max_files: u32,
    /// In gb of 2^30 bytes.
    max_gb: f64,
}

impl From<&Memory> for MemoryInfo {
    fn from(memory: &Memory) -> Self {
        let Memory {
            max_models,
            max_request_pipelines,
            limit_bytes,
            eviction,
            idle_unload,
            verify,
            lora_cache,
            host_cache_bytes,
        } = memory;
        let LoraCacheLimits { max_files, max_bytes } = *lora_cache;
        Self {
            max_models: *max_models,
            max_request_pipelines: *max_request_pipelines,
            limit_gb: limit_bytes.map(gb_of_bytes),
            eviction: *eviction,
            idle_unload: idle_unload.to_string(),
            verify: *verify,
            lora_cache: LoraCacheInfo { max_files, max_gb: gb_of_bytes(max_bytes) },
            host_cache_gb: gb_of_bytes(*host_cache_bytes),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RevisionInfo {
    /// SHA-256 of the file's bytes, its first 16 digits; `null` where it could not be read.
    #[schema(example = "5891b5b522d5df08")]
    revision: Option<String>,
    read_unix_ms: u64,
    /// Who had it read: `start`, `file` (it was seen to change), `signal` or `api`.
    #[schema(example = "file")]
    by: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct RejectedInfo {
    #[serde(flatten)]
    revision: RevisionInfo,
    /// Everything that is wrong with it.
    errors: Vec<DiagnosticInfo>,
}

/// Something to say about the file, and where.
#[derive(Debug, Serialize, ToSchema)]
pub struct DiagnosticInfo {
    /// From 1; `null` where the file as a whole is meant.
    line: Option<u64>,
    /// From 1, in characters.
    column: Option<u64>,
    /// A JSON pointer (RFC 6901) to the value.
    #[schema(example = "/modes/portrait/default_size")]
    pointer: String,
    #[schema(example = "500x500: width and height must be positive multiples of 8")]
    detail: String,
}

impl From<&Diagnostic> for DiagnosticInfo {
    fn from(diagnostic: &Diagnostic) -> Self {
        Self {
            line: diagnostic.at.map(|at| at.line),
            column: diagnostic.at.map(|at| at.column),
            pointer: diagnostic.key.to_pointer(),
            detail: diagnostic.message.clone(),
        }
    }
}

/// Which state of the configuration file is in force, and the last one that was refused.
#[utoipa::path(get, path = "/api/modes/config", tag = "modes",
    responses((status = 200, body = ConfigAnswer)))]
pub async fn show(State(api): State<Api>) -> Json<ConfigAnswer> {
    let ConfigStatus { in_force, warnings, rejected, reloads: _ } = &*api.config.status();
    let info = |id: Option<&String>, at, by: Origin| RevisionInfo {
        revision: id.cloned(),
        read_unix_ms: unix_ms(at),
        by: by.name(),
    };
    let rejected = rejected.as_ref().map(|Rejected { id, at, by, errors }| RejectedInfo {
        revision: info(id.as_ref(), *at, *by),
        errors: errors.diagnostics.iter().map(DiagnosticInfo::from).collect(),
    });
    let modes = api.config.current();
    Json(ConfigAnswer {
        in_force: info(Some(&in_force.id), in_force.at, in_force.by),
        watch: modes.watch,
        memory: MemoryInfo::from(&modes.memory),
        compute: ComputeInfo::from(modes.compute),
        warnings: warnings.iter().map(DiagnosticInfo::from).collect(),
        rejected,
    })
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
