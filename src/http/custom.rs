//! `/api/jobs/custom`: jobs by name. Those that are built in become jobs here; the others are run
//! by the dispatcher, as a handler that this program has or a command that the configuration names.

use std::collections::BTreeMap;

use axum::{Json, extract::State, http::HeaderMap, response::Response};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    Api,
    asking::check_webhook,
    body::{PlacedJsonBody, work_on},
    client::Client,
    guards::Caller,
    idempotency,
    job_info::{Accepted, StateName},
    jobs::accepted,
    problem::{Kind, Problem},
    submit::submit_durable,
    superres,
};
use crate::{
    config::check_file_name,
    job::{Job, Terms, Unload},
    modes::{
        BUILT_IN_JOBS, CheckpointRef, LoraRef, Modes, PipelineSpec, did_you_mean, is_built_in,
        nearest_name,
    },
    request::{Fields, InvalidFields, Overrides, WebhookField, WebhookWish},
};

#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct CustomRequest {
    /// A name from `GET /api/jobs/custom`.
    #[schema(example = "warm_up")]
    name: String,
    /// What the job is told; `warm_up` wants `{mode}`.
    #[schema(example = json!({"mode": "sd15"}))]
    args: Option<Value>,
    /// When it is done: the greater one comes first. By default 0.
    #[schema(minimum = -10, maximum = 10)]
    priority: Option<i8>,
    /// Words of yours to find the job by: up to 16.
    tags: Option<Vec<String>>,
    /// Told over HTTP when the job has ended: a POST of what `GET /api/jobs/{id}` answers.
    webhook: Option<WebhookField>,
}

/// Queues a job by its name: a built-in one, one of this program's own, or one that the
/// configuration names a command for. The admin key, if one is configured, is needed for commands, for
/// `unload_all`, `warm_up` and `verify_checkpoint`.
#[utoipa::path(post, path = "/api/jobs/custom", tag = "jobs", request_body = CustomRequest,
    params(("X-Admin-Key" = Option<String>, Header, description = "Where one is set"),
           ("Idempotency-Key" = Option<String>, Header, description =
        "Any text: the same one with the same body gives the first one's job")),
    responses(
        (status = 202, description = "Queued; Location has the job", body = Accepted),
        (status = 400, description = "The body is not JSON"),
        (status = 401, description = "Without the admin key"),
        (status = 404, description = "No such job, or no such mode"),
        (status = 422, description = "Invalid fields"),
        (status = 429, description = "The queue is full, or the arguments of waiting jobs take too \
                                      much; see Retry-After"),
        (status = 503, description = "Too much at once, or shutting down"),
    ))]
pub async fn submit(
    State(api): State<Api>,
    client: Client,
    caller: Caller,
    headers: HeaderMap,
    PlacedJsonBody { value: mut body, place }: PlacedJsonBody,
) -> Result<Response, Problem> {
    let modes = api.config.current();
    let Asked { name, terms } = Asked::read(&body, &modes)?;
    // Only the arguments are left of the body: they are moved from here on.
    let take_apart = move || {
        let has_key = headers.contains_key(idempotency::HEADER);
        let text = if has_key { body.to_string() } else { String::new() };
        let idempotency = idempotency::of_parts(&headers, [text.as_bytes()]);
        (idempotency, body.get_mut("args").map(Value::take).unwrap_or_default())
    };
    let ((idempotency, args), place) = work_on(place, take_apart).await?;
    let idempotency = idempotency?;
    let (job, place) = if name == superres::CUSTOM_NAME {
        superres::custom(&api, args, place).await?
    } else if is_built_in(&name) {
        (built_in(&name, &args, &modes)?, place)
    } else {
        let known = listed(&api, &modes);
        if !known.contains_key(&name) {
            return Err(unknown(&name, known.keys().map(String::as_str)));
        }
        (Job::Custom { name, args: args.into() }, place)
    };
    if needs_admin(&job, &api) {
        caller.require_admin(&api)?;
    }
    let terms = Terms { client: client.0, idempotency, ..terms };
    let id = submit_durable(&api, job, terms).await?;
    drop(place); // the queue counts the arguments
    Ok(accepted(id, Accepted { id: id.to_string(), state: StateName::Queued }))
}

/// A body that was understood.
struct Asked {
    name: String,
    terms: Terms,
}

