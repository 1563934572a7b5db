"""Checks the structure of a GIF to its trailer: GIF89a specification, sections 15 to 27.

Pixels are not decoded: whether a block of LZW data fills its frame is not known.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.imagefile.facts import MAX_SMALL_PARTS, BadImage, ImageFacts

MAX_FRAMES: Final = 256
"""Upstream makes up to 16, other services up to 64."""
MAX_FRAMES_PIXELS: Final = 8
"""The pixels of all frames together, as a multiple of the pixels that one image may have."""
MIN_BLOCK_BYTES: Final = 64
"""A file has at most one sub-block for so many bytes, beside `MAX_SMALL_PARTS`. Encoders fill them
with 255 bytes."""

SIGNATURES: Final = (b"GIF87a", b"GIF89a")
_HEADER_BYTES: Final = 13
_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_MAX_CODE_BITS: Final = 11
"""LZW codes have up to 12 bits, and the smallest code is one bit shorter."""


def check_gif(data: bytes, *, max_pixels: int) -> ImageFacts:
    """The format, the size and the number of frames of a complete GIF. Raises `BadImage`."""
    if len(data) < _HEADER_BYTES:
        raise BadImage("GIF is cut short")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    offset = _HEADER_BYTES + _table_bytes(flags)
    blocks_left = MAX_SMALL_PARTS + len(data) // MIN_BLOCK_BYTES
    frames = 0
    while (kind := _byte(data, offset)) != _TRAILER:
        if kind == _EXTENSION:
            offset += 2
        elif kind == _IMAGE:
            frames += 1
            _check_frames(frames, width * height, max_pixels=max_pixels)
            offset = _image_data(data, offset, width=width, height=height)
        else:
            raise BadImage("GIF with a damaged block")
        offset, blocks_left = _skip_blocks(data, offset, blocks_left)
    if not frames:
        raise BadImage("GIF without a frame")
    if offset + 1 != len(data):
        raise BadImage("GIF with bytes after its trailer")
    return ImageFacts("gif", width, height, frames=frames)


def _byte(data: bytes, offset: int) -> int:
    if offset >= len(data):
        raise BadImage("GIF is cut short")
    return data[offset]


def _table_bytes(flags: int) -> int:
    """The bytes of a colour table, if the flags of its descriptor say that there is one."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _check_frames(frames: int, pixels: int, *, max_pixels: int) -> None:
    if frames > MAX_FRAMES:
        raise BadImage(f"GIF of more than {MAX_FRAMES} frames")
    most = MAX_FRAMES_PIXELS * max_pixels
    if frames * pixels > most:
        raise BadImage(f"GIF whose frames have more than {most} pixels together")


def _image_data(data: bytes, offset: int, *, width: int, height: int) -> int:
    """Where the sub-blocks of an image begin, whose descriptor is at `offset`."""
    if offset + 10 > len(data):
        raise BadImage("GIF is cut short")
    left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, offset + 1)
    if not columns or not rows or left + columns > width or top + rows > height:
        raise BadImage("GIF with a frame outside of its canvas")
    start = offset + 10 + _table_bytes(flags)
    if not 1 <= _byte(data, start) <= _MAX_CODE_BITS:
        raise BadImage("GIF with a damaged frame")
    if not _byte(data, start + 1):
        raise BadImage("GIF with an empty frame")
    return start + 1


def _skip_blocks(data: bytes, offset: int, blocks_left: int) -> tuple[int, int]:
    """The offset after the sub-blocks at `offset` and their terminator, and the blocks left."""
    while True:
        blocks_left -= 1
        if blocks_left < 0:
            raise BadImage("GIF of too many small parts")
        length = _byte(data, offset)
        offset += length + 1
        if not length:
            return offset, blocks_left
