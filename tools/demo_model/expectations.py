"""What `tests/demo` measures pictures by: held-out prompts, colours, outlines, and drawn pictures to try the measure on."""

import json
from pathlib import Path

from PIL import Image

import pictures

PROMPTS, SEED = 100, 4
GRID = 32


def save(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    expected = dict(
        prompts=pictures.held_out_prompts(PROMPTS, SEED),
        colours=pictures.COLOURS,
        tiles=_tiles(),
        shapes={shape: _rows(pictures.silhouette(shape)) for shape in pictures.SHAPES},
    )
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    _drawn().save(folder / "drawn.png", optimize=True)


def _tiles() -> list[tuple[str, str]]:
    """What `drawn.png` shows, row after row."""
    return [(colour, shape) for colour in pictures.COLOURS for shape in pictures.SHAPES]


def _rows(image: Image.Image) -> list[str]:
    """What is inside of the outline's bounding box, on a grid of 32 by 32."""
    small = image.crop(image.getbbox()).resize((GRID, GRID), Image.Resampling.BOX)
    bits = [small.getpixel((x, y)) > 127 for y in range(GRID) for x in range(GRID)]
    return ["".join(".#"[bit] for bit in bits[GRID * y : GRID * (y + 1)]) for y in range(GRID)]


def _drawn() -> Image.Image:
    """A row for each colour, a column for each shape; sizes and backgrounds take turns."""
    side = pictures.SIZE
    sheet = Image.new("RGB", (side * len(pictures.SHAPES), side * len(pictures.COLOURS)))
    for number, (colour, shape) in enumerate(_tiles()):
        row, column = divmod(number, len(pictures.SHAPES))
        background = list(pictures.BACKGROUNDS.values())[(row + column) % 5]
        radius = list(pictures.RADII.values())[(row + column) % 3]
        tile = pictures.one(shape, pictures.COLOURS[colour], background, radius)
        sheet.paste(tile, (side * column, side * row))
    return sheet


if __name__ == "__main__":
    save(Path(__file__).parents[2] / "tests" / "demo")
