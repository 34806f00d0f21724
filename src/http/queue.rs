//! `/api/queue`: holding the work back, and giving it up.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Api, guards::Admin, problem::Problem};

/// How the queue stands.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueAnswer {
    /// Whether nothing is begun until it is resumed.
    paused: bool,
    /// Jobs that wait.
    queue_size: usize,
}

impl QueueAnswer {
    fn of(api: &Api) -> Self {
        let status = api.dispatcher.status();
        Self { paused: status.paused, queue_size: status.queue_size }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ClearAnswer {
    /// Jobs that waited, and are cancelled; mode switches that stood before them are counted.
    cancelled: usize,
    #[serde(flatten)]
    queue: QueueAnswer,
}

/// From now on nothing is begun. The running job goes on to its end, and jobs are accepted as long
/// as there is room for them. A daemon that is started again is not paused.
#[utoipa::path(post, path = "/api/queue/pause", tag = "jobs",
    params(("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    responses(
        (status = 200, description = "Paused, if it was not already", body = QueueAnswer),
        (status = 401, description = "Without the admin key"),
        (status = 503, description = "Shutting down; see Retry-After"),
    ))]
pub async fn pause(_: Admin, State(api): State<Api>) -> Result<Json<QueueAnswer>, Problem> {
    api.dispatcher.set_paused(true).await?;
    Ok(Json(QueueAnswer::of(&api)))
}

/// What waits is done again.
#[utoipa::path(post, path = "/api/queue/resume", tag = "jobs",
    params(("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    responses(
        (status = 200, description = "Resumed, if it was paused", body = QueueAnswer),
        (status = 401, description = "Without the admin key"),
        (status = 503, description = "Shutting down; see Retry-After"),
    ))]
pub async fn resume(_: Admin, State(api): State<Api>) -> Result<Json<QueueAnswer>, Problem> {
    api.dispatcher.set_paused(false).await?;
    Ok(Json(QueueAnswer::of(&api)))
}

/// Cancels all jobs that wait; the running one goes on.
#[utoipa::path(post, path = "/api/queue/clear", tag = "jobs",
    params(("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    responses(
        (status = 200, description = "How many were cancelled", body = ClearAnswer),
        (status = 401, description = "Without the admin key"),
        (status = 503, description = "Shutting down; see Retry-After"),
    ))]
pub async fn clear(_: Admin, State(api): State<Api>) -> Result<Json<ClearAnswer>, Problem> {
    let cancelled = api.dispatcher.clear().await?;
    Ok(Json(ClearAnswer { cancelled, queue: QueueAnswer::of(&api) }))
}
