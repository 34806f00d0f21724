"""Has a running daemon draw the contact sheet: `python tools/demo_model/sheet.py http://127.0.0.1:4200 docs/contact-sheet.png`."""

import argparse
import io
import json
import urllib.request
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm import tqdm

COLUMNS, TILE, CAPTION = 8, 128, 34
# A row each; the mode and its prompts.
ROWS = [
    ("demo", [
        "a red circle on a white background", "an orange star on a black background",
        "a large yellow heart in the center on a gray background", "a small green triangle in the top left",
        "a cyan diamond on a brown background", "a blue square on the right on a beige background",
        "a purple heart at the bottom on a white background", "a large pink star on a black background",
    ]),
    ("demo", [
        "a red square and a blue circle on a white background", "a yellow star above a purple square",
        "a green heart to the left of an orange diamond", "a pink circle next to a cyan triangle",
        "a blue heart on a yellow background", "an orange circle on a white and black background",
        "a red star on a cyan background", "a purple triangle above a green circle on a black background",
    ]),
    ("demo", [
        "a red house and a tree in the hills by day with the sun and clouds", "a boat with red sails on the sea at sunset with the sun",
        "a yellow house in the snow at night with stars and the moon", "mountains in a field under a blue sky with clouds",
        "two pine trees in the snow at sunset", "a cactus in the desert on a sunny day with the sun",
        "a boat with white sails on the sea at night with the moon", "the sea by day with the sun",
    ]),
    ("demo-xl", [
        "a red circle on a white background", "a large yellow star on a black background",
        "a green square and a pink heart", "a blue triangle above an orange circle",
        "a white house and a pine tree in the snow by day", "a boat with yellow sails on the sea at sunset with the sun",
        "mountains in the hills at night with stars", "a cactus in the desert at sunset",
    ]),
    ("demo-fast", [
        "a red heart on a white background", "a purple star in the top right on a black background",
        "a large green diamond on a beige background", "a cyan circle and an orange square",
        "a blue house in a field on a sunny day", "a boat on the sea at sunset",
        "a tree in the hills at night with the moon", "mountains in the snow by day with clouds",
    ]),
    ("demo-outline", [
        "a red star on a white background", "a blue heart on a beige background",
        "a large green circle on a black background", "a house and a tree in the hills by day with the sun",
    ]),
    ("demo-pixelated", [
        "a large red heart on a white background", "a yellow star on a black background",
        "a boat on the sea at sunset with the sun", "a tree in the hills by day with clouds",
    ]),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("daemon")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1, help="of the first picture; the next has the next")
    arguments = parser.parse_args()
    wanted = [(mode, prompt) for mode, prompts in ROWS for prompt in prompts]
    rows = -(-len(wanted) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE + 8) + 8, rows * (TILE + CAPTION + 8) + 8), "white")
    for number, (mode, prompt) in enumerate(tqdm(wanted)):
        picture = draw(arguments.daemon, mode, prompt, arguments.seed + number)
        x, y = 8 + number % COLUMNS * (TILE + 8), 8 + number // COLUMNS * (TILE + CAPTION + 8)
        sheet.paste(picture, (x, y))
        ImageDraw.Draw(sheet).multiline_text((x, y + TILE + 2), broken(f"{mode}: {prompt}"), fill="black", font_size=9, spacing=1)
    sheet.save(arguments.out, optimize=True)


def draw(daemon: str, mode: str, prompt: str, seed: int) -> Image.Image:
    body = json.dumps(dict(mode=mode, prompt=prompt, seed=seed)).encode()
    request = urllib.request.Request(f"{daemon}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def broken(text: str, width: int = 28) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3])


if __name__ == "__main__":
    main()
