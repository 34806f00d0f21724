//! Every error as problem+json (RFC 9457).
//!
//! A handler returns a [`Problem`]; it travels as an extension of its response to [`render`], which
//! writes the body and gives axum's own errors (405, 413 …) the same form.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    config::{ConfigErrors, Diagnostic},
    dispatcher::{FailureKind, JobFailure, SubmitError},
    job::JobId,
    modes::UnknownMode,
    request::{FieldError, InvalidFields},
};

/// Names the job that an answer is about, good or bad.
pub const X_JOB_ID: HeaderName = HeaderName::from_static("x-job-id");

pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error that a client is told of.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: Kind,
    detail: String,
    errors: Vec<FieldError>,
    pub retry_after_secs: Option<u64>,
    job: Option<JobId>,
}

/// The kinds of problems; each has one status, type and title.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    MalformedRequest,
    NotFound,
    UnknownMode,
    UnknownJob,
    NoCurrentMode,
    Gone,
    IdempotencyKeyReused,
    UnknownHandler,
    AdminKeyNeeded,
    ForeignOrigin,
    UnknownHost,
    Conflict,
    PreconditionFailed,
    MethodNotAllowed,
    NotAcceptable,
    Cancelled,
    BodyTooLarge,
    BodyTooSlow,
    UnsupportedMediaType,
    InvalidRequest,
    InvalidConfiguration,
    QueueFull,
    TooManyConnections,
    ModelUnusable,
    NoRoom,
    OutOfMemory,
    TimedOut,
    DeadlinePassed,
    AdmissionTimeout,
    DrawingTimedOut,
    Degraded,
    NotReady,
    /// Requests and answers together take as much memory as they may.
    Busy,
    WorkerDied,
    HandlerFailed,
    Internal,
    NotWritten,
    ShuttingDown,
    /// A status of the framework that has no kind of its own.
    Other(StatusCode),
}

impl Kind {
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::MalformedRequest => (S::BAD_REQUEST, "malformed-request", "Malformed request"),
            Self::NotFound => (S::NOT_FOUND, "not-found", "No such address"),
            Self::UnknownMode => (S::NOT_FOUND, "unknown-mode", "No such mode"),
            Self::UnknownJob => (S::NOT_FOUND, "unknown-job", "No such job"),
            Self::Gone => (S::GONE, "gone", "No longer there"),
            Self::IdempotencyKeyReused => {
                (S::UNPROCESSABLE_ENTITY, "idempotency-key-reused", "Key used for another request")
            }
            Self::NoCurrentMode => (S::NOT_FOUND, "no-current-mode", "No mode is current"),
            Self::UnknownHandler => (S::NOT_FOUND, "unknown-handler", "No such custom job"),
            Self::AdminKeyNeeded => (S::UNAUTHORIZED, "admin-key-needed", "Admin key needed"),
            Self::ForeignOrigin => (S::FORBIDDEN, "foreign-origin", "Web page not allowed"),
            Self::UnknownHost => (S::MISDIRECTED_REQUEST, "unknown-host", "Unknown host name"),
            Self::Conflict => (S::CONFLICT, "conflict", "Conflict with the current state"),
            Self::PreconditionFailed => {
                (S::PRECONDITION_FAILED, "precondition-failed", "Changed by somebody else")
            }
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
            }
            Self::NotAcceptable => (S::NOT_ACCEPTABLE, "not-acceptable", "No acceptable format"),
            Self::Cancelled => (S::CONFLICT, "cancelled", "The job was cancelled"),
            Self::BodyTooSlow => (S::REQUEST_TIMEOUT, "body-too-slow", "Body too slow"),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large"),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type")
            }
            Self::InvalidRequest => {
                (S::UNPROCESSABLE_ENTITY, "invalid-request", "The request is not valid")
            }
            Self::InvalidConfiguration => (
                S::UNPROCESSABLE_ENTITY,
                "invalid-configuration",
                "The configuration file is not valid",
            ),
            Self::QueueFull => (S::TOO_MANY_REQUESTS, "queue-full", "The queue is full"),
            Self::TooManyConnections => {
                (S::SERVICE_UNAVAILABLE, "too-many-connections", "Too many connections")
            }
            Self::ModelUnusable => {
                (S::INTERNAL_SERVER_ERROR, "model-unusable", "The model cannot be used")
            }
            Self::NoRoom => (S::UNPROCESSABLE_ENTITY, "no-room", "No room for this model"),
            Self::OutOfMemory => (S::SERVICE_UNAVAILABLE, "out-of-memory", "Out of memory"),
            // Who asked did nothing wrong, as 408 and 409 would say: the jobs before it took too long.
            Self::TimedOut => (S::GATEWAY_TIMEOUT, "timed-out", "Waited too long"),
            Self::DeadlinePassed => {
                (S::GATEWAY_TIMEOUT, "deadline-passed", "The job's deadline has passed")
            }
            Self::AdmissionTimeout => {
                (S::SERVICE_UNAVAILABLE, "admission-timeout", "Waited too long to be begun")
            }
            Self::DrawingTimedOut => {
                (S::GATEWAY_TIMEOUT, "drawing-timed-out", "Drawing took too long")
            }
            Self::Degraded => (S::SERVICE_UNAVAILABLE, "degraded", "No mode is loaded any more"),
            Self::NotReady => (S::SERVICE_UNAVAILABLE, "not-ready", "Not ready yet"),
            Self::Busy => (S::SERVICE_UNAVAILABLE, "busy", "Too much at once"),
            Self::WorkerDied => (S::INTERNAL_SERVER_ERROR, "worker-died", "The worker died"),
            Self::HandlerFailed => {
                (S::INTERNAL_SERVER_ERROR, "handler-failed", "The custom job failed")
            }
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
            Self::NotWritten => {
                (S::SERVICE_UNAVAILABLE, "not-written", "The job cannot be written down")
            }
            Self::ShuttingDown => (S::SERVICE_UNAVAILABLE, "shutting-down", "Shutting down"),
            Self::Other(status) => {
                (status, "about:blank", status.canonical_reason().unwrap_or("Error"))
            }
        }
    }

    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::BAD_REQUEST => Self::MalformedRequest,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            other => Self::Other(other),
        }
    }
}

