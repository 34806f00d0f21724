//! The API: requests in, answers out. The only room that names a status code.
//!
//! It reads published snapshots (the modes, the dispatcher's status and job table) and submits
//! jobs; it never touches the engine, and no GET waits for work that is being done. Every error,
//! axum's own included, leaves as problem+json through `problem`; no path on disk leaves at all.

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
};

pub use idempotency::IdempotencyKeys;
pub use inventory::Inspections;
pub use job_info::delivery;
pub use server::serve;

use crate::{config::ModeConfigManager, dispatcher::Handle, modes::HostName};

mod accept;
mod answer;
mod asking;
mod body;
mod browser;
mod budget;
mod client;
mod config;
mod custom;
mod edit;
mod encoding;
mod events;
mod figures;
mod generate;
mod guards;
mod health;
mod idempotency;
mod images;
mod intake;
mod inventory;
mod job_info;
mod jobs;
mod loras;
mod metrics;
mod models;
mod modes;
mod openapi;
mod problem;
mod queue;
mod residency;
mod sending;
mod server;
mod status;
mod submit;
mod superres;
mod throttle;

/// A prompt is a few hundred bytes.
const MAX_BODY_BYTES: usize = 1 << 20;
/// An image and a mask to start from.
const MAX_GENERATE_BODY_BYTES: usize = 64 << 20;

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    pub config: Arc<ModeConfigManager>,
    pub dispatcher: Handle,
    /// What a caller must have who changes the configuration; `None`: everybody may.
    pub admin_key: Option<Arc<str>>,
    /// The name that the daemon was told to listen on, if it was one.
    pub listen_name: Option<Arc<HostName>>,
    pub inspections: Inspections,
    pub idempotency: Arc<IdempotencyKeys>,
    /// How long a caller waits until its image is begun; `None`: as long as that takes.
    pub admission_secs: Option<u32>,
}

/// All routes. `openapi` describes them; `tests/daemon` holds the two together.
fn router(api: Api) -> Router {
    let generate_limit = DefaultBodyLimit::max(MAX_GENERATE_BODY_BYTES);
    Router::new()
        .route("/", get(status::welcome))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/generate", post(generate::generate).layer(generate_limit))
        .route("/superres", post(superres::upscale).layer(generate_limit))
        .route("/api/models", get(models::list))
        .route("/api/models/current", get(models::current))
        .route("/api/models/available", get(models::available))
        .route("/api/models/status", get(status::models_status))
        .route("/api/models/load", post(residency::load))
        .route("/api/models/unload", post(residency::unload))
        .route("/api/inventory", get(inventory::show))
        .route("/api/vram", get(status::vram))
        .route("/api/modes", get(modes::list))
        .route("/api/modes/config", get(config::show))
        .route("/api/modes/switch", post(residency::switch))
        .route(
            "/api/modes/{name}",
            get(edit::show).post(edit::create).put(edit::put).delete(edit::delete),
        )
        .route("/api/modes/reload", post(config::reload))
        .route("/api/jobs", get(jobs::list).post(submit::submit).layer(generate_limit))
        .route("/api/jobs/custom", get(custom::list).post(custom::submit))
        .route("/api/jobs/{id}", get(jobs::show).delete(jobs::cancel))
        .route("/api/jobs/{id}/image", get(images::first))
        .route("/api/jobs/{id}/image/{index}", get(images::nth))
        .route("/api/queue/pause", post(queue::pause))
        .route("/api/queue/resume", post(queue::resume))
        .route("/api/queue/clear", post(queue::clear))
        .route("/api/jobs/{id}/events", get(events::of_job))
        .route("/api/events", get(events::all))
        .route("/openapi.json", get(openapi::document))
        .fallback(problem::no_such_route)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(sending::in_place))
        .layer(middleware::from_fn(problem::render))
        .layer(middleware::from_fn(server::refuse_in_reserve))
        .layer(middleware::from_fn_with_state(api.clone(), browser::guard))
        .with_state(api)
}

/// Whether that path is answered however many connections there are.
fn is_health(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready")
}
