//! From a prompt's text to what text encoders read: chunks of token ids, and how much each weighs.
//!
//! Knows nothing of the encoders: what becomes of ids and weights is `diffusion`'s.

mod attention;

pub use super::tokenizer::Padding;
use super::tokenizer::{self, END, LENGTH, START};
use crate::modes::{LongPrompts, PromptSyntax};

/// Tokens of text in a chunk, between the start and the end token.
const TEXT: usize = LENGTH - 2;
/// The most chunks that are encoded, 2,400 tokens of text; what is beyond is cut.
pub const MAX_CHUNKS: usize = 32;

/// A prompt as text encoders read it. There is at least one chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub chunks: Vec<Chunk>,
    /// The text of the tokens that found no room, as the reference's warning writes it: in lower
    /// case, with spaces between tokens that are words.
    pub truncated: Option<String>,
}

/// What an encoder reads at once: start token, up to 75 tokens of text, end token, padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// [`LENGTH`] of them.
    pub ids: Vec<u32>,
    /// One for each id, finite; 1 for all that is not text.
    pub weights: Vec<f32>,
}

/// The parts of a prompt and what each weighs; at least one, and some may be empty.
pub fn parse(text: &str, syntax: PromptSyntax) -> Vec<(String, f32)> {
    match syntax {
        PromptSyntax::Plain => vec![(text.to_owned(), 1.0)],
        PromptSyntax::Weighted => attention::parse(text),
    }
}

/// The prompt's chunks: under [`LongPrompts::Cut`] one, as diffusers' pipelines cut it; under
/// [`LongPrompts::Chunk`] as many as its tokens fill, up to [`MAX_CHUNKS`].
pub fn encode(text: &str, syntax: PromptSyntax, long: LongPrompts, padding: Padding) -> Encoded {
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for (part, weight) in parse(text, syntax) {
        ids.extend(tokenizer::encode(&part, padding));
        weights.resize(ids.len(), weight);
    }
    let room = match long {
        LongPrompts::Cut => TEXT,
        LongPrompts::Chunk => TEXT * MAX_CHUNKS,
    };
    let (kept, dropped) = ids.split_at(ids.len().min(room));
    let parts = kept.chunks(TEXT).zip(weights.chunks(TEXT));
    let mut encoded = Encoded {
        chunks: parts.map(|(ids, weights)| Chunk::of(ids, weights, padding)).collect(),
        truncated: (!dropped.is_empty()).then(|| tokenizer::decode(dropped)),
    };
    encoded.extend_to(1, padding);
    encoded
}

impl Encoded {
    /// Adds chunks of an empty prompt until there are as many. A prompt and its negative prompt are
    /// guided by one against the other, so both must have the same number.
    pub fn extend_to(&mut self, chunks: usize, padding: Padding) {
        let missing = chunks.saturating_sub(self.chunks.len());
        self.chunks.extend(std::iter::repeat_n(Chunk::of(&[], &[], padding), missing));
    }

    /// Whether any token weighs more or less than it does by itself.
    pub fn is_weighted(&self) -> bool {
        self.chunks.iter().any(|chunk| chunk.weights.iter().any(|weight| *weight != 1.0))
    }
}

impl Chunk {
    /// Of at most [`TEXT`] ids, and as many weights.
    fn of(text: &[u32], text_weights: &[f32], padding: Padding) -> Self {
        let mut ids = Vec::with_capacity(LENGTH);
        ids.push(START);
        ids.extend_from_slice(text);
        ids.push(END);
        ids.resize(LENGTH, padding.id());
        let mut weights = vec![1.0; LENGTH];
        weights[1..][..text_weights.len()].copy_from_slice(text_weights);
        Self { ids, weights }
    }

