//! AUTOMATIC1111's attention syntax: brackets that make words weigh more or less.
//!
//! Behaves as `parse_prompt_attention` in stable-diffusion-webui's `modules/prompt_parser.py` does,
//! but for three things: `BREAK` is a word like any other; a number that cannot be read
//! (`(word:1.2.3)`), which ends the program there, is text here; and what has no bounds there has
//! some here ([`MAX_WEIGHT`], [`MAX_DEPTH`]).

/// The most that a part can weigh, either way: products of weights stay finite.
pub const MAX_WEIGHT: f64 = 1000.0;
/// Brackets of a kind inside one another that count: time stays linear.
const MAX_DEPTH: usize = 64;

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;

/// The text's parts and what each weighs; neighbours of equal weight are one part. There is always
/// a part, and some may be empty.
///
/// `(word)` weighs 1.1 times as much as what is around it, `(word:1.3)` 1.3 times, `[word]` 1/1.1
/// times. A bracket that is not closed reaches to the end; one that was not opened is text, as is
/// one behind a backslash. A backslash before anything else vanishes.
pub fn parse(text: &str) -> Vec<(String, f32)> {
    let mut parser = Parser::default();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (taken, sign) = next_sign(rest, first);
        let (piece, after) = rest.split_at(taken);
        parser.take(piece, sign);
        rest = after;
    }
    parser.finish()
}

enum Sign {
    /// A part of the text as it stands.
    Text,
    /// A part of the text behind a backslash.
    Escaped,
    Open(Kind),
    /// Closes a bracket, multiplying what is in it.
    Close(Kind, f64),
}

#[derive(Clone, Copy)]
enum Kind {
    Round,
    Square,
}

/// What `rest` begins with, and how many bytes of it that takes.
fn next_sign(rest: &str, first: char) -> (usize, Sign) {
    match first {
        '\\' => {
            let literal = rest[1..].starts_with(['(', ')', '[', ']', '\\']);
            (1 + usize::from(literal), Sign::Escaped)
        }
        '(' => (1, Sign::Open(Kind::Round)),
        '[' => (1, Sign::Open(Kind::Square)),
        ')' => (1, Sign::Close(Kind::Round, ROUND)),
        ']' => (1, Sign::Close(Kind::Square, SQUARE)),
        ':' => match weight_and_close(rest) {
            Some((weight, taken)) => (taken, Sign::Close(Kind::Round, weight)),
            None => (1, Sign::Text),
        },
        _ => {
            let end = rest.find(['\\', '(', ')', '[', ']', ':']);
            (end.unwrap_or(rest.len()), Sign::Text)
        }
    }
}

/// The number in `: 1.3 )`, and how many bytes that is.
fn weight_and_close(rest: &str) -> Option<(f64, usize)> {
    let number = rest.strip_prefix(':')?.trim_start();
    let signed = number.strip_prefix(['+', '-']).unwrap_or(number);
    let after = signed.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let weight: f64 = number[..number.len() - after.len()].parse().ok()?;
    let after = after.trim_start().strip_prefix(')')?;
    Some((weight.clamp(-MAX_WEIGHT, MAX_WEIGHT), rest.len() - after.len()))
}

/// Brackets of the two kinds are closed independently: `(a[b)c]` weighs `b` both ways.
#[derive(Default)]
struct Parser<'a> {
    parts: Vec<(&'a str, f64)>,
    /// How many parts there were when each open bracket was opened.
    round: Vec<usize>,
    square: Vec<usize>,
}

impl<'a> Parser<'a> {
    fn take(&mut self, piece: &'a str, sign: Sign) {
        match sign {
            Sign::Text => self.parts.push((piece, 1.0)),
            Sign::Escaped => self.parts.push((&piece[1..], 1.0)),
            Sign::Open(kind) => {
                let parts = self.parts.len();
                self.open(kind).push(parts);
            }
            Sign::Close(kind, factor) => match self.open(kind).pop() {
                Some(from) => {
                    let depth = self.open(kind).len();
                    self.weigh(from, depth, factor);
                }
                None => self.parts.push((piece, 1.0)),
            },
        }
    }

    fn open(&mut self, kind: Kind) -> &mut Vec<usize> {
        match kind {
            Kind::Round => &mut self.round,
            Kind::Square => &mut self.square,
        }
    }

    /// `depth`: brackets of the kind around this one.
    fn weigh(&mut self, from: usize, depth: usize, factor: f64) {
        if depth < MAX_DEPTH {
            self.parts[from..].iter_mut().for_each(|(_, weight)| *weight *= factor);
        }
    }

