//! `GET /openapi.json`: the API as a document, derived from the handlers.

use std::sync::LazyLock;

use axum::{http::header, response::IntoResponse};
use utoipa::{
    Modify, OpenApi,
    openapi::{Content, Ref, RefOr, ResponseBuilder, path::Operation},
};

use super::{
    config, custom, edit, events, generate, health, images, inventory, is_health, jobs, metrics,
    models, modes,
    problem::{PROBLEM_JSON, ProblemBody},
    queue, residency, status, submit, superres,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "diffused",
        description = "Draws images: Stable Diffusion modes from one YAML file, a queue, one \
                       accelerator. Every error is an application/problem+json document.",
    ),
    paths(
        generate::generate,
        superres::upscale,
        modes::list,
        residency::switch,
        models::list,
        models::current,
        models::available,
        residency::load,
        residency::unload,
        config::show,
        inventory::show,
        edit::show,
        edit::create,
        edit::put,
        edit::delete,
        config::reload,
        jobs::list,
        jobs::show,
        jobs::cancel,
        images::first,
        images::nth,
        submit::submit,
        custom::list,
        custom::submit,
        queue::pause,
        queue::resume,
        queue::clear,
        events::of_job,
        events::all,
        status::models_status,
        status::vram,
        health::health,
        health::live,
        health::ready,
        metrics::metrics,
        status::welcome,
        document,
    ),
    components(schemas(ProblemBody, events::MissedInfo, events::PreviewInfo)),
    modifiers(&ProblemResponses),
    tags(
        (name = "images", description = "Drawing"),
        (name = "modes", description = "What can be drawn, and how"),
        (name = "models", description = "What is loaded, and what it costs"),
        (name = "jobs", description = "Work that waits, runs or is done"),
        (name = "status", description = "What the daemon is doing"),
    )
)]
struct Document;

/// Gives each response that is an error the one body that all errors have.
struct ProblemResponses;

impl Modify for ProblemResponses {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for (path, item) in &mut document.paths.paths {
            let is_health = is_health(path);
            let operations = [
                (&mut item.get, true),
                (&mut item.post, false),
                (&mut item.put, false),
                (&mut item.delete, false),
            ];
            let operations = operations.map(|(it, is_read)| Some((it.as_mut()?, is_read)));
            for (operation, is_read) in operations.into_iter().flatten() {
                describe_layers(operation, is_read, is_health);
                describe_bodies(operation);
                describe_problems(operation);
            }
        }
    }
}

/// What the layers around all routes answer.
fn describe_layers(operation: &mut Operation, is_read: bool, is_health: bool) {
    let refused = [
        (true, "421", "The host name is not one of this daemon's"),
        (!is_read, "403", "A web page of an origin that is not listed"),
        (!is_health, "503", "All connections are busy; see Retry-After"),
    ];
    for (_, status, description) in refused.into_iter().filter(|(applies, ..)| *applies) {
        let response = || ResponseBuilder::new().description(description).build().into();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(response);
    }
}

/// What can be wrong with any body, where an operation has not said it in words of its own.
fn describe_bodies(operation: &mut Operation) {
    if operation.request_body.is_none() {
        return;
    }
    for (status, description) in [
        ("400", "The body is not what its content-type says"),
        ("408", "The body took too long"),
        ("413", "The body is too large"),
        ("415", "The body has another content-type"),
    ] {
        let response = || ResponseBuilder::new().description(description).build().into();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(response);
    }
}

fn describe_problems(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && status.starts_with(['4', '5'])
        {
            let content = Content::new(Some(Ref::from_schema_name("Problem")));
            response.content.insert(PROBLEM_JSON.into(), content.into());
        }
    }
}

static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string(&Document::openapi()).unwrap_or_default());

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "status",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
pub async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two types with one name only one would be described, and nobody would say so.
    #[test]
    fn every_described_type_has_a_name_of_its_own() {
        let mut names = Vec::new();
        let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    names.extend(described_types(&std::fs::read_to_string(path).unwrap()));
                }
            }
        }
        assert!(names.len() > 40, "{names:?}");
        names.sort();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None);
    }

    /// The types that derive `ToSchema`, by the names that they are described under.
    fn described_types(source: &str) -> Vec<String> {
        let mut names = Vec::new();
        let mut lines = source.lines();
        while let Some(line) = lines.next() {
            if !(line.starts_with("#[derive(") && line.contains("ToSchema")) {
                continue;
            }
            let mut alias = None;
            for line in lines.by_ref() {
                if let Some(rest) = line.strip_prefix("#[schema(as = ") {
                    alias = rest.split([')', ',']).next().map(str::to_owned);
                }
                let name = line.strip_prefix("pub struct ").or(line.strip_prefix("pub enum "));
                if let Some(name) = name {
                    let end = name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len());
                    names.push(alias.unwrap_or_else(|| name[..end].to_owned()));
                    break;
                }
            }
        }
        names
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_error_is_a_problem() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let mut references = Vec::new();
        collect_references(&document, &mut references);
        assert!(references.len() > 20);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let generate = &document["paths"]["/generate"]["post"];
        for described in [
            "/responses/429/content/application~1problem+json",
            "/responses/200/content/image~1webp",
            "/responses/200/content/application~1json",
            "/requestBody/content/application~1json",
            "/requestBody/content/multipart~1form-data",
        ] {
            assert!(generate.pointer(described).is_some(), "{described}: {generate}");
        }
    }

    fn collect_references<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
        if let Some(reference) = value.get("$ref").and_then(|it| it.as_str()) {
            found.push(reference);
        }
        match value {
            serde_json::Value::Object(map) => {
                map.values().for_each(|value| collect_references(value, found));
            }
            serde_json::Value::Array(list) => {
                list.iter().for_each(|value| collect_references(value, found));
            }
            _ => {}
        }
    }
}
