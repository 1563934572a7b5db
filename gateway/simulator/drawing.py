"""Draws an image: a pond at some hour of the day, with the prompt written below it.

Pure functions. Drawing takes up to seconds of processor time: call it in a thread.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageFont, PngImagePlugin

Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one hour."""

    sky: tuple[Colour, ...]
    """From the top to the horizon."""
    light: Colour
    """Sun or moon."""
    near: Colour
    """The nearest hill; farther ones fade into the horizon."""
    stars: bool = False


_PALETTES: Final = (
    Palette(((38, 42, 92), (128, 84, 138), (240, 140, 120), (255, 205, 150)), (255, 236, 190),
             (38, 40, 72)),
    Palette(((64, 132, 196), (128, 186, 220), (206, 230, 232), (246, 240, 220)), (255, 252, 232),
             (34, 84, 84)),
    Palette(((10, 14, 42), (24, 36, 84), (52, 74, 128), (116, 132, 172)), (240, 242, 255),
             (10, 18, 38), stars=True),
    Palette(((18, 60, 76), (38, 120, 124), (136, 192, 160), (244, 228, 178)), (255, 246, 200),
             (14, 52, 56)),
    Palette(((92, 46, 74), (188, 82, 78), (238, 142, 76), (252, 212, 128)), (255, 240, 180),
             (62, 30, 46)),
    Palette(((88, 96, 142), (150, 148, 190), (216, 186, 208), (250, 222, 214)), (255, 246, 240),
             (66, 70, 108)),
    Palette(((8, 20, 40), (14, 62, 74), (34, 124, 104), (130, 190, 140)), (236, 255, 226),
             (6, 24, 34), stars=True),
)  # fmt: skip

_HORIZON: Final = 0.6
"""Where the water begins, as a part of the height."""
_CANVAS_EDGE: Final = 1920
"""The longest edge that is painted; larger images are scaled up from it."""
_FUR: Final[Colour] = (112, 76, 52)
_FACE: Final[Colour] = (214, 178, 140)
_INK: Final[Colour] = (34, 24, 22)


def draw_image(
    prompt: str,
    *,
    width: int,
    height: int,
    format: str,
    seed: int,
    transparent: bool = False,
    compression: int = 100,
    progress: float = 1.0,
) -> bytes:
    """An image file of a pond, with the prompt written below it.

    The prompt chooses the hour and the landscape, the seed everything else; two seeds never
    give the same bytes. `format` is `png`, `jpeg` or `webp`; `compression` 0…100 is the
    quality of the latter two. `transparent` cuts the scene out along an oval (not for JPEG).
    `progress` below 1 gives the blurred image of a generation under way.
    """
    scene = _paint_scene(prompt, width, height, seed=seed)
    if progress < 1:
        scene = _blur(scene, progress)
    image = scene.resize((width, height), Image.Resampling.BILINEAR)
    _write_caption(image, prompt)
    if transparent and format != "jpeg":
        image.putalpha(_oval(width, height))
    return _encode(image, format=format, compression=compression, seed=seed)


def draw_gif(
    prompt: str, *, width: int, height: int, seed: int, frames: int, frame_ms: int
) -> bytes:
    """An animated GIF: the water drifts by, and a bar at the bottom counts the frames."""
    scene = _paint_scene(prompt, width, height, seed=seed)
    scene = scene.resize((width, height), Image.Resampling.BILINEAR)
    drawn = [_frame(scene, prompt, index=index, frames=frames) for index in range(frames)]
    file = io.BytesIO()
    drawn[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=drawn[1:],
        duration=frame_ms,
        loop=0,
        comment=f"drawn with seed {seed}".encode(),
    )
    return file.getvalue()


