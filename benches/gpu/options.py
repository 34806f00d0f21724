"""The command line of `run.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

FAMILIES = ("sd15", "sdxl")
PARTS = ("images", "switches", "loads", "queue", "compile")


def parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--binary", type=Path, required=True, help="a built diffused; one whose name ends in .xz is unpacked first")
    add("--device", default="cuda:0", help="cuda:0, or cpu (default cuda:0)")
    add("--engine", help="for `diffused serve` (default: libtorch on a card, else what the binary takes by itself)")
    add("--precision", help="likewise (default: what the binary takes by itself, fp16 on a card)")
    add("--tiny", action="store_true", help="the small models that come with the source, 64x64, two steps: a dry run")
    add("--ours-only", action="store_true", help="without diffusers; needs no torch")
    add("--families", type=names(FAMILIES), default=list(FAMILIES), help="sd15, sdxl, or both with a comma (default both)")
    add("--parts", type=names(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)} (default all, in this order)")
    add("--rounds", type=int, default=5, help="images of each side and case to take the median of (default 5)")
    add("--switches", type=int, default=20)
    add("--jobs", type=int, default=20, help="queued jobs (default 20)")
    add("--budget-s", type=float, default=540, help="seconds for all of it (default 540)")
    add("--compile-budget-s", type=float, default=150, help="of them for torch.compile; 0 leaves it out (default 150)")
    add("--wheels", type=Path, help="a folder of Python wheels that are missing here (diffusers)")
    add("--vocabulary", type=Path, help="bpe_simple_vocab_16e6.txt, where cargo has not fetched it")
    add("--weights", type=Path, help="where the random weights are, or are made and stay (default: made anew)")
    add("--random-checkpoint", type=Path, help="a built examples/random_checkpoint: makes them where there is no torch")
    add("--json", type=Path, help="where all figures go, after every row")
    add("--images", type=Path, help="where the images stay")
    return parser.parse_args()


def names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """
    >>> names(("a", "b", "c"))("c,a")
    ['a', 'c']
    """

    def parsed(text: str) -> list[str]:
        said = text.split(",")
        if unknown := set(said) - set(known):
            raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r} is none of {', '.join(known)}")
        return [name for name in known if name in said]

    return parsed