impl Asked {
    fn read(body: &Value, modes: &Modes) -> Result<Self, InvalidFields> {
        let mut fields = Fields::read(body, &["name", "args", "priority", "tags", "webhook"])?;
        let name = fields.text("name");
        fields.require("name");
        let webhook = WebhookWish::read(&mut fields, "webhook");
        if let Some(error) = check_webhook(modes, webhook.as_ref()) {
            fields.report(error);
        }
        let terms = Terms {
            priority: fields.whole_number("priority", Terms::PRIORITIES).unwrap_or(0),
            tags: fields.texts("tags", Overrides::MAX_TAGS),
            durable: true,
            webhook: webhook.map(|wish| wish.webhook),
            ..Terms::default()
        };
        fields.finish(Self { name: name.unwrap_or_default(), terms })
    }
}

/// What a built-in job's name and arguments mean, but for `upscale`.
fn built_in(name: &str, args: &Value, modes: &Modes) -> Result<Job, Problem> {
    match name {
        "unload_all" => {
            arguments(args, &[], |_| ())?;
            Ok(Job::Unload { what: Unload::All })
        }
        "warm_up" => {
            let mode = arguments(args, &["mode"], |args| {
                args.require("mode");
                args.text("mode").unwrap_or_default()
            })?;
            let mode = modes.get(&mode)?;
            let (mode, pipeline) = (mode.name.clone(), mode.pipeline.clone());
            Ok(Job::Load { mode, pipeline, warm_up: true })
        }
        "verify_checkpoint" => {
            let (mode, model) = arguments(args, &["mode", "model"], to_verify)?;
            let models = match (mode, model) {
                (Some(mode), _) => files_of_pipeline(&modes.get(&mode)?.pipeline),
                (None, name) => {
                    let name = name.unwrap_or_default();
                    vec![CheckpointRef { path: modes.model_root.join(&name), name }]
                }
            };
            let args = json!({"models": models}).into();
            Ok(Job::Custom { name: name.to_owned(), args })
        }
        // A test holds this and the list of names together.
        other => Err(Problem::internal(format!("the built-in job '{other}' means nothing"))),
    }
}

/// A mode's name, or a model's below `model_root`.
fn to_verify(args: &mut Fields) -> (Option<String>, Option<String>) {
    let (mode, model) = (args.text("mode"), args.text("model"));
    match (args.get("mode").is_some(), args.get("model").is_some()) {
        (true, true) => args.error_here("'mode' and 'model' are both named: one is needed"),
        (false, false) => args.error_here("a 'mode' or a 'model' (a file's name) is needed"),
        (true, false) | (false, true) => {}
    }
    if let Some(Err(reason)) = model.as_deref().map(check_file_name) {
        args.error("model", reason);
    }
    (mode, model)
}

/// All that is read for a mode.
fn files_of_pipeline(pipeline: &PipelineSpec) -> Vec<CheckpointRef> {
    let PipelineSpec { checkpoint, vae, loras, .. } = pipeline;
    let loras = loras
        .iter()
        .map(|LoraRef { name, path, .. }| CheckpointRef { name: name.clone(), path: path.clone() });
    [checkpoint].into_iter().chain(vae).cloned().chain(loras).collect()
}

/// The arguments of a built-in job; none are as good as `{}`.
fn arguments<T>(
    args: &Value,
    known: &[&str],
    read: impl FnOnce(&mut Fields) -> T,
) -> Result<T, InvalidFields> {
    let none = Value::Object(Map::new());
    let args = if args.is_null() { &none } else { args };
    let mut fields = Fields::read_at("/args".to_owned(), args, known)?;
    let value = read(&mut fields);
    fields.finish(value)
}

/// Whether the admin key is needed to submit such a job, and so to cancel it.
pub fn needs_admin(job: &Job, api: &Api) -> bool {
    match job {
        Job::Load { .. } | Job::Unload { .. } | Job::ModeSwitch { .. } => true,
        // All but the program's own handlers: also a command that the file no longer has.
        Job::Custom { name, .. } => {
            let mut registered = api.dispatcher.custom_jobs().iter();
            is_built_in(name) || !registered.any(|(registered, _)| registered == name)
        }
        Job::Generation { .. } | Job::Upscale { .. } => false,
    }
}

/// The kinds of custom jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CustomOrigin {
    /// Every daemon has it.
    BuiltIn,
    /// A handler that this program was built with.
    Registered,
    /// A command of the configuration.
    Configured,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CustomJobInfo {
    #[schema(example = "warm_up")]
    name: String,
    origin: CustomOrigin,
    /// One line about it; empty where nobody has written one.
    description: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CustomJobList {
    /// By their names.
    custom_jobs: Vec<CustomJobInfo>,
}

/// The names that `POST` takes.
#[utoipa::path(get, path = "/api/jobs/custom", tag = "jobs",
    responses((status = 200, body = CustomJobList)))]
