"""Damages the files of an answer, as faults say. Other formats stay as they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Mapping
from typing import Final

from PIL import Image

_DTD: Final = b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd">\n'
_ENTITY: Final = b'<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>\n'
_ACTIVE: Final = (
    b"<style>@import url(https://styles.example/a.css);</style>"
    b'<script>location="https://evil.example/"</script>'
    b'<image href="https://evil.example/pixel.png" onload="alert(1)"/>'
    b'<foreignObject><p xmlns="http://www.w3.org/1999/xhtml">hello</p></foreignObject>'
)


def damaged(data: bytes, faults: Container[str]) -> bytes:
    """The file with the damage of those faults that apply to its format."""
    is_gif, is_svg = data.startswith(b"GIF8"), data.startswith(b"<svg")
    for name, damage in DAMAGES.items():
        if name in faults and (is_gif if name.startswith("gif-") else is_svg):
            data = damage(data)
    return data


def _with_frames(data: bytes) -> bytes:
    """The canvas of the GIF, and 300 frames of a pixel."""
    with Image.open(io.BytesIO(data)) as image:
        frame = b"\x2c" + bytes(4) + b"\1\0\1\0\0\2\2\x44\1\0"
        header = b"GIF89a" + b"".join(n.to_bytes(2, "little") for n in image.size)
    return header + b"\x80\0\0" + bytes(6) + frame * 300 + b";"


def _within(data: bytes, start: bytes, end: bytes) -> bytes:
    return data.replace(b"<desc>", start + b"<desc>", 1).replace(b"</svg>", end + b"</svg>", 1)


DAMAGES: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "gif-no-trailer": lambda data: data[:-1],
    "gif-frames": _with_frames,
    "svg-dtd": lambda data: _DTD + data,
    "svg-entity": lambda data: _ENTITY + data.replace(b"<desc>", b"<desc>&b;", 1),
    "svg-active": lambda data: _within(data, _ACTIVE, b""),
    "svg-depth": lambda data: _within(data, b"<g>" * 101, b"</g>" * 101),
    "svg-elements": lambda data: _within(data, b"<g/>" * 100_001, b""),
    "svg-tag": lambda data: _within(data, b"<g " + b'a="" ' * 14_000 + b"/>", b""),
    "svg-cut": lambda data: data[: len(data) // 2],
}
