//! CLIP's tokenizer, as transformers' `CLIPTokenizer` has it: text to ids and back.
//!
//! Knows nothing of prompts: their weights, chunks and padding are `prompt`'s.

use std::sync::OnceLock;

use instant_clip_tokenizer::{Token, Tokenizer as Bpe};
use unicode_normalization::UnicodeNormalization;

/// Ids that a text encoder reads at a time, the start and end tokens included.
pub const LENGTH: usize = 77;
/// Size of the vocabulary, the two special tokens included.
pub const VOCABULARY: usize = 49_408;

/// `<|startoftext|>`
pub const START: u32 = 49_406;
/// `<|endoftext|>`
pub const END: u32 = 49_407;
/// What the special tokens look like where a prompt spells them out; [`Padding::Zero`]'s is the last.
const SPECIALS: [(&str, u32); 3] = [("<|startoftext|>", START), ("<|endoftext|>", END), ("!", 0)];
/// What the tokenizer's crate takes for special tokens, and the reference does not.
const CRATE_SPECIALS: [&str; 2] = ["<start_of_text>", "<end_of_text>"];

/// What follows the end token, to [`LENGTH`]; the one thing in which the two tokenizers of the
/// Stable Diffusion family differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// The end token again: CLIP-L (SD1.x, SDXL's first encoder).
    End,
    /// "!", whose id is 0: OpenCLIP (SD2.x, SDXL's second encoder, its refiner). To the reference
    /// it is thereby a special token and has that id wherever it stands, also in `wow!!!`, whose
    /// end would be one token else.
    Zero,
}

impl Padding {
    pub fn id(self) -> u32 {
        match self {
            Self::End => END,
            Self::Zero => 0,
        }
    }

    /// The special tokens of this tokenizer, as they look and are.
    fn specials(self) -> &'static [(&'static str, u32)] {
        let padding = SPECIALS.len() - 1;
        match self {
            Self::End => &SPECIALS[..padding],
            Self::Zero => &SPECIALS,
        }
    }
}

/// A prompt's [`LENGTH`] ids as diffusers asks CLIP-L's tokenizer for them: start token first, cut
/// at 75 tokens of text, padded with the end token.
pub fn tokenize(prompt: &str) -> Vec<u32> {
    let mut ids = vec![START];
    ids.extend(encode(prompt, Padding::End));
    ids.truncate(LENGTH - 1);
    ids.resize(LENGTH, END);
    ids
}

/// All ids of the text, and nothing before or after them.
pub fn encode(text: &str, padding: Padding) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut rest = text;
    while let Some((before, id, after)) = split_at_special(rest, padding.specials()) {
        encode_plain(before, &mut ids);
        ids.push(id);
        rest = after;
    }
    encode_plain(rest, &mut ids);
    ids
}

/// The text that ids stand for, as the reference's `batch_decode` writes it: in lower case, a space
/// after every word, none at the end. Bytes that are no whole character become U+FFFD.
pub fn decode(ids: &[u32]) -> String {
    let is_special = |id: &u32| SPECIALS.iter().any(|(_, special)| special == id);
    let mut text = String::new();
    for run in ids.chunk_by(|a, b| !is_special(a) && !is_special(b)) {
        match SPECIALS.iter().find(|(_, id)| run == [*id]) {
            Some((name, _)) => text.push_str(name),
            None => text.push_str(&decode_plain(run)),
        }
    }
    text.truncate(text.trim_end_matches(' ').len());
    text
}

/// What is before the first special token, its id, and what is after it.
fn split_at_special<'a>(
    text: &'a str,
    specials: &[(&str, u32)],
) -> Option<(&'a str, u32, &'a str)> {
    // One search for all of them: one for each would read the text again for every token found.
    text.match_indices(['<', '!']).find_map(|(at, _)| {
        let (before, rest) = text.split_at(at);
        specials.iter().find_map(|(name, id)| Some((before, *id, rest.strip_prefix(name)?)))
    })
}

fn bpe() -> &'static Bpe {
    static BPE: OnceLock<Bpe> = OnceLock::new();
    BPE.get_or_init(Bpe::new)
}

fn encode_plain(text: &str, ids: &mut Vec<u32>) {
    // Letter by letter: the reference knows no special form of a sigma at a word's end.
    let text: String = text.nfc().flat_map(char::to_lowercase).collect();
    let mut tokens = Vec::new();
    let mut rest = text.as_str();
    // The crate has names of its own for the special tokens; split, they are plain text again.
    while let Some(at) = CRATE_SPECIALS.iter().filter_map(|name| rest.find(name)).min() {
        let (before, after) = rest.split_at(at + 1);
        bpe().encode(before, &mut tokens);
        rest = after;
    }
    bpe().encode(rest, &mut tokens);
    ids.extend(tokens.into_iter().map(Token::to_u16).map(u32::from));
}

fn decode_plain(ids: &[u32]) -> String {
    let token = |id: &u32| Token::from_u16(u16::try_from(*id).ok()?, bpe());
    bpe().decode(ids.iter().filter_map(token))
}