pub async fn list(State(api): State<Api>) -> Json<CustomJobList> {
    let listed = listed(&api, &api.config.current());
    let listed = listed.into_iter();
    let custom_jobs =
        listed.map(|(name, (origin, description))| CustomJobInfo { name, origin, description });
    Json(CustomJobList { custom_jobs: custom_jobs.collect() })
}

/// The later of two that share a name is the one that is run.
fn listed(api: &Api, modes: &Modes) -> BTreeMap<String, (CustomOrigin, String)> {
    let configured = modes.custom_jobs.iter().map(|(name, command)| {
        let description = command.description.clone().unwrap_or_default();
        (name.clone(), (CustomOrigin::Configured, description))
    });
    let registered = api.dispatcher.custom_jobs().iter();
    let registered = registered
        .map(|(name, description)| (name.clone(), (CustomOrigin::Registered, description.clone())));
    let built_in = BUILT_IN_JOBS.iter().map(|(name, description)| {
        ((*name).to_owned(), (CustomOrigin::BuiltIn, (*description).to_owned()))
    });
    configured.chain(registered).chain(built_in).collect()
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Problem {
    let nearest = nearest_name(name, known.clone());
    let hint = did_you_mean(nearest.as_deref());
    let known = known.collect::<Vec<_>>().join(", ");
    let detail = format!("there is no custom job '{name}'{hint} (there are: {known})");
    Problem::new(Kind::UnknownHandler, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::modes;

    #[test]
    fn all_of_a_mode_is_verified_or_one_model() {
        let mode = "{model: a, vae: v, loras: [l, {path: m}]}";
        let modes = modes(&format!("{{a: {mode}}}"), "a");
        for (args, names) in [
            (json!({"mode": "a"}), &["a", "v", "l", "m"][..]),
            (json!({"model": "b/c.safetensors"}), &["b/c.safetensors"]),
        ] {
            let job = built_in("verify_checkpoint", &args, &modes).unwrap();
            let Job::Custom { args, .. } = job else { panic!("{job:?}") };
            let models: Vec<CheckpointRef> =
                serde_json::from_value(args.value()["models"].clone()).unwrap();
            assert_eq!(models.iter().map(|it| &it.name[..]).collect::<Vec<_>>(), names);
            assert!(models.iter().all(|it| it.path.starts_with("/home/x/models")), "{models:?}");
        }
    }

    #[test]
    fn every_built_in_name_means_a_job() {
        let modes = modes("{a: {model: a}}", "a");
        let meant: Vec<_> = [
            ("unload_all", json!({})),
            ("unload_all", Value::Null),
            ("warm_up", json!({"mode": "a"})),
        ]
        .into_iter()
        .map(|(name, args)| (name, built_in(name, &args, &modes).unwrap().kind().name()))
        .collect();
        assert_eq!(
            meant,
            [("unload_all", "unload"), ("unload_all", "unload"), ("warm_up", "load")]
        );
        // An upscale takes a look at its image first, and has a place of its own.
        let others = BUILT_IN_JOBS.iter().filter(|(name, _)| *name != superres::CUSTOM_NAME);
        assert_eq!(others.clone().count() + 1, BUILT_IN_JOBS.len());
        for (name, _) in others {
            let refused = built_in(name, &json!([]), &modes).unwrap_err();
            assert_eq!(refused.kind(), Kind::InvalidRequest, "{name}");
        }
        for (name, args, kind) in [
            ("unload_all", json!({"mode": "a"}), Kind::InvalidRequest),
            ("warm_up", json!({}), Kind::InvalidRequest),
            ("warm_up", json!({"mode": "b"}), Kind::UnknownMode),
            ("verify_checkpoint", json!({"mode": "b"}), Kind::UnknownMode),
            ("verify_checkpoint", json!({}), Kind::InvalidRequest),
            ("verify_checkpoint", json!({"mode": "a", "model": "a"}), Kind::InvalidRequest),
            ("verify_checkpoint", json!({"model": "../a"}), Kind::InvalidRequest),
            ("verify_checkpoint", json!({"model": "/a"}), Kind::InvalidRequest),
            ("verify_checkpoint", json!({"model": ""}), Kind::InvalidRequest),
        ] {
            assert_eq!(built_in(name, &args, &modes).unwrap_err().kind(), kind, "{name} {args}");
        }
    }
}
