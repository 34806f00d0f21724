//! `/api/modes/{name}`: one mode, and changing it in the file.

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};
use tokio::task::spawn_blocking;

use super::{
    Api,
    body::JsonBody,
    guards::{Admin, WithFile},
    modes::ModeInfo,
    problem::{Kind, Problem},
};
use crate::{
    config::{ConfigErrors, EditError, ModeEdit, NotEditable, ReloadReport},
    request::{FieldError, InvalidFields},
};

/// Who may change modes wants to change one.
pub struct Edit {
    api: Api,
    /// The mode's.
    name: String,
    /// The revisions of the file that they have seen; `None`: they do not care.
    if_match: Option<String>,
}

impl FromRequestParts<Api> for Edit {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        Admin::from_request_parts(parts, api).await?;
        WithFile::from_request_parts(parts, api).await?;
        let Path(name) = Path::from_request_parts(parts, api)
            .await
            .map_err(|rejection| Problem::new(Kind::MalformedRequest, rejection.body_text()))?;
        let if_match = parts.headers.get(header::IF_MATCH).and_then(|value| value.to_str().ok());
        Ok(Self { api: api.clone(), name, if_match: if_match.map(str::to_owned) })
    }
}

/// One mode as the file declares it, its defaults filled in.
#[utoipa::path(get, path = "/api/modes/{name}", tag = "modes",
    params(("name" = String, Path, description = "From GET /api/modes")),
    responses(
        (status = 200, description = "ETag has the file's revision", body = ModeInfo),
        (status = 404, description = "No such mode"),
    ))]
pub async fn show(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Problem> {
    let (modes, revision) = (api.config.current(), api.config.status().in_force.id.clone());
    let mode = Json(ModeInfo::from(&**modes.get(&name)?));
    Ok(([(header::ETAG, etag(&revision))], mode).into_response())
}

/// Adds a mode to the configuration file, whose other lines stay as they are.
#[utoipa::path(post, path = "/api/modes/{name}", tag = "modes",
    params(("name" = String, Path, description = "The new mode's"),
           ("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    request_body(content = Object, description = "The mode's keys as in modes.yaml",
                 content_type = "application/json"),
    responses(
        (status = 201, description = "ETag has the file's revision", body = ModeInfo),
        (status = 401, description = "Without the admin key"),
        (status = 409, description = "There is a mode of that name, or the file cannot be edited"),
        (status = 412, description = "The file is not what If-Match names"),
        (status = 413, description = "The mode, or the file with it, would be too large"),
        (status = 422, description = "The file would have errors"),
    ))]
pub async fn create(edit: Edit, JsonBody(body): JsonBody) -> Result<Response, Problem> {
    store(edit, body, ModeEdit::Add).await
}

/// Replaces a mode in the configuration file, or adds it. The file's other lines stay as they are.
#[utoipa::path(put, path = "/api/modes/{name}", tag = "modes",
    params(("name" = String, Path, description = "The mode's"),
           ("If-Match" = Option<String>, Header, description = "The revision that was seen"),
           ("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    request_body(content = Object, description = "The mode's keys as in modes.yaml",
                 content_type = "application/json"),
    responses(
        (status = 200, description = "Replaced; ETag has the file's revision", body = ModeInfo),
        (status = 201, description = "Added", body = ModeInfo),
        (status = 401, description = "Without the admin key"),
        (status = 409, description = "The file cannot be edited"),
        (status = 412, description = "The file is not what If-Match names"),
        (status = 413, description = "The mode, or the file with it, would be too large"),
        (status = 422, description = "The file would have errors"),
    ))]
pub async fn put(edit: Edit, JsonBody(body): JsonBody) -> Result<Response, Problem> {
    store(edit, body, ModeEdit::Put).await
}

