"""CLIP's vocabulary as the reference tokenizer wants it.

The merges come from the source of the crate `instant-clip-tokenizer`, which cargo has already
fetched: the same list that OpenAI published as `bpe_simple_vocab_16e6.txt`. Where there is no cargo, `CLIP_VOCABULARY`
names such a file.
"""

import os
from pathlib import Path

from transformers import AddedToken, CLIPTokenizer

VOCABULARY_SIZE = 49408
CONTEXT = 77
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
# Two tokens a byte (inside a word and at its end), one a merge, and the start and the end of a text.
MERGES = VOCABULARY_SIZE - 2 * 256 - 2


def tokenizer(padding: str = SPECIAL_TOKENS[1]) -> CLIPTokenizer:
    """The tokenizer as `StableDiffusionPipeline.from_pretrained` builds it for SD1.x, from what SD1.5's files say.

    SD2.x and the second one of SDXL are padded with "!", by what their files say.
    """
    merges = _merges()
    start, end = (AddedToken(token, normalized=True) for token in SPECIAL_TOKENS)
    return CLIPTokenizer(
        vocab=_vocab(merges),
        merges=merges,
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=padding,
        model_max_length=CONTEXT,
    )


def _merges() -> list[tuple[str, str]]:
    lines = _source().read_text(encoding="utf-8").splitlines()[1 : 1 + MERGES]
    return [tuple(line.split()) for line in lines]


def _source() -> Path:
    if named := os.environ.get("CLIP_VOCABULARY"):
        return Path(named)
    cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    pattern = "registry/src/*/instant-clip-tokenizer-0.1.0/bpe_simple_vocab_16e6.txt"
    found = sorted(cargo.glob(pattern))
    if not found:
        raise SystemExit(f"There is no {cargo}/{pattern}; run `cargo fetch` first.")
    return found[0]


def _vocab(merges: list[tuple[str, str]]) -> dict[str, int]:
    alphabet = _byte_alphabet()
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    tokens += SPECIAL_TOKENS
    assert len(tokens) == len(set(tokens)) == VOCABULARY_SIZE
    return {token: id for id, token in enumerate(tokens)}


def _byte_alphabet() -> list[str]:
    """A printable character for each byte, in the order of OpenAI's `bytes_to_unicode`."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
