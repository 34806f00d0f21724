"""The pictures that the demo models are trained on: drawn here, each with a caption that says what is in it."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 128
SUPERSAMPLING = 4

COLOURS = {
    "red": (215, 35, 40), "orange": (245, 135, 25), "yellow": (250, 215, 45), "green": (45, 160, 65),
    "cyan": (60, 205, 215), "blue": (40, 80, 215), "purple": (125, 50, 175), "pink": (250, 130, 185),
}  # fmt: skip
BACKGROUNDS = {
    "white": (248, 248, 248), "black": (18, 18, 20), "gray": (128, 128, 130), "beige": (232, 217, 188),
    "brown": (112, 74, 48),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")
POSITIONS = {
    "in the top left": (0, 0), "at the top": (1, 0), "in the top right": (2, 0),
    "on the left": (0, 1), "in the center": (1, 1), "on the right": (2, 1),
    "in the bottom left": (0, 2), "at the bottom": (1, 2), "in the bottom right": (2, 2),
}  # fmt: skip
RADII = {"small": 15, "": 21, "large": 29}
STYLES = ("plain", "outline", "pixelated")

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    image: Image.Image
    caption: str


def held_out(colour: str, shape: str, position: str) -> bool:
    """Whether no training picture has this combination: a quarter of them, spread evenly."""
    indices = (list(COLOURS).index(colour), SHAPES.index(shape), list(POSITIONS).index(position))
    return sum(indices) % 4 == 0


def held_out_prompts(count: int, seed: int) -> list[dict[str, str]]:
    """Prompts for held-out combinations, all different, and what a picture of each must show."""
    combinations = [
        (colour, shape, position)
        for colour in COLOURS
        for shape in SHAPES
        for position in POSITIONS
        if held_out(colour, shape, position)
    ]
    rng = random.Random(seed)
    prompts = []
    for colour, shape, position in rng.sample(combinations, count):
        background = rng.choice(list(BACKGROUNDS))
        prompt = f"{_article(colour)} {colour} {shape} {position} on {_article(background)} {background} background"
        prompts.append(dict(prompt=prompt, colour=colour, shape=shape, position=position, background=background))
    return prompts


def draw(seed: int, style: str = "plain") -> Picture:
    """The picture of this number; the same number draws the same thing in every style."""
    rng = random.Random(seed)
    kind = rng.choices((_one_object, _two_objects, _scene), (50, 18, 32))[0]
    canvas = _Canvas(style)
    caption = kind(canvas, rng)
    return Picture(canvas.finish(), caption)


def one(shape: str, colour: Colour, background: Colour, radius: float) -> Image.Image:
    """A shape in the middle."""
    canvas = _Canvas("plain")
    canvas.background(background)
    canvas.area(_outline(shape, SIZE / 2, SIZE / 2, radius), colour)
    return canvas.finish()


class _Canvas:
    """Draws in units of pixels, with anti-aliasing; `style` is how areas are shown."""

    def __init__(self, style: str) -> None:
        self.style = style
        self.paper: Colour = BACKGROUNDS["white"]
        self._image = Image.new("RGB", (SIZE * SUPERSAMPLING,) * 2, self.paper)
        self._draw = ImageDraw.Draw(self._image)

    def background(self, first: Colour, second: Colour | None = None, vertical: bool = False) -> None:
        self.paper = first
        self._fill([(0, 0), (SIZE, 0), (SIZE, SIZE), (0, SIZE)], first)
        if second:
            half = SIZE / 2
            left_or_top = (half, 0) if vertical else (0, half)
            corners = [left_or_top, (SIZE, 0 if vertical else half), (SIZE, SIZE), (half if vertical else 0, SIZE)]
            self._fill(corners, second)

    def gradient(self, top: Colour, bottom: Colour, height: float) -> None:
        if self.style == "outline":
            return
        rows = int(height)
        for y in range(rows):
            mixed = tuple(round(a + (b - a) * y / rows) for a, b in zip(top, bottom, strict=True))
            self._fill([(0, y), (SIZE, y), (SIZE, y + 1), (0, y + 1)], mixed)

    def area(self, points: list[Point], colour: Colour) -> None:
        if self.style != "outline":
            return self._fill(points, colour)
        closed = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in [*points, points[0], points[1]]]
        self._draw.line(closed, fill=colour, width=4 * SUPERSAMPLING, joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self.area(_outline("circle", x, y, radius), colour)

    def _fill(self, points: list[Point], colour: Colour) -> None:
        self._draw.polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points], fill=colour)

    def finish(self) -> Image.Image:
        image = self._image.resize((SIZE, SIZE), Image.Resampling.BOX)
        if self.style == "pixelated":
            image = image.resize((SIZE // 8,) * 2, Image.Resampling.BOX).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        return image


def _outline(shape: str, x: float, y: float, r: float) -> list[Point]:
    """The corners of a shape whose half width is about `r`."""
    turn = lambda angle, radius: (x + radius * math.sin(angle), y - radius * math.cos(angle))
    match shape:
        case "circle":
            return [turn(math.tau * i / 48, r) for i in range(48)]
        case "square":
            s = 0.88 * r
            return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
        case "triangle":
            return [(x, y - r), (x + 1.05 * r, y + 0.85 * r), (x - 1.05 * r, y + 0.85 * r)]
        case "diamond":
            return [(x, y - 1.15 * r), (x + 0.9 * r, y), (x, y + 1.15 * r), (x - 0.9 * r, y)]
        case "star":
            return [turn(math.tau * i / 10, 1.15 * r * (0.42 if i % 2 else 1)) for i in range(10)]
        case "heart":
            points = []
            for i in range(64):
                t = math.tau * i / 64
                across = 16 * math.sin(t) ** 3
                up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
                points.append((x + r * across / 16, y - r * (up + 2) / 15))
            return points
    raise ValueError(shape)


def silhouette(shape: str) -> Image.Image:
    """The shape alone, white on black, as large as the picture allows."""
    image = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(image).polygon(_outline(shape, SIZE / 2, SIZE / 2, 50), fill=255)
    return image


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _vary(colour: Colour, rng: random.Random, by: int = 8) -> Colour:
    return tuple(min(255, max(0, c + rng.randint(-by, by))) for c in colour)


def _introduction(rng: random.Random) -> str:
    return rng.choices(("", "a picture of ", "an image of ", "a drawing of "), (70, 14, 8, 8))[0]


def _ending(rng: random.Random) -> str:
    """What people add to prompts, and what must not change a picture."""
    return rng.choices(("", ", high quality", ", detailed", ", simple", ", beautiful"), (88, 3, 3, 3, 3))[0]


def _some_background(canvas: _Canvas, rng: random.Random, objects: set[str]) -> str:
    """Fills it; what the caption says of it, which may be nothing."""
    names = list(BACKGROUNDS)
    kind = rng.random()
    if kind < 0.12:
        name = rng.choice([c for c in COLOURS if c not in objects])
        canvas.background(_vary(COLOURS[name], rng))
    elif kind < 0.27:
        name, second = rng.sample(names, 2)
        vertical = rng.random() < 0.5
        canvas.background(_vary(BACKGROUNDS[name], rng, 5), _vary(BACKGROUNDS[second], rng, 5), vertical)
        name = f"{name} and {second}"
    else:
        name = rng.choices(names, (34, 20, 16, 16, 14))[0]
        canvas.background(_vary(BACKGROUNDS[name], rng, 5))
        if rng.random() < 0.12:
            return ""
    return f"{_article(name)} {name} background"


def _one_object(canvas: _Canvas, rng: random.Random) -> str:
    while True:
        colour, shape, position = (rng.choice(list(names)) for names in (COLOURS, SHAPES, POSITIONS))
        if not held_out(colour, shape, position):
            break
    size = rng.choices(list(RADII), (25, 45, 30))[0]
    background = _some_background(canvas, rng, {colour})
    r = RADII[size] * rng.uniform(0.92, 1.08)
    x, y = (64 + (cell - 1) * 31 + rng.uniform(-4, 4) for cell in POSITIONS[position])
    canvas.area(_outline(shape, x, y, r), _vary(COLOURS[colour], rng))

    size_said = size if rng.random() < 0.85 else ""
    adjectives = f"{size_said} {colour}".strip()
    where = position if rng.random() < (0.4 if position == "in the center" else 0.75) else ""
    on = f"on {background}" if background else ""
    if rng.random() < 0.75:
        text = f"{_article(adjectives)} {adjectives} {shape} {where} {on}"
    else:
        parts = [f"{adjectives} {shape}", where, background.removeprefix("a ").removeprefix("an ")]
        text = ", ".join(part for part in parts if part)
    return _introduction(rng) + " ".join(text.split()) + _ending(rng)


def _two_objects(canvas: _Canvas, rng: random.Random) -> str:
    side_by_side = rng.random() < 0.5
    places = ("on the left", "on the right") if side_by_side else ("at the top", "at the bottom")
    while True:
        pair = [(rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in places]
        if pair[0] != pair[1] and not any(held_out(*o, place) for o, place in zip(pair, places, strict=True)):
            break
    background = _some_background(canvas, rng, {colour for colour, _ in pair})
    for (colour, shape), place in zip(pair, places, strict=True):
        x, y = (64 + (cell - 1) * 31 + rng.uniform(-3, 3) for cell in POSITIONS[place])
        canvas.area(_outline(shape, x, y, rng.uniform(17, 23)), _vary(COLOURS[colour], rng))
    names = [f"{_article(colour)} {colour} {shape}" for colour, shape in pair]
    on = f" on {background}" if background else ""
    relations = ("next to", "and", "to the left of") if side_by_side else ("above", "and", "over")
    relation = rng.choice(relations)
    if relation in ("and", "next to") and rng.random() < 0.5:
        names.reverse()
    return f"{_introduction(rng)}{names[0]} {relation} {names[1]}{on}{_ending(rng)}"


# Scenes: a sky with what is in it, land or water, and things that stand there.

SKIES = {
    "day": ((95, 170, 235), (190, 225, 250)),
    "night": ((10, 14, 40), (35, 45, 95)),
    "sunset": ((95, 50, 120), (255, 150, 70)),
}
LANDS = {
    "hills": (85, 165, 70), "a field": (120, 180, 75), "the sea": (35, 105, 170), "snow": (238, 243, 250),
    "the desert": (225, 185, 115),
}  # fmt: skip
WALLS = {"red": (185, 60, 50), "yellow": (240, 210, 120), "white": (240, 238, 230), "blue": (90, 130, 190)}
SAILS = {"white": (245, 245, 240), "red": (210, 55, 50), "yellow": (245, 205, 70)}


def _shade(colour: Colour, time: str) -> Colour:
    """What the light of the hour makes of a colour."""
    light = {"day": (1.0, 1.0, 1.0), "night": (0.32, 0.36, 0.55), "sunset": (0.85, 0.6, 0.6)}[time]
    return tuple(round(c * l) for c, l in zip(colour, light, strict=True))


def _scene(canvas: _Canvas, rng: random.Random) -> str:
    time = rng.choices(list(SKIES), (45, 30, 25))[0]
    land = rng.choice(list(LANDS))
    horizon = rng.uniform(68, 82)
    top, bottom = (_vary(c, rng, 10) for c in SKIES[time])
    canvas.gradient(top, bottom, horizon + 14)

    in_sky = _draw_sky(canvas, rng, time)
    standing = []
    if land != "the sea" and rng.random() < 0.28:
        _draw_mountains(canvas, rng, horizon, time)
        standing.append("mountains")
    _draw_land(canvas, rng, land, horizon, time)
    standing += _draw_things(canvas, rng, land, horizon, time)
    return _describe(rng, time, land, in_sky, standing)


def _draw_sky(canvas: _Canvas, rng: random.Random, time: str) -> list[str]:
    seen = []
    x, y = rng.uniform(18, 110), rng.uniform(16, 34)
    if time == "night":
        if rng.random() < 0.7:
            for _ in range(rng.randint(12, 22)):
                canvas.disc(rng.uniform(2, 126), rng.uniform(2, 62), rng.uniform(0.8, 1.5), (245, 240, 210))
            seen.append("stars")
        if rng.random() < 0.65:
            canvas.disc(x, y, 10, (245, 240, 205))
            if rng.random() < 0.5:
                canvas.disc(x + 5, y - 3, 9, SKIES["night"][0])
            seen.append("the moon")
    elif time == "sunset":
        if rng.random() < 0.8:
            canvas.disc(x, rng.uniform(52, 66), 13, (255, 215, 90))
            seen.append("the sun")
    else:
        if rng.random() < 0.55:
            canvas.disc(x, y, 11, (255, 220, 60))
            seen.append("the sun")
        if rng.random() < 0.45:
            for _ in range(rng.randint(1, 3)):
                cx, cy = rng.uniform(15, 113), rng.uniform(14, 44)
                for dx, dy, r in ((-9, 2, 6), (0, -2, 8), (9, 2, 6)):
                    canvas.disc(cx + dx, cy + dy, r, (250, 251, 253))
            seen.append("clouds")
    return seen


def _draw_mountains(canvas: _Canvas, rng: random.Random, horizon: float, time: str) -> None:
    for x in (rng.uniform(10, 45), rng.uniform(75, 118)):
        height, half = rng.uniform(28, 44), rng.uniform(30, 42)
        peak = (x, horizon - height)
        canvas.area([peak, (x + half, horizon + 14), (x - half, horizon + 14)], _shade((120, 120, 135), time))
        snow = 0.3
        side = half * snow * height / (height + 14)
        cap = [peak, (x + side, peak[1] + snow * height), (x - side, peak[1] + snow * height)]
        canvas.area(cap, _shade((240, 242, 248), time))


def _draw_land(canvas: _Canvas, rng: random.Random, land: str, horizon: float, time: str) -> None:
    colour = _shade(_vary(LANDS[land], rng, 10), time)
    if land == "hills":
        for level, darker in ((0, 0.82), (12, 1.0)):
            phase, wave = rng.uniform(0, math.tau), rng.uniform(5, 9)
            ridge = [(x, horizon + level + wave * math.sin(phase + x / 22)) for x in range(0, SIZE + 4, 4)]
            canvas.area([*ridge, (SIZE, SIZE), (0, SIZE)], tuple(round(c * darker) for c in colour))
        return
    canvas.area([(0, horizon), (SIZE, horizon), (SIZE, SIZE), (0, SIZE)], colour)
    if land == "the sea":
        lighter = tuple(min(255, c + 28) for c in colour)
        for _ in range(7):
            x, y = rng.uniform(0, 110), rng.uniform(horizon + 6, 124)
            canvas.area([(x, y), (x + 16, y), (x + 16, y + 2), (x, y + 2)], lighter)


def _draw_things(canvas: _Canvas, rng: random.Random, land: str, horizon: float, time: str) -> list[str]:
    """From far to near; what they are called, with their colour where it tells."""
    if land == "the sea":
        if rng.random() < 0.75:
            return [_draw_boat(canvas, rng, time)]
        return []
    spots = [24, 64, 104]
    rng.shuffle(spots)
    things = []
    if rng.random() < 0.6:
        things.append(_draw_house(canvas, rng, spots.pop(), horizon + 24, time))
    if rng.random() < 0.6:
        tree = rng.choice((_draw_tree, _draw_pine)) if land != "the desert" else _draw_cactus
        count = rng.choice((1, 1, 2)) if len(spots) > 1 else 1
        names = [tree(canvas, rng, spots.pop(), horizon + 24, time) for _ in range(count)]
        things.append(names[0] if count == 1 else {"a cactus": "cacti"}.get(names[0], f"two {names[0][2:]}s"))
    return things


def _draw_house(canvas: _Canvas, rng: random.Random, x: float, floor: float, time: str) -> str:
    name = rng.choice(list(WALLS))
    half, height = rng.uniform(14, 17), rng.uniform(20, 25)
    wall, roof = floor - height, floor - height - 15
    canvas.area([(x - half, wall), (x + half, wall), (x + half, floor), (x - half, floor)], _shade(WALLS[name], time))
    canvas.area([(x, roof), (x + half + 4, wall), (x - half - 4, wall)], _shade((125, 60, 45), time))
    door = _shade((85, 55, 35), time)
    canvas.area([(x - 9, floor - 13), (x - 2, floor - 13), (x - 2, floor), (x - 9, floor)], door)
    window = (255, 225, 120) if time == "night" else _shade((175, 215, 240), time)
    canvas.area([(x + 3, floor - 16), (x + 10, floor - 16), (x + 10, floor - 9), (x + 3, floor - 9)], window)
    return f"a {name} house" if rng.random() < 0.75 else "a house"


def _draw_tree(canvas: _Canvas, rng: random.Random, x: float, floor: float, time: str) -> str:
    canvas.area([(x - 3, floor - 18), (x + 3, floor - 18), (x + 3, floor), (x - 3, floor)], _shade((110, 72, 42), time))
    canvas.disc(x, floor - 28, rng.uniform(12, 15), _shade(_vary((45, 130, 55), rng, 12), time))
    return "a tree"


def _draw_pine(canvas: _Canvas, rng: random.Random, x: float, floor: float, time: str) -> str:
    canvas.area([(x - 2, floor - 8), (x + 2, floor - 8), (x + 2, floor), (x - 2, floor)], _shade((100, 65, 40), time))
    green = _shade(_vary((30, 100, 60), rng, 10), time)
    for level, half in ((0, 13), (10, 10), (20, 7)):
        base = floor - 7 - level
        canvas.area([(x, base - 16), (x + half, base), (x - half, base)], green)
    return "a pine tree"


def _draw_cactus(canvas: _Canvas, rng: random.Random, x: float, floor: float, time: str) -> str:
    green = _shade(_vary((60, 140, 75), rng, 10), time)
    for left, top, right, bottom in ((-3, 34, 3, 0), (-11, 24, -7, 12), (-11, 15, 0, 11), (7, 29, 11, 16), (0, 19, 11, 15)):
        corners = [(x + left, floor - top), (x + right, floor - top), (x + right, floor - bottom), (x + left, floor - bottom)]
        canvas.area(corners, green)
    return "a cactus"


def _draw_boat(canvas: _Canvas, rng: random.Random, time: str) -> str:
    name = rng.choice(list(SAILS))
    x, y = rng.uniform(34, 94), rng.uniform(92, 104)
    canvas.area([(x - 20, y), (x + 20, y), (x + 13, y + 9), (x - 13, y + 9)], _shade((130, 70, 45), time))
    canvas.area([(x - 1, y - 38), (x + 1, y - 38), (x + 1, y), (x - 1, y)], _shade((90, 60, 40), time))
    canvas.area([(x + 2, y - 37), (x + 18, y - 4), (x + 2, y - 4)], _shade(SAILS[name], time))
    canvas.area([(x - 3, y - 30), (x - 3, y - 4), (x - 15, y - 4)], _shade(SAILS[name], time))
    return f"a boat with {name} sails" if rng.random() < 0.7 else "a boat"


def _describe(rng: random.Random, time: str, land: str, in_sky: list[str], standing: list[str]) -> str:
    place = {"hills": "in the hills", "a field": "in a field", "the sea": "on the sea", "snow": "in the snow",
             "the desert": "in the desert"}[land]  # fmt: skip
    hour = {"day": rng.choice(("by day", "on a sunny day", "under a blue sky")),
            "night": rng.choice(("at night", "at night", "under a night sky")),
            "sunset": "at sunset"}[time]  # fmt: skip
    above = " and ".join(in_sky)
    if standing:
        text = f"{_listed(standing)} {place} {hour}"
    else:
        text = f"{land} {hour}"
    if above and rng.random() < 0.8:
        text += f" with {above}" if rng.random() < 0.7 else f", {above}"
    return _introduction(rng) + text + _ending(rng)


def _listed(things: list[str]) -> str:
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def captions(count: int, seed: int) -> Iterator[str]:
    """Captions alone."""
    for number in range(count):
        yield draw(seed + number).caption