/// A problem as it is sent (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// Names the kind of problem; stable, for programs.
    #[serde(rename = "type")]
    #[schema(example = "queue-full")]
    kind: &'a str,
    title: &'a str,
    #[schema(example = 429)]
    status: u16,
    /// What is wrong with this request and what to do about it, for people.
    detail: &'a str,
    /// The path of the request.
    #[schema(example = "/generate")]
    instance: &'a str,
    /// At 422: each field that is wrong.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<FieldError>)]
    errors: &'a [FieldError],
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: vec![], retry_after_secs: None, job: None }
    }

    #[cfg(test)]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same, with when to try again.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_secs = Some(seconds);
        self
    }

    /// An error that the client cannot help: the details go to the log.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!("{error}");
        Self::new(Kind::Internal, "something went wrong; the daemon's log says what")
    }

    /// The same, of that field of the request.
    pub fn at(mut self, pointer: &str) -> Self {
        self.errors.push(FieldError { pointer: pointer.into(), detail: self.detail.clone() });
        self
    }

    /// The same, of a document that stands there in another one.
    pub fn below(mut self, pointer: &str) -> Self {
        self.errors.iter_mut().for_each(|error| error.pointer.insert_str(0, pointer));
        self
    }

    /// The job that failed.
    pub fn of_job(failure: JobFailure, job: JobId) -> Self {
        let kind = match failure.kind {
            FailureKind::UnusableModel | FailureKind::UnusableLora { .. } => Kind::ModelUnusable,
            FailureKind::InvalidRequest { field } => {
                return Self::of_field(&format!("/{}", field.name()), failure, job);
            }
            FailureKind::NoRoom => Kind::NoRoom,
            FailureKind::OutOfMemory => Kind::OutOfMemory,
            FailureKind::TimedOut => Kind::TimedOut,
            FailureKind::DeadlinePassed => Kind::DeadlinePassed,
            FailureKind::NotAdmitted => Kind::AdmissionTimeout,
            FailureKind::DrawingTimedOut => Kind::DrawingTimedOut,
            FailureKind::WorkerDied => Kind::WorkerDied,
            FailureKind::Handler => Kind::HandlerFailed,
            FailureKind::ShuttingDown => Kind::ShuttingDown,
            FailureKind::Internal => Kind::Internal,
        };
        let retry_after_secs = match kind {
            Kind::ShuttingDown => Some(SHUTDOWN_RETRY_SECS),
            Kind::OutOfMemory => Some(MEMORY_RETRY_SECS),
            Kind::AdmissionTimeout => Some(ADMISSION_RETRY_SECS),
            _ => None,
        };
        Self { job: Some(job), retry_after_secs, ..Self::new(kind, failure.message) }
    }

    /// The job that failed by what that field asked for.
    pub fn of_field(pointer: &str, failure: JobFailure, job: JobId) -> Self {
        Self { job: Some(job), ..Self::new(Kind::InvalidRequest, failure.message).at(pointer) }
    }

    /// Everything that is wrong with a configuration.
    pub fn of_configuration(kind: Kind, detail: &str, errors: &ConfigErrors) -> Self {
        let errors = errors.diagnostics.iter().map(field_error).collect();
        Self { errors, ..Self::new(kind, detail) }
    }

    pub fn cancelled(job: JobId) -> Self {
        Self { job: Some(job), ..Self::new(Kind::Cancelled, "the job was cancelled") }
    }

    /// For layers outside of [`render`].
    pub fn to_response(&self, instance: &str) -> Response {
        let (status, kind, title) = self.kind.parts();
        let body = ProblemBody {
            kind,
            title,
            status: status.as_u16(),
            detail: &self.detail,
            instance,
            errors: &self.errors,
        };
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(job) = self.job.and_then(|job| HeaderValue::try_from(job.to_string()).ok()) {
            headers.insert(X_JOB_ID, job);
        }
        response
    }
}