    fn finish(mut self) -> Vec<(String, f32)> {
        for (kind, factor) in [(Kind::Round, ROUND), (Kind::Square, SQUARE)] {
            for (depth, from) in std::mem::take(self.open(kind)).into_iter().enumerate() {
                self.weigh(from, depth, factor);
            }
        }
        if self.parts.is_empty() {
            self.parts.push(("", 1.0));
        }
        for (_, weight) in &mut self.parts {
            *weight = weight.clamp(-MAX_WEIGHT, MAX_WEIGHT);
        }
        let merged = self
            .parts
            .chunk_by(|(_, a), (_, b)| a == b)
            .map(|run| (run.iter().map(|(text, _)| *text).collect(), run[0].1 as f32));
        merged.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_reference_weighs() {
        let cases: &[(&str, &[(&str, f32)])] = &[
            ("", &[("", 1.0)]),
            ("normal text", &[("normal text", 1.0)]),
            ("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
            ("an [unimportant] word", &[("an ", 1.0), ("unimportant", 1.0 / 1.1), (" word", 1.0)]),
            ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
            // Numbers
            ("(word:1.3)", &[("word", 1.3)]),
            ("(word: 1.3 )", &[("word", 1.3)]),
            ("(word:+.5)(word:2.)", &[("word", 0.5), ("word", 2.0)]),
            ("(word:-1)", &[("word", -1.0)]),
            ("(word:0)", &[("word", 0.0)]),
            ("(word:١)", &[("word:١", 1.1)]),
            ("(word:1.3 x)", &[("word:1.3 x", 1.1)]),
            ("(a:b:1.3)", &[("a:b", 1.3)]),
            ("(word:)", &[("word:", 1.1)]),
            ("[word:1.3]", &[("word:1.3", 1.0 / 1.1)]),
            ("[word:1.3)]", &[("word:1.3)", 1.0 / 1.1)]),
            ("word:1.3)", &[("word:1.3)", 1.0)]),
            ("(:1.3)", &[("", 1.0)]),
            // Nesting
            (
                "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                &[
                    ("a ", 1.0),
                    ("house", 1.573),
                    (" ", 1.1),
                    ("on", 1.0),
                    (" a ", 1.1),
                    ("hill", 0.55),
                    (", sun, ", 1.1),
                    ("sky", 1.4641),
                    (".", 1.1),
                ],
            ),
            ("(a[b)c]", &[("a", 1.1), ("b", 1.0), ("c", 1.0 / 1.1)]),
            // Unbalanced
            ("(unbalanced", &[("unbalanced", 1.1)]),
            ("((un [balanced", &[("un ", 1.21), ("balanced", 1.1)]),
            ("unbalanced) here]", &[("unbalanced) here]", 1.0)]),
            ("()[]", &[("", 1.0)]),
            // Backslashes
            (r"\(literal\]", &[("(literal]", 1.0)]),
            (r"(a\)b:2)", &[("a)b", 2.0)]),
            (r"a\\b \\(c)", &[(r"a\b \", 1.0), ("c", 1.1)]),
            (r"a\b\", &[("ab", 1.0)]),
            (r"(a\:2)", &[("a", 2.0)]),
            // Neighbours of one weight are one text, so that a word stays a word.
            ("c()at", &[("cat", 1.0)]),
            ("BREAK", &[("BREAK", 1.0)]),
        ];
        for (text, expected) in cases {
            let found = parse(text);
            let close =
                |((a, x), (b, y)): (&(String, f32), &(&str, f32))| a == b && (x - y).abs() <= 1e-6;
            let same = found.len() == expected.len() && found.iter().zip(*expected).all(close);
            assert!(same, "{text:?}: {found:?}");
        }
    }

    #[test]
    fn what_the_reference_has_no_bounds_for() {
        let nines = "9".repeat(400);
        let weigh = |text: &str| parse(text).into_iter().map(|(_, weight)| weight).collect();
        let cases: [(String, Vec<f32>); 8] = [
            (format!("(word:{nines})"), vec![1000.0]),
            (format!("(word:-{nines})"), vec![-1000.0]),
            (format!("({}word{}:0)", "(".repeat(100), ":999)".repeat(100)), vec![0.0]),
            (format!("{}word{}", "(".repeat(10_000), ":999)".repeat(10_000)), vec![1000.0]),
            (format!("{}word{}", "(".repeat(10_000), ")".repeat(10_000)), vec![445.791_56]),
            ("((a:999)b:999)(c:1000)".to_owned(), vec![1000.0, 999.0, 1000.0]),
            ("((a:9)b:9999)".to_owned(), vec![1000.0]),
            ("(word:1.2.3)(.:.)".to_owned(), vec![1.1]),
        ];
        for (text, expected) in cases {
            let found: Vec<f32> = weigh(&text);
            assert_eq!(found, expected, "{text:.40}");
        }
    }
}
