"""What a check of a file finds: its facts, or why it is rejected."""

from __future__ import annotations

from typing import Final

from gateway.frozen import frozen

MAX_SMALL_PARTS: Final = 1000
"""A file may have so many small chunks, segments or blocks, and more for its size. Encoders write
far larger ones, and a file of empty ones takes seconds for each megabyte."""


class BadImage(ValueError):
    """The bytes are not a complete image; the message says why."""


@frozen
class ImageFacts:
    """The format and size in an image's header."""

    format: str
    """One of `check.MEDIA_TYPES`."""
    width: int
    """Pixels; 0 for an SVG that has no size of its own."""
    height: int
    frames: int = 1
    """More than one only of a GIF: the frames of other animations are not counted."""
    active: tuple[str, ...] = ()
    """Of an SVG: what a browser could run or load, see `svg.ACTIVE`."""
