//! `GET /openapi.json`: the API as a document, derived from the handlers.

use std::sync::LazyLock;

use axum::{http::header, response::IntoResponse};
use utoipa::{
    Modify, OpenApi,
    openapi::{Content, Ref, RefOr, path::Operation},
};

use super::{
    config, edit, events, generate, health, inventory, jobs, metrics, models, modes,
    problem::{PROBLEM_JSON, ProblemBody},
    residency, status,
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
        jobs::show,
        jobs::submit_custom,
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
    components(schemas(ProblemBody, events::MissedInfo)),
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
        for item in document.paths.paths.values_mut() {
            let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete]
                .map(Option::as_mut);
            operations.into_iter().flatten().for_each(describe_problems);
        }
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
