//! `/api/events`, `/api/jobs/{id}/events`: what happens, as server-sent events.
//!
//! The streams end by themselves, with the job or with the daemon's last work, so that no reader
//! delays a stop.

use std::{future::pending, time::Duration};

use axum::{
    extract::{FromRequestParts, Path, Query, State},
    http::{StatusCode, header, request::Parts},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    job_info::StateName,
    problem::{Kind, Problem},
};
use crate::{
    dispatcher::{Change, Event, EventId, Preview, Previews},
    image,
    job::{JobId, JobKind, JobState},
};

/// How long a stream is silent at most: a proxy takes a minute of silence for an end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Of a JPEG, 1 to 100.
const PREVIEW_QUALITY: u8 = 80;
const LAST_EVENT_ID: &str = "last-event-id";

/// An event as the stream has it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub struct SentEvent {
    /// What `Last-Event-ID` says to resume behind it.
    #[schema(example = "1767225600000-17")]
    id: Option<String>,
    /// A job's state, `missed` or `preview`.
    event: Option<String>,
    /// JSON: `EventInfo`, of `missed` `MissedInfo`, of `preview` `PreviewInfo`.
    data: Option<String>,
}

/// The `data` of an event that is named for a job's state.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventInfo {
    #[schema(example = "0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11")]
    id: String,
    #[serde(rename = "type")]
    kind: JobKind,
    /// Of a generation, a mode switch, a load, or the unloading of one mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[schema(value_type = StateName)]
    state: &'static str,
    /// While loading: how much of it has been read.
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    /// While running: the denoising steps that are done, and how many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<u32>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The `data` of the event `missed`.
#[derive(Debug, Serialize, ToSchema)]
pub struct MissedInfo {
    /// The number (behind the `-`) of the first event that is gone; 0 if the stream was resumed
    /// behind an event of the daemon before this one.
    from: u64,
    /// That of the last.
    to: u64,
}

/// The `data` of the event `preview`.
#[derive(Debug, Serialize, ToSchema)]
pub struct PreviewInfo {
    #[schema(example = "0197f3a2-6a6e-7c2b-9f0e-3b1d5a0c4e11")]
    job_id: String,
    /// After which step, of how many.
    step: u32,
    steps: u32,
    /// In pixels; the longer one is 128 at most.
    width: u32,
    height: u32,
    /// A JPEG file in base64.
    image: String,
}

/// Behind which event a stream begins, and whether it has previews.
pub struct Wanted {
    after: Option<EventId>,
    previews: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct WantedQuery {
    /// An event's `id`, for who cannot send `Last-Event-ID`
    after: Option<String>,
    /// Whether images are shown on their way, as events `preview` [false]
    previews: Option<bool>,
}

impl FromRequestParts<Api> for Wanted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let asked = Query::<WantedQuery>::from_request_parts(parts, api).await;
        let Query(asked) = asked
            .map_err(|rejection| Problem::new(Kind::MalformedRequest, rejection.body_text()))?;
        // A browser that connects again sends both: the address that it was given, and where it is.
        let header =
            parts.headers.get(LAST_EVENT_ID).map(|id| String::from_utf8_lossy(id.as_bytes()));
        let header = header.filter(|id| !id.is_empty()).map(|id| id.into_owned());
        let id = header.or(asked.after).map(|id| id.parse()).transpose();
        let wrong = |error| Problem::new(Kind::MalformedRequest, format!("{error}"));
        let previews = asked.previews.unwrap_or(false);
        Ok(Self { after: id.map_err(wrong)?, previews })
    }
}

/// What happens to all jobs, from now on or behind `Last-Event-ID`.
///
/// Events are named `queued`, `loading`, `running`, `done`, `failed`, `cancelled`; steps and
/// percents of a job come at most ten times a second. `missed` says that events are gone which the
/// client should have had. With `previews=true` there are events `preview`, at most two a second: the
/// latest picture of the image that is being drawn (the first of several). They have no id and are not
/// told again. The stream ends with the daemon.
#[utoipa::path(get, path = "/api/events", tag = "jobs",
    params(
        ("Last-Event-ID" = Option<String>, Header, description = "Resumes behind that event"),
        WantedQuery,
    ),
    responses(
        (status = 200, description = "Server-sent events, with such data; of `missed`: MissedInfo, \
                                      of `preview`: PreviewInfo",
         body = SentEvent, content_type = "text/event-stream"),
        (status = 400, description = "That is no event's id"),
    ))]
