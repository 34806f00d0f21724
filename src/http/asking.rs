//! What a body asks for: its mode, its images and LoRAs found, nothing open any more.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::{
    Api,
    answer::Asked,
    body::{GenerateBody, work_on},
    budget::{Place, WORK},
    problem::Problem,
};
use crate::{
    config::{find_lora, with_loras},
    dispatcher::unix_ms,
    image,
    job::Terms,
    modes::{Mode, Modes, PipelineSpec, Timeout, UnknownMode},
    request::{Context, EncodedImage, FieldError, InvalidFields, Overrides, WebhookWish},
    webhook,
};

/// The bytes of an image file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes a body that is bytes")]
pub struct ImageFile(Vec<u8>);

/// The fields of a JSON body as a form's parts: images as files, `loras` as JSON. A part that is
/// empty counts as absent.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body that is read by hand")]
pub struct GenerateForm {
    /// The same as the field of that name in a JSON body; so for every other field.
    prompt: Option<String>,
    #[schema(value_type = Option<String>, format = Binary)]
    init_image: Option<Vec<u8>>,
    #[schema(value_type = Option<String>, format = Binary)]
    mask_image: Option<Vec<u8>>,
    /// A JSON object with fields that have no part of their own.
    #[schema(value_type = Option<Overrides>)]
    request: Option<String>,
}

/// A generation, and on which terms.
pub struct Understood {
    pub asked: Asked,
    pub terms: Terms,
    /// That of its images, until the queue counts them.
    pub place: Option<Place>,
}

/// Resolves a body against the modes of this moment; finds everything that is wrong with it.
pub async fn understand(api: &Api, body: GenerateBody) -> Result<Understood, Problem> {
    let GenerateBody { fields, files, place } = body;
    // Only the images are left of it: the fields may have held them as text.
    let parse = move || {
        let overrides = Overrides::parse_with(&fields, files)?;
        let checking = checking_bytes(&overrides);
        Ok::<_, InvalidFields>((overrides, checking))
    };
    let (parsed, mut place) = work_on(place, parse).await?;
    let (overrides, checking) = parsed?;
    if let Some(place) = &mut place {
        let images = [&overrides.init_image, &overrides.mask_image].into_iter().flatten();
        place.shrink_to(images.map(|image| image.0.len() as u64).sum());
    }
    let modes = api.config.current();
    let selected = &api.dispatcher.status().selected_mode;
    let mode = mode_for(&modes, overrides.mode.as_deref(), selected)?.clone();
    ask(&modes, &mode, (overrides, checking), place).await
}

/// The mode that is named; else the one that was last switched to, if a reload has left it.
fn mode_for<'a>(
    modes: &'a Modes,
    named: Option<&str>,
    selected: &str,
) -> Result<&'a Arc<Mode>, UnknownMode> {
    match named {
        Some(name) => modes.get(name),
        None => modes.get(selected).or_else(|_| modes.get(&modes.default_mode)),
    }
}

async fn ask(
    modes: &Arc<Modes>,
    mode: &Arc<Mode>,
    (overrides, checking): (Overrides, Option<u64>),
    place: Option<Place>,
) -> Result<Understood, Problem> {
    let working = match checking {
        Some(bytes) => Some(WORK.take(bytes).await?),
        None => None,
    };
    let looking_up = look_up(modes, mode, overrides, working);
    let (overrides, Found { init_image, pipeline }) = looking_up.await?;
    let prompt = overrides.prompt.clone();
    let terms = terms(modes, mode, &overrides)?;
    let lora_pointers = overrides.loras.iter().map(|wish| wish.pointer.clone()).collect();
    // 32 bits: what torch's generator takes of a seed.
    let seed = getrandom::u32().map_err(Problem::internal)?;
    let superres = modes.superres.as_ref();
    let context = Context { mode, max_pixels: modes.max_pixels, init_image, superres };
    let request = overrides.resolve(context, || seed.into())?;
    let asked = Asked { prompt, request, pipeline, lora_pointers };
    Ok(Understood { asked, terms, place })
}

