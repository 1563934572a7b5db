"""Draws an SVG: the same pond as `drawing`, as a text model would write it. Pure functions."""

from __future__ import annotations

import random
from xml.sax.saxutils import escape

from gateway.simulator.drawing import Colour, Palette, chosen

_HORIZON = 0.6


def draw_svg(prompt: str, *, width: int, height: int, seed: int) -> str:
    """An SVG with the prompt as its title and caption."""
    palette, dice = chosen(prompt, seed=seed)
    shown = _printable(prompt)
    title, caption = escape(shown), escape(shown[:60].strip() + "…" * (len(shown) > 60))
    letters = max(4, min(width, height) // 30)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">'
        ),
        f"<title>{title}</title>",
        f"<desc>drawn with seed {seed}</desc>",
        *_sky(palette, width, height),
        *_sun(palette, width, height, dice),
        *_hills(palette, width, height, dice),
        *_water(palette, width, height, dice),
        (
            f'<text x="50%" y="{height - letters}" text-anchor="middle" font-size="{letters}" '
            f'fill="#fff">{caption}</text>'
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _printable(prompt: str) -> str:
    """Without what XML cannot contain."""
    return "".join(c if c.isprintable() else " " for c in prompt[:300])


def _sky(palette: Palette, width: int, height: int) -> list[str]:
    last = len(palette.sky) - 1
    stops = "".join(
        f'<stop offset="{round(index / last, 2)}" stop-color="{_hex(colour)}"/>'
        for index, colour in enumerate(palette.sky)
    )
    return [
        f'<defs><linearGradient id="sky" x2="0" y2="1">{stops}</linearGradient></defs>',
        f'<rect width="{width}" height="{height}" fill="url(#sky)"/>',
    ]


def _sun(palette: Palette, width: int, height: int, dice: random.Random) -> list[str]:
    x, y = round(width * dice.uniform(0.2, 0.8)), round(height * dice.uniform(0.12, 0.4))
    radius = max(1, round(min(width, height) * dice.uniform(0.05, 0.09)))
    return [f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{_hex(palette.light)}"/>']


def _hills(palette: Palette, width: int, height: int, dice: random.Random) -> list[str]:
    ground = round(height * _HORIZON)
    hills = []
    for layer in range(3):
        ridge = " ".join(
            f"L{round(width * step / 12)} {round(ground - height * dice.uniform(0.02, 0.22))}"
            for step in range(13)
        )
        path = f"M0 {ground} {ridge} L{width} {ground}Z"
        opacity = round(0.4 + 0.3 * layer, 1)
        hills.append(f'<path d="{path}" fill="{_hex(palette.near)}" opacity="{opacity}"/>')
    return hills


def _water(palette: Palette, width: int, height: int, dice: random.Random) -> list[str]:
    ground = round(height * _HORIZON)
    water = [
        (
            f'<rect y="{ground}" width="{width}" height="{height - ground}" '
            f'fill="{_hex(palette.near)}" opacity="0.6"/>'
        )
    ]
    for _ in range(20):
        x, y = round(width * dice.random()), round(ground + (height - ground) * dice.random())
        half = max(1, round(width * dice.uniform(0.01, 0.06)))
        water.append(
            f'<ellipse cx="{x}" cy="{y}" rx="{half}" ry="1" fill="{_hex(palette.light)}" '
            'opacity="0.3"/>'
        )
    return water


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
