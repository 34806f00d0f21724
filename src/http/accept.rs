//! The `Accept` header → the format of the image (RFC 9110, 12.5.1). Pure.

use axum::http::{HeaderMap, header};

use super::problem::{Kind, Problem};
use crate::image::Format;

/// What can be asked for; where a client is indifferent, the first one.
const FORMATS: [Format; 3] = [Format::Png, Format::Jpeg { quality: 92 }, Format::WebP];

/// The format that the client likes best. A client that says nothing gets a PNG.
pub fn image_format(headers: &HeaderMap) -> Result<Format, Problem> {
    let accepts: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if accepts.is_empty() {
        return Ok(FORMATS[0]);
    }
    choose(&accepts.join(",")).ok_or_else(|| {
        let offered = FORMATS.map(Format::media_type).join(", ");
        Problem::new(Kind::NotAcceptable, format!("an image can be had as {offered}"))
    })
}

fn choose(accept: &str) -> Option<Format> {
    let mut best: Option<(f32, Format)> = None;
    for format in FORMATS {
        let quality = quality_of(format.media_type(), accept);
        if quality > best.map_or(0.0, |(quality, _)| quality) {
            best = Some((quality, format));
        }
    }
    best.map(|(_, format)| format)
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
                "image/*" => 1,
                name if name == media_type => 2,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_the_client_likes_best() {
        for (accept, expected) in [
            ("*/*", Some("image/png")),
            ("image/*", Some("image/png")),
            ("image/jpeg", Some("image/jpeg")),
            ("IMAGE/WEBP", Some("image/webp")),
            ("image/webp, */*;q=0.8", Some("image/webp")),
            ("image/avif,image/webp,image/*,*/*;q=0.8", Some("image/png")),
            ("image/jpeg;q=0.5, image/webp; q=0.9", Some("image/webp")),
            ("image/png;q=0, image/*", Some("image/jpeg")),
            ("text/html, application/json", None),
            ("image/png;q=0", None),
            ("image/png;q=much", None),
            ("", None),
        ] {
            assert_eq!(choose(accept).map(Format::media_type), expected, "{accept}");
        }
    }

    #[test]
    fn silence_is_consent() {
        assert_eq!(image_format(&HeaderMap::new()).unwrap(), Format::Png);
    }
}
