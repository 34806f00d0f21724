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

/// The prompt's ids, [`LENGTH`] of them.
pub fn tokenize(prompt: &str) -> Vec<u32> {
    let text: String = prompt.nfc().collect::<String>().to_lowercase();
    let mut ids = vec![START];
    encode(&text, &mut ids);
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
    let mut tokens = Vec::new();
    BPE.get_or_init(Bpe::new).encode(text, &mut tokens);
    ids.extend(tokens.into_iter().map(Token::to_u16).map(u32::from));
}
