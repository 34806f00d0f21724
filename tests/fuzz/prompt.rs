//! Prompts: any text, both syntaxes.

use diffused::{
    engine::{
        prompt::{Encoded, MAX_CHUNKS, Padding, encode, parse},
        tokenizer,
    },
    modes::{LongPrompts, PromptSyntax},
};
use proptest::prelude::*;

/// What the syntax and the tokenizer take notice of, among other text.
const SIGNS: [&str; 30] = [
    "(",
    ")",
    "[",
    "]",
    "\\",
    ":",
    ":1.3)",
    ": .5 )",
    ":-2)",
    ":0)",
    ":1.2.3)",
    ":99999999999)",
    ",",
    " ",
    "\n",
    "!",
    "<",
    "<|endoftext|>",
    "<|startoftext|>",
    "<start_of_text>",
    "</w>",
    "'s",
    "7",
    "é",
    "e\u{301}",
    "ß",
    "İ",
    "雪",
    "🦊",
    "\u{fffd}",
];

fn texts() -> impl Strategy<Value = String> {
    let sign = prop::sample::select(&SIGNS[..]).prop_map(str::to_owned);
    let piece =
        prop_oneof![4 => sign, 2 => "[a-zA-Z]{1,12} ?", 1 => "\\PC{1,4}", 1 => any::<String>()];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

fn long_texts() -> impl Strategy<Value = String> {
    (texts(), 1..30_usize).prop_map(|(text, times)| text.repeat(times))
}

fn syntaxes() -> impl Strategy<Value = PromptSyntax> {
    prop_oneof![Just(PromptSyntax::Plain), Just(PromptSyntax::Weighted)]
}

fn paddings() -> impl Strategy<Value = Padding> {
    prop_oneof![Just(Padding::End), Just(Padding::Zero)]
}

fn longs() -> impl Strategy<Value = LongPrompts> {
    prop_oneof![Just(LongPrompts::Cut), Just(LongPrompts::Chunk)]
}

/// Ids and weights between the chunks' start and end tokens, of a text that has no end token.
fn inside(encoded: &Encoded) -> Vec<(u32, f32)> {
    let chunks = encoded.chunks.iter();
    let inside = chunks.flat_map(|chunk| {
        let text = 1..chunk.end();
        chunk.ids[text.clone()].iter().copied().zip(chunk.weights[text].iter().copied())
    });
    inside.collect()
}

proptest! {
    #![proptest_config(crate::cases(500))]

    #[test]
    fn parts_weigh_something_finite(text in texts(), syntax in syntaxes()) {
        let parts = parse(&text, syntax);
        prop_assert!(!parts.is_empty());
        prop_assert!(parts.iter().all(|(_, weight)| weight.is_finite()), "{parts:?}");
        // Nothing is in them that was not in the text, in the same order.
        let mut rest = text.chars();
        let letters = parts.iter().flat_map(|(part, _)| part.chars());
        prop_assert!({ letters }.all(|letter| rest.any(|other| other == letter)), "{parts:?}");
    }

    #[test]
    fn plain_text_stays_as_it_is(text in any::<String>()) {
        prop_assert_eq!(parse(&text, PromptSyntax::Plain), [(text.clone(), 1.0)]);
    }

    #[test]
    fn without_signs_weighted_is_plain(text in "[^\\\\()\\[\\]:]{0,60}|[^\\\\()\\[\\]]{0,60}") {
        prop_assert_eq!(parse(&text, PromptSyntax::Weighted), [(text.clone(), 1.0)]);
    }

    #[test]
    fn signs_behind_backslashes_are_text(text in texts()) {
        let escaped = text.chars().flat_map(|c| "()[]\\".contains(c).then_some('\\').into_iter().chain([c]));
        let escaped: String = escaped.collect();
        prop_assert_eq!(parse(&escaped, PromptSyntax::Weighted), [(text.clone(), 1.0)]);
    }

    #[test]
    fn a_bracket_around_all_weighs_all(text in "[a-z ,]{1,40}", tenths in -90..90_i32) {
        let found = parse(&format!("({text}:{tenths}e)"), PromptSyntax::Weighted);
        prop_assert_eq!(found, [(format!("{text}:{tenths}e"), 1.1)]);
        let weight = tenths as f32 / 10.0;
        let found = parse(&format!("({text}:{weight})"), PromptSyntax::Weighted);
        prop_assert_eq!(found, [(text, weight)]);
    }

    #[test]
    fn chunks_are_whole(
        text in prop_oneof![4 => texts(), 1 => long_texts()],
        syntax in syntaxes(), long in longs(), padding in paddings(),
    ) {
        let encoded = encode(&text, syntax, long, padding);
        prop_assert!(!encoded.chunks.is_empty());
        prop_assert!(encoded.chunks.len() <= MAX_CHUNKS);
        for chunk in &encoded.chunks {
            prop_assert_eq!((chunk.ids.len(), chunk.weights.len()), (tokenizer::LENGTH, tokenizer::LENGTH));
            prop_assert_eq!((chunk.ids[0], chunk.ids[chunk.end()]), (tokenizer::START, tokenizer::END));
            prop_assert!(chunk.ids.iter().all(|id| (*id as usize) < tokenizer::VOCABULARY));
            prop_assert!(chunk.weights.iter().all(|weight| weight.is_finite()));
            prop_assert_eq!((chunk.weights[0], chunk.weights[tokenizer::LENGTH - 1]), (1.0, 1.0));
        }
        if syntax == PromptSyntax::Plain {
            prop_assert!(!encoded.is_weighted());
        }
        if (syntax, long, padding) == (PromptSyntax::Plain, LongPrompts::Cut, Padding::End) {
            prop_assert_eq!(&encoded.chunks[0].ids, &tokenizer::tokenize(&text));
        }
    }

    #[test]
    fn cut_is_the_first_chunk(text in long_texts(), syntax in syntaxes(), padding in paddings()) {
        let cut = encode(&text, syntax, LongPrompts::Cut, padding);
        let all = encode(&text, syntax, LongPrompts::Chunk, padding);
        prop_assert_eq!(&cut.chunks[0], &all.chunks[0]);
        prop_assert_eq!(cut.truncated.is_some(), all.chunks.len() > 1);
    }

    #[test]
    fn chunks_have_every_token(text in long_texts(), padding in paddings()) {
        let text = text.replace("<|endoftext|>", "");
        let encoded = encode(&text, PromptSyntax::Plain, LongPrompts::Chunk, padding);
        let mut all = tokenizer::encode(&text, padding);
        all.truncate(75 * MAX_CHUNKS);
        let ids: Vec<_> = inside(&encoded).into_iter().map(|(id, _)| id).collect();
        prop_assert_eq!(ids, all);
    }

    #[test]
    fn ids_read_back_as_text_of_the_same_ids(text in "[a-z ,.()\\[\\]]{0,300}") {
        let ids = tokenizer::encode(&text, Padding::End);
        prop_assert_eq!(tokenizer::encode(&tokenizer::decode(&ids), Padding::End), ids);
    }

    #[test]
    fn any_ids_read_back(ids in prop::collection::vec(any::<u32>().prop_map(|id| id % 50_000), 0..100)) {
        tokenizer::decode(&ids);
    }
}
