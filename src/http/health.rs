//! `/health`: whether the daemon lives, and whether it can draw.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    problem::{Kind, Problem},
};
use crate::dispatcher::Status;

#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    status: &'static str,
    version: &'static str,
}

const OK: Health = Health { status: "ok", version: env!("CARGO_PKG_VERSION") };

/// Whether all is well: the daemon answers, and is not without a mode that it should have.
#[utoipa::path(get, path = "/health", tag = "status",
    responses(
        (status = 200, body = Health),
        (status = 503, description = "No mode is loaded any more; why"),
    ))]
pub async fn health(State(api): State<Api>) -> Result<Json<Health>, Problem> {
    not_degraded(&api.dispatcher.status())?;
    Ok(Json(OK))
}

/// Whether the daemon answers: if it does not, it is to be started again.
#[utoipa::path(get, path = "/health/live", tag = "status",
    responses((status = 200, body = Health)))]
pub async fn live() -> Json<Health> {
    Json(OK)
}

/// Whether work is well placed here: a mode is current or can be. If not, ask another daemon.
#[utoipa::path(get, path = "/health/ready", tag = "status",
    responses(
        (status = 200, body = Health),
        (status = 503, description = "The worker is not up, no mode is loaded any more, the disk is \
                                      full, the worker is silent, the queue is paused, or shutting down; why"),
    ))]
pub async fn ready(State(api): State<Api>) -> Result<Json<Health>, Problem> {
    is_ready(&api.dispatcher.status())?;
    Ok(Json(OK))
}

fn is_ready(status: &Status) -> Result<(), Problem> {
    if status.draining {
        let detail = "the daemon is shutting down and takes no new jobs";
        return Err(Problem::new(Kind::ShuttingDown, detail));
    }
    if status.storage_fails {
        let detail = "jobs cannot be written to disk; nothing is begun until they can";
        return Err(Problem::new(Kind::NotWritten, detail));
    }
    not_degraded(status)?;
    let reason = if !status.worker_ready {
        "the worker process is being started"
    } else if status.worker_silent {
        "the worker process is silent; another one takes its place unless it is heard of soon"
    } else if status.paused {
        "the queue is paused: jobs are accepted, and none is begun until it is resumed"
    } else {
        return Ok(());
    };
    Err(Problem::new(Kind::NotReady, reason))
}

fn not_degraded(status: &Status) -> Result<(), Problem> {
    match &status.degraded {
        None => Ok(()),
        Some(reason) => Err(Problem::new(Kind::Degraded, reason.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_who_can_draw_and_will() {
        let degraded = || Some("x.safetensors is damaged".to_owned());
        for (draining, degraded, worker_ready, expected) in [
            (false, None, true, Ok(())),
            (false, None, false, Err(Kind::NotReady)),
            (false, degraded(), true, Err(Kind::Degraded)),
            (true, degraded(), false, Err(Kind::ShuttingDown)),
        ] {
            let status = Status { draining, degraded, worker_ready, ..Status::default() };
            let ready = is_ready(&status).map_err(|problem| problem.kind());
            assert_eq!(ready, expected, "{status:?}");
        }
        let full = Status { storage_fails: true, worker_ready: true, ..Status::default() };
        assert_eq!(is_ready(&full).map_err(|it| it.kind()), Err(Kind::NotWritten));
        let up = Status { worker_ready: true, ..Status::default() };
        let silent = Status { worker_silent: true, ..up.clone() };
        let paused = Status { paused: true, ..up };
        for status in [silent, paused] {
            assert_eq!(is_ready(&status).map_err(|it| it.kind()), Err(Kind::NotReady));
        }
    }
}