pub async fn all(State(api): State<Api>, wanted: Wanted) -> Response {
    let events = api.dispatcher.events(wanted.after);
    // An id without an event: who loses the connection before the first one loses no event.
    let begun = events.behind().map(|id| Ok(sse::Event::default().id(id.to_string())));
    let previews = wanted.previews.then(|| api.dispatcher.previews(None));
    let events = stream::unfold((events, previews), |(mut events, mut previews)| async {
        let sent = either(events.next(), &mut previews).await?;
        Some((sent, (events, previews)))
    });
    respond(stream::StreamExt::chain(stream::iter(begun), events))
}

/// What happens to a job: first how it stands, or what happened behind `Last-Event-ID`; the stream
/// ends behind its end. For the events see `/api/events`.
#[utoipa::path(get, path = "/api/jobs/{id}/events", tag = "jobs",
    params(
        ("id" = String, Path, description = "From X-Job-Id or Location"),
        ("Last-Event-ID" = Option<String>, Header, description = "Resumes behind that event"),
        WantedQuery,
    ),
    responses(
        (status = 200, description = "Server-sent events, with such data; of `missed`: MissedInfo, \
                                      of `preview`: PreviewInfo",
         body = SentEvent, content_type = "text/event-stream"),
        (status = 204, description = "Nothing happened behind that event, and nothing will"),
        (status = 400, description = "That is no event's id"),
        (status = 404, description = "No such job"),
    ))]
pub async fn of_job(
    State(api): State<Api>,
    Path(id): Path<String>,
    wanted: Wanted,
) -> Result<Response, Problem> {
    let id: Option<JobId> = id.parse().ok();
    let events = id.and_then(|id| api.dispatcher.job_events(id, wanted.after));
    let unknown = || Problem::new(Kind::UnknownJob, "there is no such job, or it is long finished");
    let events = events.ok_or_else(unknown)?;
    if events.is_over() {
        // Tells a browser, which comes back to any stream that has ended, to stop doing so.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let previews = wanted.previews.then(|| api.dispatcher.previews(id));
    Ok(respond(stream::unfold((events, previews), |(mut events, mut previews)| async {
        let sent = either(events.next(), &mut previews).await?;
        Some((sent, (events, previews)))
    })))
}

/// What comes first: an event or a preview. `None` once there will be no event.
async fn either(
    event: impl Future<Output = Option<Event>>,
    previews: &mut Option<Previews>,
) -> Option<Sent> {
    let preview = async {
        match previews {
            Some(previews) => previews.next().await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        event = event => event.map(sent),
        preview = preview => Some(shown(&preview)),
    }
}

fn shown(preview: &Preview) -> Sent {
    let Preview { job, step, steps, width, height, ref rgb } = *preview;
    let picture = image::Rgb { width, height, bytes: rgb };
    let format = image::Format::Jpeg { quality: PREVIEW_QUALITY };
    let file = image::encode(picture, format, "").map_err(axum::Error::new)?;
    sse::Event::default().event("preview").json_data(PreviewInfo {
        job_id: job.to_string(),
        step,
        steps,
        width,
        height,
        image: BASE64.encode(file),
    })
}

type Sent = Result<sse::Event, axum::Error>;

fn respond(events: impl Stream<Item = Sent> + Send + 'static) -> Response {
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // A proxy is not to wait for more.
    ([(header::HeaderName::from_static("x-accel-buffering"), "no")], stream).into_response()
}

fn sent(event: Event) -> Sent {
    match event {
        Event::Changed(change) => {
            let named = sse::Event::default().id(change.id.to_string()).event(change.state.name());
            named.json_data(EventInfo::from(&*change))
        }
        Event::Missed { from, to } => {
            let named = sse::Event::default().id(to.to_string()).event("missed");
            named.json_data(MissedInfo { from, to: to.number })
        }
    }
}

impl From<&Change> for EventInfo {
    fn from(change: &Change) -> Self {
        let (mut percent, mut step, mut steps, mut reason) = (None, None, None, None);
        match &change.state {
            JobState::Loading { percent: read } => percent = Some(*read),
            JobState::Running { step: done, steps: of } => (step, steps) = (Some(*done), Some(*of)),
            JobState::Failed { reason: why } => reason = Some(why.clone()),
            JobState::Queued | JobState::Done | JobState::Cancelled => {}
        }
        let (kind, state) = (change.kind, change.state.name());
        let (id, mode) = (change.job.to_string(), change.mode.clone());
        Self { id, kind, mode, state, percent, step, steps, reason }
    }
}