/// By then the daemon is back, or it will not come back.
const SHUTDOWN_RETRY_SECS: u64 = 30;
/// By then somebody may have made room on the disk.
const DISK_RETRY_SECS: u64 = 30;
/// By then the queue may be shorter; it is too long by more than a job.
const ADMISSION_RETRY_SECS: u64 = 10;
/// By then another process may have given memory back.
const MEMORY_RETRY_SECS: u64 = 30;

impl IntoResponse for Problem {
    /// Only the envelope: [`render`] knows the address and writes the rest.
    fn into_response(self) -> Response {
        let mut response = self.kind.parts().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The layer around all routes, within those that refuse requests by what sent them.
pub async fn render(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let method = request.method().clone();
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        return problem.to_response(&instance);
    }
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let detail = match status {
        StatusCode::METHOD_NOT_ALLOWED => format!("{instance} does not answer to {method}"),
        _ => status.canonical_reason().unwrap_or("the request failed").to_owned(),
    };
    Problem::new(Kind::of_status(status), detail).to_response(&instance)
}

pub async fn no_such_route(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}; GET /openapi.json lists all", uri.path());
    Problem::new(Kind::NotFound, detail)
}

impl From<InvalidFields> for Problem {
    fn from(invalid: InvalidFields) -> Self {
        let detail = match &invalid.0[..] {
            [FieldError { pointer, detail }] if pointer.is_empty() => detail.clone(),
            [FieldError { pointer, detail }] => format!("{pointer}: {detail}"),
            many => format!("{} fields cannot be used; errors lists them", many.len()),
        };
        Self { errors: invalid.0, ..Self::new(Kind::InvalidRequest, detail) }
    }
}

impl From<UnknownMode> for Problem {
    fn from(unknown: UnknownMode) -> Self {
        Self::new(Kind::UnknownMode, format!("{unknown} (GET /api/modes lists all)"))
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { limit, retry_after_secs } => {
                let detail = format!("{limit} jobs are waiting already; try again later");
                Self::new(Kind::QueueFull, detail).retry_after(retry_after_secs)
            }
            SubmitError::TooMuchToHold { what, limit_bytes, retry_after_secs } => {
                let limit = limit_bytes >> 20;
                let detail = format!("{what} take {limit} MiB already; try again later");
                Self::new(Kind::QueueFull, detail).retry_after(retry_after_secs)
            }
            SubmitError::ShuttingDown => {
                let detail = "the daemon is shutting down and takes no new jobs";
                Self::new(Kind::ShuttingDown, detail).retry_after(SHUTDOWN_RETRY_SECS)
            }
            SubmitError::NotWritten => {
                let detail = "jobs cannot be written to disk now; the daemon's log says why";
                Self::new(Kind::NotWritten, detail).retry_after(DISK_RETRY_SECS)
            }
            SubmitError::UnknownHandler { .. } => {
                Self::new(Kind::UnknownHandler, "there is no custom job of that name")
            }
            SubmitError::AlreadyLoaded => Self::internal("only a mode switch can be superfluous"),
        }
    }
}

impl From<ConfigErrors> for Problem {
    fn from(errors: ConfigErrors) -> Self {
        let detail = "nothing was reloaded: the modes are what they were before";
        Self::of_configuration(Kind::InvalidConfiguration, detail, &errors)
    }
}

/// A diagnostic without the file's path.
pub fn field_error(diagnostic: &Diagnostic) -> FieldError {
    let place = diagnostic.at.map(|at| format!("line {}, column {}: ", at.line, at.column));
    FieldError {
        pointer: diagnostic.key.to_pointer(),
        detail: format!("{}{}", place.unwrap_or_default(), diagnostic.message),
    }
}

#[cfg(test)]
mod tests;