def _frame(scene: Image.Image, prompt: str, *, index: int, frames: int) -> Image.Image:
    width, height = scene.size
    frame = ImageChops.offset(scene, index * width // (8 * frames), 0)
    _write_caption(frame, prompt)
    done = width * (index + 1) // frames
    ImageDraw.Draw(frame).rectangle((0, height - 1, max(0, done - 1), height - 1), (255, 0, 0))
    return frame.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def chosen(prompt: str, *, seed: int) -> tuple[Palette, random.Random]:
    """The hour of a prompt, and the dice for all else."""
    digest = hashlib.sha256(prompt.encode("utf-8", "replace")).digest()
    dice = random.Random(digest + str(seed).encode())  # noqa: S311 (a drawing, not a secret)
    return _PALETTES[digest[0] % len(_PALETTES)], dice


def _paint_scene(prompt: str, width: int, height: int, *, seed: int) -> Image.Image:
    """Paints larger than requested where that is affordable: scaling down smooths the edges."""
    palette, dice = chosen(prompt, seed=seed)
    digest = hashlib.sha256(prompt.encode("utf-8", "replace")).digest()
    factor = min(1.5, _CANVAS_EDGE / max(width, height))
    size = (max(8, round(width * factor)), max(8, round(height * factor)))
    scene = _paint_sky(size, palette, dice)
    _paint_hills(scene, palette, dice, count=3 + digest[1] % 3)
    _paint_water(scene, palette, dice)
    _paint_otter(ImageDraw.Draw(scene), size, dice)
    _paint_reeds(ImageDraw.Draw(scene), size, palette, dice)
    return scene


def _paint_sky(size: tuple[int, int], palette: Palette, dice: random.Random) -> Image.Image:
    stops = Image.new("RGB", (1, len(palette.sky)))
    for index, colour in enumerate(palette.sky):
        stops.putpixel((0, index), colour)
    width, height = size
    ground = round(height * _HORIZON)
    sky = Image.new("RGB", size, palette.sky[-1])
    sky.paste(_stretch(stops, (width, ground)))
    draw = ImageDraw.Draw(sky)
    if palette.stars:
        _paint_stars(draw, size, dice)
    _paint_sun(sky, palette, dice)
    return sky


def _stretch(gradient: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A vertical gradient at a new size. One column is scaled, the rest are copies of it."""
    column = gradient.crop((0, 0, 1, gradient.height))
    column = column.resize((1, size[1]), Image.Resampling.BICUBIC)
    return column.resize(size, Image.Resampling.NEAREST)


def _paint_stars(draw: ImageDraw.ImageDraw, size: tuple[int, int], dice: random.Random) -> None:
    width, height = size
    for _ in range(140):
        x, y = dice.random() * width, dice.random() ** 1.5 * height * _HORIZON
        radius = max(width, height) / 2048 * dice.uniform(0.5, 2.2)
        shade = dice.randint(150, 255)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), (shade, shade, shade))


def _paint_sun(sky: Image.Image, palette: Palette, dice: random.Random) -> None:
    edge = min(sky.size)
    x = round(sky.width * dice.uniform(0.18, 0.82))
    y = round(sky.height * dice.uniform(0.12, 0.4))
    reach = round(edge * dice.uniform(0.4, 0.6))
    glow = (
        Image.radial_gradient("L")
        .point(_falloff)
        .resize((2 * reach, 2 * reach), Image.Resampling.BILINEAR)
    )
    sky.paste(palette.light, (x - reach, y - reach), glow)
    radius = edge * dice.uniform(0.05, 0.085)
    disc = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(sky).ellipse(disc, palette.light)


def _falloff(distance: float) -> int:
    """How bright the glow is at a distance of 0…255 from its middle."""
    return round(170 * max(0.0, 1 - distance / 180) ** 2)


def _paint_hills(scene: Image.Image, palette: Palette, dice: random.Random, *, count: int) -> None:
    draw, ground = ImageDraw.Draw(scene), scene.height * _HORIZON
    for layer in range(count):
        depth = (layer + 1) / count
        top = ground - scene.height * (0.26 - 0.19 * depth) * dice.uniform(0.8, 1.15)
        swing = scene.height * (0.075 - 0.03 * depth)
        ridge = _ridge(scene.width, dice, top=top, swing=swing)
        colour = _blend(palette.sky[-1], palette.near, 0.2 + 0.8 * depth**1.4)
        draw.polygon([(0, ground), *ridge, (scene.width, ground)], colour)
        if layer == count - 1:
            _paint_trees(draw, ridge, colour, dice)


def _ridge(
    width: int, dice: random.Random, *, top: float, swing: float
) -> list[tuple[float, float]]:
    """The line of a hill: a few waves on top of each other, from left to right."""
    waves = [(dice.uniform(0.6, 1.4) * 2**i, dice.uniform(0, math.tau), 0.5**i) for i in range(5)]

    def level(x: float) -> float:
        return top + swing * sum(a * math.sin(math.tau * f * x + p) for f, p, a in waves)

    return [(width * i / 160, level(i / 160)) for i in range(161)]


def _paint_trees(
    draw: ImageDraw.ImageDraw,
    ridge: list[tuple[float, float]],
    colour: Colour,
    dice: random.Random,
) -> None:
    """Firs on the nearest ridge, in the ridge's own colour."""
    step = ridge[1][0]
    for x, y in dice.sample(ridge, 46):
        tall = step * dice.uniform(3, 8)
        for part in range(3):
            base, half = y + step - tall * part * 0.28, tall * (0.24 - 0.05 * part)
            peak = (x, base - tall * 0.45)
            draw.polygon([(x - half, base), peak, (x + half, base)], colour)


def _paint_water(scene: Image.Image, palette: Palette, dice: random.Random) -> None:
    """The world above, mirrored and a little darker, with ripples that widen to the front."""
    width, ground = scene.width, round(scene.height * _HORIZON)
    deep = scene.height - ground
    above = scene.crop((0, 0, width, ground)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    shade = Image.new("RGB", (width, deep), _blend(palette.near, palette.sky[0], 0.4))
    depth = _stretch(Image.linear_gradient("L").point(_depth_of_shade), (width, deep))
    scene.paste(
        Image.composite(shade, above.resize((width, deep), Image.Resampling.NEAREST), depth),
        (0, ground),
    )
    ripples = Image.new("L", (width, deep), 0)
    _paint_ripples(ImageDraw.Draw(ripples), ripples.size, dice)
    scene.paste(palette.light, (0, ground), ripples)


def _depth_of_shade(level: float) -> int:
    return round(60 + level * 0.5)


def _paint_ripples(draw: ImageDraw.ImageDraw, size: tuple[int, int], dice: random.Random) -> None:
    width, deep = size
    for _ in range(110):
        near = dice.random() ** 1.4
        x, y = dice.random() * width, near * deep
        half = width * (0.01 + 0.06 * near) * dice.uniform(0.5, 1.3)
        thick = max(0.5, deep * 0.006 * (0.2 + near))
        draw.ellipse((x - half, y - thick, x + half, y + thick), dice.randint(18, 70))


def _paint_otter(draw: ImageDraw.ImageDraw, size: tuple[int, int], dice: random.Random) -> None:
    """An otter that floats on its back, seen from the side, paws folded."""
    width, height = size
    unit = min(width, height) * dice.uniform(0.075, 0.105)
    x = width * dice.uniform(0.3, 0.7)
    y = height * dice.uniform(0.70, 0.77)
    side = dice.choice((-1, 1))
    spot = _spotter(draw, (x, y), unit, side)
    for ring, shade in ((3.3, (150, 168, 186)), (2.8, (186, 200, 210))):
        box = (x - unit * ring, y - unit * 0.15, x + unit * ring, y + unit * 0.95)
        draw.arc(box, 12, 168, shade, width=max(1, round(unit * 0.05)))
    _paint_otter_body(spot)
    _paint_otter_head(spot)


Spot: TypeAlias = Callable[[float, float, float, float, Colour], None]
"""Paints an ellipse: middle and half axes in otter units, the head being on the left."""


def _spotter(
    draw: ImageDraw.ImageDraw, middle: tuple[float, float], unit: float, side: int
) -> Spot:
    def spot(dx: float, dy: float, rx: float, ry: float, colour: Colour) -> None:
        x, y = middle[0] + side * dx * unit, middle[1] + dy * unit
        draw.ellipse((x - rx * unit, y - ry * unit, x + rx * unit, y + ry * unit), colour)

    return spot


def _paint_otter_body(spot: Spot) -> None:
    spot(2.1, 0.26, 0.75, 0.2, _FUR)
    spot(0.3, 0.2, 1.75, 0.55, _FUR)
    spot(0.25, 0.02, 1.35, 0.36, _blend(_FUR, _FACE, 0.35))
    for foot in (1.75, 2.05):
        spot(foot, -0.25, 0.17, 0.32, _blend(_FUR, _INK, 0.35))
    for paw in (-0.35, 0.05):
        spot(paw, -0.22, 0.26, 0.16, _blend(_FUR, _INK, 0.3))


def _paint_otter_head(spot: Spot) -> None:
    for ear in (-2.0, -1.0):
        spot(ear, -0.72, 0.17, 0.17, _FUR)
    spot(-1.5, -0.22, 0.78, 0.68, _FUR)
    spot(-1.5, -0.02, 0.6, 0.46, _FACE)
    for eye in (-1.78, -1.22):
        spot(eye, -0.3, 0.1, 0.11, _INK)
        spot(eye - 0.03, -0.34, 0.035, 0.035, (255, 255, 255))
    for cheek in (-1.65, -1.35):
        spot(cheek, 0.1, 0.2, 0.16, _blend(_FACE, (255, 255, 255), 0.45))
    spot(-1.5, -0.05, 0.15, 0.1, _INK)


def _paint_reeds(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], palette: Palette, dice: random.Random
) -> None:
    width, height = size
    colour = _blend(palette.near, (0, 0, 0), 0.35)
    for _ in range(34):
        # Reeds grow at both sides and leave the middle to the otter.
        away = dice.random() ** 1.6 * 0.26
        x = width * (away if dice.random() < 0.5 else 1 - away)
        tall = height * dice.uniform(0.1, 0.36) * (1 - 2 * away)
        lean, half = width * dice.uniform(-0.03, 0.03), max(1.0, width * 0.0028)
        tip = (x + lean, height - tall)
        draw.polygon([(x - half, height), tip, (x + half, height)], colour)
        if dice.random() < 0.4:
            box = (tip[0] - 2 * half, tip[1] - height * 0.03, tip[0] + 2 * half, tip[1])
            draw.rounded_rectangle(box, 2 * half, _blend(_FUR, _INK, 0.5))


def _blend(one: Colour, other: Colour, part: float) -> Colour:
    """`one` at part 0, `other` at part 1."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _blur(scene: Image.Image, progress: float) -> Image.Image:
    edge = 6 + 90 * max(0.0, progress) ** 2
    factor = min(1.0, edge / max(scene.size))
    small = (max(1, round(scene.width * factor)), max(1, round(scene.height * factor)))
    return scene.resize(small, Image.Resampling.BOX)


def _write_caption(image: Image.Image, prompt: str) -> None:
    """Up to two lines of the prompt on a dark band; images too small to read have none."""
    width, height = image.size
    if min(width, height) < 128:
        return
    size = max(9.0, min(width, height) / 30)
    font = ImageFont.load_default(size)
    lines = _wrap(prompt, font, limit=width * 0.88)
    if not lines:
        return
    line_height = round(size * 1.35)
    band = line_height * len(lines) + round(size * 1.2)
    veil = _stretch(Image.linear_gradient("L").point(_veil), (width, band))
    image.paste((8, 10, 18), (0, height - band), veil)
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        y = height - line_height * (len(lines) - index) - size * 0.25
        draw.text((width / 2, y), line, fill=(250, 248, 240), font=font, anchor="ma")


def _veil(level: float) -> int:
    return round(min(205.0, level * 1.6))


def _wrap(prompt: str, font: Font, *, limit: float) -> list[str]:
    """The prompt in at most two lines that fit; what does not fit ends in an ellipsis."""
    text = "".join(c if c.isprintable() else " " for c in prompt[:300])
    lines: list[str] = []
    rest = text.split()
    while rest and len(lines) < 2:
        count = _fitting(rest, font, limit=limit)
        lines.append(" ".join(rest[:count]))
        rest = rest[count:]
    if rest or font.getlength(lines[-1] if lines else "") > limit:
        lines[-1] = _shorten(lines[-1], font, limit=limit)
    return lines


def _fitting(words: list[str], font: Font, *, limit: float) -> int:
    """How many of the words fit on a line; at least one."""
    count = 1
    while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= limit:
        count += 1
    return count


def _shorten(line: str, font: Font, *, limit: float) -> str:
    while line and font.getlength(line + "…") > limit:
        line = line[:-1]
    return line.rstrip() + "…"


def _oval(width: int, height: int) -> Image.Image:
    """An alpha mask: opaque inside, with a soft edge, clear in the corners."""
    mask = Image.radial_gradient("L").point(_soft_edge)
    return mask.resize((width, height), Image.Resampling.BILINEAR)


def _soft_edge(distance: float) -> int:
    return round(255 * min(1.0, max(0.0, (178 - distance) / 4)))


def _encode(image: Image.Image, *, format: str, compression: int, seed: int) -> bytes:
    """The file. Its metadata has the seed, so that no two seeds give the same bytes."""
    comment = f"drawn with seed {seed}"
    file = io.BytesIO()
    if format == "png":
        text_chunks = PngImagePlugin.PngInfo()
        text_chunks.add_text("Comment", comment)
        image.save(file, "PNG", compress_level=1, pnginfo=text_chunks)
    elif format == "jpeg":
        image.save(file, "JPEG", quality=max(1, compression), comment=comment.encode())
    elif format == "webp":
        image.save(file, "WEBP", quality=compression, method=0, xmp=comment.encode())
    else:
        raise ValueError(f"cannot draw the format {format!r}")
    return file.getvalue()
