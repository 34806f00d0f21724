//! CLIP's tokenizer, as diffusers calls it: 77 ids, start token first, cut at 75 tokens of text,
//! padded with the end token.

use std::sync::OnceLock;

use instant_clip_tokenizer::{Token, Tokenizer as Bpe};
use unicode_normalization::UnicodeNormalization;

/// Ids of a prompt, the start and end tokens included.
pub const LENGTH: usize = 77;
/// Size of the vocabulary, the two special tokens included.
pub const VOCABULARY: usize = 49_408;

const START: u32 = 49_406;
const END: u32 = 49_407;
/// What the special tokens look like where a prompt spells them out.
const SPECIALS: [(&str, u32); 2] = [("<|startoftext|>", START), ("<|endoftext|>", END)];
/// What the tokenizer's crate takes for special tokens, and the reference does not.
const CRATE_SPECIALS: [&str; 2] = ["<start_of_text>", "<end_of_text>"];

/// The prompt's ids, [`LENGTH`] of them.
pub fn tokenize(prompt: &str) -> Vec<u32> {
    let mut ids = vec![START];
    encode(prompt, &mut ids);
    ids.truncate(LENGTH - 1);
    ids.resize(LENGTH, END);
    ids
}

fn encode(text: &str, ids: &mut Vec<u32>) {
    let special = SPECIALS
        .iter()
        .filter_map(|(name, id)| Some((text.find(name)?, name, id)))
        .min_by_key(|(at, ..)| *at);
    match special {
        Some((at, name, id)) => {
            encode_plain(&text[..at], ids);
            ids.push(*id);
            encode(&text[at + name.len()..], ids);
        }
        None => encode_plain(text, ids),
    }
}

fn encode_plain(text: &str, ids: &mut Vec<u32>) {
    static BPE: OnceLock<Bpe> = OnceLock::new();
    let bpe = BPE.get_or_init(Bpe::new);
    // Letter by letter: the reference knows no special form of a sigma at a word's end.
    let text: String = text.nfc().flat_map(char::to_lowercase).collect();
    let mut tokens = Vec::new();
    let mut rest = text.as_str();
    // The crate has names of its own for the special tokens; split, they are plain text again.
    while let Some(at) = CRATE_SPECIALS.iter().filter_map(|name| rest.find(name)).min() {
        let (before, after) = rest.split_at(at + 1);
        bpe.encode(before, &mut tokens);
        rest = after;
    }
    bpe.encode(rest, &mut tokens);
    ids.extend(tokens.into_iter().map(Token::to_u16).map(u32::from));
}