fn terms(modes: &Modes, mode: &Mode, overrides: &Overrides) -> Result<Terms, InvalidFields> {
    let now = unix_ms();
    let deadline = overrides.deadline.map(|deadline| deadline.unix_ms(now));
    if deadline.is_some_and(|deadline| deadline <= now) {
        let error = FieldError::of("deadline", "has passed already");
        return Err(InvalidFields(vec![error]));
    }
    let timeouts = [modes.timeout, mode.timeout].into_iter().filter_map(Timeout::secs);
    Ok(Terms {
        priority: overrides.priority.unwrap_or(0),
        tags: overrides.tags.clone(),
        prompt: overrides.prompt.clone(),
        durable: false,
        deadline_unix_ms: deadline,
        admission_secs: None,
        timeout_by_pace: [modes.timeout, mode.timeout] == [Timeout::Auto; 2],
        timeout_secs: timeouts.chain(overrides.timeout).min(),
        client: None,
        idempotency: None,
        webhook: overrides.webhook.as_ref().map(|wish| wish.webhook.clone()),
    })
}

/// What only a look at the request's images and at the disk can tell.
struct Found {
    /// Width and height of the init image.
    init_image: Option<(u32, u32)>,
    /// The mode's with the request's own LoRAs.
    pipeline: PipelineSpec,
}

async fn look_up(
    modes: &Arc<Modes>,
    mode: &Arc<Mode>,
    overrides: Overrides,
    working: Option<Place>,
) -> Result<(Overrides, Found), Problem> {
    let (modes, mode) = (modes.clone(), mode.clone());
    let looking = spawn_blocking(move || {
        let found = find(&modes, &mode, &overrides);
        drop(working);
        found.map(|found| (overrides, found))
    });
    Ok(looking.await.map_err(Problem::internal)??)
}

/// The memory that checking the images takes, one after the other; none if there are none. One that
/// is no image costs nothing: it is refused with all else that is wrong.
fn checking_bytes(overrides: &Overrides) -> Option<u64> {
    let images = [&overrides.init_image, &overrides.mask_image].into_iter().flatten();
    images.filter_map(|image| Some(image::header(&image.0).ok()?.checking_bytes)).max()
}

/// Reads the images to their ends and looks for the LoRAs; finds everything that is wrong.
fn find(modes: &Modes, mode: &Mode, overrides: &Overrides) -> Result<Found, InvalidFields> {
    let mut errors = Vec::new();
    let mut dimensions = |name, image: &Option<EncodedImage>| {
        let file = &image.as_ref()?.0;
        let header = image::header(file).and_then(|header| image::check(file).map(|()| header));
        match header {
            Ok(header) => Some((header.width, header.height)),
            Err(error) => {
                errors.push(FieldError::of(name, error.to_string()));
                None
            }
        }
    };
    let init_image = dimensions("init_image", &overrides.init_image);
    dimensions("mask_image", &overrides.mask_image);
    errors.extend(check_webhook(modes, overrides.webhook.as_ref()));
    let mut loras = Vec::new();
    for wish in &overrides.loras {
        match find_lora(modes, mode, &wish.name, wish.strength) {
            Ok(lora) => loras.push(lora),
            Err(error) => {
                let pointer = wish.pointer.clone();
                errors.push(FieldError { pointer, detail: error.to_string() });
            }
        }
    }
    if !errors.is_empty() {
        return Err(InvalidFields(errors));
    }
    Ok(Found { init_image, pipeline: with_loras(mode.pipeline.clone(), loras) })
}

/// What is wrong with a webhook's URL, as far as that can be told before it is connected to.
pub fn check_webhook(modes: &Modes, wish: Option<&WebhookWish>) -> Option<FieldError> {
    let wish = wish?;
    let checked = webhook::check_url(&wish.webhook.url, modes.webhooks.allow_private);
    let detail = checked.err()?.to_owned();
    Some(FieldError { pointer: wish.pointer.clone(), detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::modes;

    #[test]
    fn the_mode_is_the_named_the_selected_or_the_default_one() {
        let modes = modes("{a: {model: a}, b: {model: b}}", "b");
        for (named, selected, expected) in [
            (Some("a"), "b", Ok("a")),
            (None, "a", Ok("a")),
            (None, "gone", Ok("b")),
            (Some("gone"), "a", Err(())),
        ] {
            let mode = mode_for(&modes, named, selected);
            let name = mode.as_ref().map(|mode| mode.name.as_str()).map_err(|_| ());
            assert_eq!(name, expected, "{named:?} {selected}");
        }
    }
}
