//! `<lora:NAME>` and `<lora:NAME:STRENGTH>` in a prompt, as AUTOMATIC1111's web UI reads them.

use crate::modes::LoraRef;

const BEGIN: &str = "<lora:";

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "'<lora:{inside}>' is not understood; write it as <lora:NAME> or <lora:NAME:STRENGTH>, \
     with a strength from -{max} to {max}",
    max = LoraRef::MAX_STRENGTH
)]
pub struct BadTag {
    inside: String,
}

/// Every tag's name and strength, in their order.
pub fn all(prompt: &str) -> impl Iterator<Item = Result<(&str, f32), BadTag>> {
    Pieces(prompt).filter_map(|piece| match piece {
        Piece::Text(_) => None,
        Piece::Tag(inside) => {
            Some(read(inside).ok_or_else(|| BadTag { inside: inside.to_owned() }))
        }
    })
}

/// The prompt as the text encoder shall see it.
pub fn without(prompt: &str) -> String {
    let texts = Pieces(prompt).map(|piece| match piece {
        Piece::Text(text) => text,
        Piece::Tag(_) => "",
    });
    texts.collect()
}

fn read(inside: &str) -> Option<(&str, f32)> {
    let (name, strength): (_, f32) = match inside.split_once(':') {
        None => (inside, 1.0),
        Some((name, strength)) => (name, strength.trim().parse().ok()?),
    };
    let name = name.trim();
    let fits = strength.is_finite() && strength.abs() <= LoraRef::MAX_STRENGTH;
    (fits && !name.is_empty()).then_some((name, strength))
}

enum Piece<'a> {
    Text(&'a str),
    /// What stands between `<lora:` and `>`.
    Tag(&'a str),
}

/// A prompt, cut at its tags. What is never closed is text.
struct Pieces<'a>(&'a str);

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let rest = self.0;
        if rest.is_empty() {
            return None;
        }
        let begin = rest.find(BEGIN);
        let end = begin.and_then(|at| Some(at + rest[at..].find('>')?));
        let (piece, behind) = match (begin, end) {
            (Some(0), Some(end)) => (Piece::Tag(&rest[BEGIN.len()..end]), end + 1),
            (Some(begin), Some(_)) => (Piece::Text(&rest[..begin]), begin),
            (None, _) | (_, None) => (Piece::Text(rest), rest.len()),
        };
        self.0 = &rest[behind..];
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_and_taken_out() {
        for (prompt, tags, text) in [
            ("a fox", &[][..], "a fox"),
            ("", &[], ""),
            ("a fox <lora:ink:0.8>, snow", &[("ink", 0.8)], "a fox , snow"),
            ("<lora:ink>", &[("ink", 1.0)], ""),
            ("<lora:a b.v2:-1><lora: c :.5> x", &[("a b.v2", -1.0), ("c", 0.5)], " x"),
            ("狐<lora:狐:1>狐", &[("狐", 1.0)], "狐狐"),
            ("a < b > c, <b:1> <LORA:x>", &[], "a < b > c, <b:1> <LORA:x>"),
            ("never <lora:closed:1", &[], "never <lora:closed:1"),
        ] {
            let found: Vec<_> = all(prompt).map(Result::unwrap).collect();
            assert_eq!((&found[..], without(prompt).as_str()), (tags, text), "{prompt}");
        }
    }

    #[test]
    fn a_tag_that_is_none_is_an_error() {
        for inside in ["", ":1", " :1", "x:", "x:strong", "x:1:0.5", "x:inf", "x:NaN", "x:101"] {
            let prompt = format!("a fox <lora:{inside}>");
            let error = all(&prompt).next().unwrap().unwrap_err().to_string();
            let start = format!("'<lora:{inside}>' is not understood; write it as <lora:NAME> or ");
            assert!(error.starts_with(&start), "{error}");
        }
    }
}