/// Takes a mode out of the configuration file. The file's other lines stay as they are.
#[utoipa::path(delete, path = "/api/modes/{name}", tag = "modes",
    params(("name" = String, Path, description = "The mode's"),
           ("If-Match" = Option<String>, Header, description = "The revision that was seen"),
           ("X-Admin-Key" = Option<String>, Header, description = "Where one is set")),
    responses(
        (status = 204, description = "ETag has the file's revision"),
        (status = 401, description = "Without the admin key"),
        (status = 404, description = "No such mode"),
        (status = 409, description = "The file cannot be edited"),
        (status = 412, description = "The file is not what If-Match names"),
        (status = 422, description = "The file would have errors, such as no default mode"),
    ))]
pub async fn delete(edit: Edit) -> Result<Response, Problem> {
    let ReloadReport { revision, .. } = change(&edit, ModeEdit::Remove).await?;
    Ok((StatusCode::NO_CONTENT, [(header::ETAG, etag(&revision))]).into_response())
}

async fn store(
    edit: Edit,
    body: Value,
    how: fn(Map<String, Value>) -> ModeEdit,
) -> Result<Response, Problem> {
    let Value::Object(mode) = body else {
        let detail = "expected a JSON object: the mode's keys as in modes.yaml".to_owned();
        return Err(InvalidFields(vec![FieldError { pointer: String::new(), detail }]).into());
    };
    let report = change(&edit, how(mode)).await?;
    let modes = edit.api.config.current();
    let mode = Json(ModeInfo::from(&**modes.get(&edit.name)?));
    let is_new = report.diff.added.contains(&edit.name);
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(header::ETAG, etag(&report.revision))], mode).into_response())
}

async fn change(edit: &Edit, change: ModeEdit) -> Result<ReloadReport, Problem> {
    let (config, mode) = (edit.api.config.clone(), edit.name.clone());
    let wanted = edit.if_match.clone();
    let editing = spawn_blocking(move || {
        let is_expected = |revision: &str| {
            wanted.is_none_or(|wanted| {
                wanted.split(',').map(str::trim).any(|it| it == "*" || it == etag(revision))
            })
        };
        config.edit(&mode, &change, is_expected)
    });
    editing.await.map_err(Problem::internal)?.map_err(|error| refused(&edit.name, error))
}

fn etag(revision: &str) -> String {
    format!("\"{revision}\"")
}

fn refused(name: &str, error: EditError) -> Problem {
    match error {
        EditError::OtherRevision { revision } => {
            let detail = format!("the file was changed: its revision is \"{revision}\" now");
            Problem::new(Kind::PreconditionFailed, detail)
        }
        EditError::Broken(errors) => {
            let detail = "the file has errors as it is; they must be mended first";
            Problem::of_configuration(Kind::Conflict, detail, &errors)
        }
        EditError::Invalid(errors) => InvalidFields(fields(name, &errors)).into(),
        EditError::Exists(_) => Problem::new(Kind::Conflict, format!("{error}; PUT replaces it")),
        EditError::BadName(reason) => Problem::new(Kind::InvalidRequest, reason).at(""),
        EditError::NotEditable(NotEditable::ModeTooLarge) | EditError::FileTooLarge(_) => {
            Problem::new(Kind::BodyTooLarge, error.to_string())
        }
        EditError::NotEditable(reason) => Problem::new(Kind::Conflict, reason.to_string()),
        EditError::UnknownMode(unknown) => unknown.into(),
        // On a disk that is mounted for reading, say.
        EditError::Unwritable(_) => Problem::new(Kind::Conflict, error.to_string()),
    }
}

/// Errors of the file that would be, as errors of the body; those elsewhere keep their place in the
/// file.
fn fields(name: &str, errors: &ConfigErrors) -> Vec<FieldError> {
    let mode = format!("/modes/{name}");
    let field = |pointer: String| match pointer.strip_prefix(&mode) {
        Some(below) if below.is_empty() || below.starts_with('/') => below.to_owned(),
        _ => pointer,
    };
    let errors = errors.diagnostics.iter();
    errors
        .map(|error| FieldError {
            pointer: field(error.key.to_pointer()),
            detail: error.message.clone(),
        })
        .collect()
}
