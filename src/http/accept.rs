//! The `Accept` header → the form of the answer (RFC 9110, 12.5.1). Pure.

use axum::http::{HeaderMap, header};

use super::problem::{Kind, Problem};
use crate::image::Format;

/// What can be asked for; where a client is indifferent, the first one.
const FORMATS: [Format; 3] =
    [Format::Png, Format::Jpeg { quality: Format::JPEG_QUALITY }, Format::WebP];
const JSON: &str = "application/json";

/// How images are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The one image is the body.
    Image(Format),
    /// In base64, with what there is to say about them.
    Json(Format),
}

/// The form that the client likes best, for that many images. A client that says nothing gets one
/// image as a PNG, and several as JSON.
pub fn form(headers: &HeaderMap, images: u32) -> Result<Form, Problem> {
    let accepts: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = if accepts.is_empty() { "*/*".to_owned() } else { accepts.join(",") };
    choose(&accept, images).ok_or_else(|| {
        let detail = if images > 1 {
            format!(
                "{images} images are sent as {JSON}: accept that, or ask for one image with 'n': 1"
            )
        } else {
            let offered = FORMATS.map(Format::media_type).join(", ");
            format!("an image can be had as {offered}, or in {JSON}")
        };
        Problem::new(Kind::NotAcceptable, detail)
    })
}

/// The same, where the request itself has said what an image is to be encoded as: then `Accept` only
/// tells whether that is to be in JSON.
pub fn form_as(headers: &HeaderMap, images: u32, format: Option<Format>) -> Result<Form, Problem> {
    match (form(headers, images), format) {
        (form, None) => form,
        (Ok(Form::Json(_)), Some(format)) => Ok(Form::Json(format)),
        (Ok(Form::Image(_)), Some(format)) => Ok(Form::Image(format)),
        (Err(_), Some(format)) if images == 1 => Ok(Form::Image(format)),
        (Err(problem), Some(_)) => Err(problem),
    }
}

fn choose(accept: &str, images: u32) -> Option<Form> {
    let (format, image_quality) = best_format(accept);
    let json_quality = quality_of(JSON, accept);
    if images == 1 && image_quality > 0.0 && image_quality >= json_quality {
        Some(Form::Image(format))
    } else {
        (json_quality > 0.0).then_some(Form::Json(format))
    }
}

/// The format that is liked best and how much, 0 where none is.
fn best_format(accept: &str) -> (Format, f32) {
    let mut best = (FORMATS[0], 0.0);
    for format in FORMATS {
        let quality = quality_of(format.media_type(), accept);
        if quality > best.1 {
            best = (format, quality);
        }
    }
    best
}

/// The weight of the most specific range that the media type falls into; 0 is "not acceptable".
fn quality_of(media_type: &str, accept: &str) -> f32 {
    accept
        .split(',')
        .filter_map(|range| {
            let mut parameters = range.split(';').map(str::trim);
            let name = parameters.next()?.to_ascii_lowercase();
            let specificity = match name.as_str() {
                "*/*" => 0,
                name if name == media_type => 2,
                name if name.strip_suffix('*').is_some_and(|kind| is_of(media_type, kind)) => 1,
                _ => return None,
            };
            let quality: f32 = parameters
                .find_map(|parameter| parameter.strip_prefix("q=").or(parameter.strip_prefix("Q=")))
                .map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
            Some((specificity, quality))
        })
        .max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))
        .map_or(0.0, |(_, quality)| quality)
}

/// Whether the media type is of that kind: `image/`.
fn is_of(media_type: &str, kind: &str) -> bool {
    kind.ends_with('/') && media_type.starts_with(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_the_client_likes_best() {
        let jpeg = FORMATS[1];
        let image = |format| Some(Form::Image(format));
        let json = |format| Some(Form::Json(format));
        let (png, webp) = (Format::Png, Format::WebP);
        for (accept, one, several) in [
            ("*/*", image(png), json(png)),
            ("image/*", image(png), None),
            ("image/jpeg", image(jpeg), None),
            ("IMAGE/WEBP", image(webp), None),
            ("image/webp, */*;q=0.8", image(webp), json(webp)),
            ("image/avif,image/webp,image/*,*/*;q=0.8", image(png), json(png)),
            ("image/jpeg;q=0.5, image/webp; q=0.9", image(webp), None),
            ("image/png;q=0, image/*", image(jpeg), None),
            ("application/json, text/plain, */*", image(png), json(png)),
            ("application/json", json(png), json(png)),
            ("application/*", json(png), json(png)),
            ("text/html, Application/JSON", json(png), json(png)),
            ("application/json, image/webp;q=0.9", json(webp), json(webp)),
            ("image/jpeg, application/json;q=0.1", image(jpeg), json(jpeg)),
            ("application/json;q=0, */*", image(png), None),
            ("text/html", None, None),
            ("image/png;q=0", None, None),
            ("image/png;q=much", None, None),
            ("", None, None),
        ] {
            assert_eq!((choose(accept, 1), choose(accept, 2)), (one, several), "{accept}");
        }
    }

    #[test]
    fn a_format_that_was_asked_for_goes_before_what_is_accepted() {
        let jpeg = Format::Jpeg { quality: 7 };
        for (accept, images, expected) in [
            ("*/*", 1, Some(Form::Image(jpeg))),
            ("image/webp", 1, Some(Form::Image(jpeg))),
            ("text/html", 1, Some(Form::Image(jpeg))),
            ("application/json", 1, Some(Form::Json(jpeg))),
            ("*/*", 2, Some(Form::Json(jpeg))),
            ("image/jpeg", 2, None),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(form_as(&headers, images, Some(jpeg)).ok(), expected, "{accept} {images}");
        }
    }

    #[test]
    fn silence_is_consent() {
        assert_eq!(form(&HeaderMap::new(), 1).unwrap(), Form::Image(Format::Png));
        assert_eq!(form(&HeaderMap::new(), 2).unwrap(), Form::Json(Format::Png));
    }
}
