"""Captions as the text encoders read them: CLIP's own token ids, of which training uses a few hundred."""

import random
import sys
from functools import cached_property
from pathlib import Path

import torch

import pictures

sys.path.append(str(Path(__file__).parents[2] / "tests" / "parity"))
import clip_vocabulary  # noqa: E402
import ldm_names  # noqa: E402, F401
import sd15  # noqa: E402, F401

LENGTH = clip_vocabulary.CONTEXT
EMPTY = ""
# What SDXL's second text encoder gets behind a text's end.
PADDING_2 = "!"
UNKNOWN = 0


class Vocabulary:
    """Numbers the tokens that captions use from 1, in the order of their ids; all others are `UNKNOWN`.

    So training has a small table, and what an unused token means in the exported one is still trained.
    """

    @cached_property
    def _tokenizer(self):
        return clip_vocabulary.tokenizer()

    @cached_property
    def ids(self) -> list[int]:
        """The id of each number from 1."""
        texts = [EMPTY, *pictures.captions(20_000, seed=0)]
        return sorted({id for text in {*texts, PADDING_2} for id in self._tokenizer(text).input_ids})

    def number(self, word: str) -> int:
        return 1 + self.ids.index(self._tokenizer(word).input_ids[1])

    def __len__(self) -> int:
        return 1 + len(self.ids)

    def encode(self, texts: list[str]) -> torch.Tensor:
        """`[b, 77]`, padded with the text's end as SD1.x has it."""
        rows = self._tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH).input_ids
        number = {id: i + 1 for i, id in enumerate(self.ids)}
        return torch.tensor([[number.get(id, UNKNOWN) for id in row] for row in rows])

    def expand(self, table: torch.Tensor) -> torch.Tensor:
        """The whole table of CLIP, from the small one."""
        whole = table[UNKNOWN].repeat(clip_vocabulary.VOCABULARY_SIZE, 1)
        whole[self.ids] = table[1:]
        return whole

    def shrink(self, whole: torch.Tensor) -> torch.Tensor:
        """The small table, from what `expand` made of it."""
        unknown = next(id for id in range(len(whole)) if id not in self.ids)
        return whole[[unknown, *self.ids]]


def with_unknown_words(tokens: torch.Tensor, share: float, rng: random.Random) -> torch.Tensor:
    """Some texts get words that nothing is known of, which are to be read over."""
    tokens = tokens.clone()
    for row in tokens:
        if rng.random() < share:
            length = int((row == row[-1]).int().argmax())
            for _ in range(rng.randint(1, 3)):
                at = rng.randint(1, length)
                row[at + 1 :] = row[at:-1].clone()
                row[at] = UNKNOWN
    return tokens