    /// Where the first end token is: the encoder's state there stands for the whole text ("pooled").
    /// The one that a prompt spells out counts too, as in the reference.
    pub fn end(&self) -> usize {
        self.ids.iter().position(|id| *id == END).unwrap_or(LENGTH - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATS: [usize; 7] = [0, 1, 74, 75, 76, 150, 75 * 32 + 1];
    const CAT: u32 = 2368;

    fn plain(text: &str, long: LongPrompts) -> Encoded {
        encode(text, PromptSyntax::Plain, long, Padding::End)
    }

    fn cats(number: usize) -> String {
        ["cat"].repeat(number).join(" ")
    }

    #[test]
    fn cut_is_what_the_reference_reads() {
        for number in CATS {
            let prompt = cats(number);
            let Encoded { chunks, truncated } = plain(&prompt, LongPrompts::Cut);
            assert_eq!(chunks.len(), 1);
            assert_eq!(chunks[0].ids, tokenizer::tokenize(&prompt), "{number}");
            assert_eq!(chunks[0].end(), 1 + number.min(75), "{number}");
            let dropped = number.saturating_sub(75);
            assert_eq!(truncated, (dropped > 0).then(|| cats(dropped)), "{number}");
        }
    }

    #[test]
    fn chunks_hold_75_tokens_each() {
        for number in CATS {
            let Encoded { chunks, truncated } = plain(&cats(number), LongPrompts::Chunk);
            let kept = number.min(75 * 32);
            assert_eq!(chunks.len(), kept.div_ceil(75).max(1), "{number}");
            for (index, Chunk { ids, weights }) in chunks.iter().enumerate() {
                let full = (kept - 75 * index).min(75);
                let mut expected = [&[START][..], &vec![CAT; full]].concat();
                expected.resize(77, END);
                assert_eq!(*ids, expected, "{number}, chunk {index}");
                assert_eq!(*weights, [1.0; 77], "{number}, chunk {index}");
            }
            assert_eq!(truncated, (number > kept).then(|| "cat".to_owned()), "{number}");
        }
    }

    #[test]
    fn a_weight_counts_for_the_tokens_of_its_part() {
        let of = |text: &str, long| encode(text, PromptSyntax::Weighted, long, Padding::Zero);
        let encoded = of("a red (fox:1.5) ([cub])", LongPrompts::Cut);
        assert!(encoded.is_weighted());
        let Chunk { ids, weights } = &encoded.chunks[0];
        assert_eq!(ids[..7], [START, 320, 736, 3240, 19972, END, 0]);
        assert_eq!(ids[6..], [0; 71]);
        assert_eq!(weights[..5], [1.0, 1.0, 1.0, 1.5, 1.0]);
        assert_eq!(weights[5..], [1.0; 72]);

        // One weight on both sides of a chunk's end.
        let encoded = of(&format!("{} (cat cat:0.5)", cats(74)), LongPrompts::Chunk);
        assert_eq!(encoded.chunks[0].weights[74..], [1.0, 0.5, 1.0]);
        assert_eq!(encoded.chunks[1].weights[..3], [1.0, 0.5, 1.0]);

        assert!(!of("(a:1.0) \\(b\\)", LongPrompts::Cut).is_weighted());
        assert!(!of("()", LongPrompts::Cut).is_weighted());
        assert!(!plain("(a:1.5)", LongPrompts::Cut).is_weighted());
    }

    #[test]
    fn shorter_prompts_get_empty_chunks() {
        for padding in [Padding::End, Padding::Zero] {
            let encode =
                |text: &str| encode(text, PromptSyntax::Plain, LongPrompts::Chunk, padding);
            let (empty, mut short, long) = (encode(""), encode("cat"), encode(&cats(151)));
            let first = short.chunks[0].clone();
            short.extend_to(long.chunks.len(), padding);
            assert_eq!(short.chunks, [&[first][..], &empty.chunks, &empty.chunks].concat());
            short.extend_to(1, padding);
            assert_eq!(short.chunks.len(), 3);
        }
    }

    #[test]
    fn the_end_is_the_first_end_token() {
        let end = |text: &str, padding| {
            encode(text, PromptSyntax::Plain, LongPrompts::Cut, padding).chunks[0].end()
        };
        for (text, expected) in [("", 1), ("cat", 2), ("cat <|endoftext|> cat", 2), ("a!!", 3)] {
            assert_eq!(end(text, Padding::End).min(3), expected, "{text}");
        }
        assert_eq!(end("a!!", Padding::Zero), 4);
    }
}
