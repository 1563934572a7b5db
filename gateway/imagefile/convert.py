"""Transcodes a PNG to JPEG or WebP, if the result looks the same.

When the cache does this is `cache/transcoding`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from PIL import Image, PngImagePlugin

from gateway.imagefile.check import PNG_SIGNATURE, check_png, png_chunks

TranscodedFormat: TypeAlias = Literal["jpeg", "webp"]

MAX_TRANSCODED_PIXELS: Final = 33_000_000
"""Transcoding an image of 33 megapixels takes up to 600 MB of memory."""
MAX_SMALL_PIXELS: Final = 4_194_304
"""2048x2048. Transcoding an image of so many pixels takes up to 100 MB of memory."""
_DEFAULT_METHOD: Final = 4
_FRUGAL_METHOD: Final = 2
"""The effort of the WebP encoder. From 3 on, it collects statistics of all pixels in memory."""
_MAX_EDGE: Final = {"jpeg": 65_500, "webp": 16_383}
"""The longest edge in pixels that a format, or its encoder, supports."""
_DEFAULT_GAMMA: Final = struct.pack(">I", 45_455)
"""A gAMA chunk of 1/2.2, which viewers assume without one."""
_FULL_COLOUR_QUALITY: Final = 90
"""From this quality on, a JPEG keeps colour at full resolution."""


def as_transcoded_format(value: object) -> TranscodedFormat | None:
    """The format if a PNG can be transcoded to it, else None."""
    return "jpeg" if value == "jpeg" else "webp" if value == "webp" else None


def is_large(png: bytes) -> bool:
    """Whether a complete PNG has more than `MAX_SMALL_PIXELS`."""
    width, height = struct.unpack_from(">II", png, len(PNG_SIGNATURE) + 8)
    return bool(width * height > MAX_SMALL_PIXELS)


def transcode_image(
    data: bytes,
    *,
    format: TranscodedFormat,
    compression: int,
    max_pixels: int = MAX_TRANSCODED_PIXELS,
) -> bytes | None:
    """A complete PNG as JPEG or WebP, or None if the result would not look the same.

    `compression` is `output_compression` of the images API from 0 to 100, and becomes the encoder's
    quality: 100 is the best and the largest. A JPEG of 90 or more keeps full colour resolution. A
    WebP never does and is never lossless. Colour profile and orientation are kept. More than 8 bits
    per channel are reduced to 8. Proof of origin (C2PA) covers the bytes of the PNG and is lost.

    None is returned for transparency in a JPEG (an opaque alpha channel is dropped), animation,
    high dynamic range, more than `max_pixels`, an edge beyond the format's, and undecodable bytes.

    The result is deterministic. It takes 0.1 to 0.25 seconds of processor time per megapixel, so
    call it in a thread or a process.
    """
    if not data.startswith(PNG_SIGNATURE):
        return None
    try:
        facts = check_png(data)
        longest = max(facts.width, facts.height)
        if facts.width * facts.height > max_pixels or longest > _MAX_EDGE[format]:
            return None
        if not _has_portable_colours(dict(png_chunks(data))):
            return None
        # In another function, so that pixels that were converted are freed before the encoder needs
        # memory.
        image, info = _decode(data, grey="L" if format == "jpeg" else "RGB")
        return _encode(image, info, format=format, compression=compression)
    except (OSError, SyntaxError, ValueError):  # Pillow's errors for images that it cannot decode
        return None


def _has_portable_colours(chunks: Mapping[bytes, memoryview]) -> bool:
    """Whether a PNG is a single image whose colours Pillow and the other formats can represent."""
    # Animation, and colours that may be of high dynamic range.
    if not chunks.keys().isdisjoint({b"acTL", b"cICP"}):
        return False
    is_16_bit = chunks[b"IHDR"][8] == 16
    if is_16_bit and b"tRNS" in chunks:
        return False  # Pillow compares the 16-bit transparent colour with 8-bit pixels
    has_colour_space = not chunks.keys().isdisjoint({b"iCCP", b"sRGB"})
    return has_colour_space or chunks.get(b"gAMA", _DEFAULT_GAMMA) == _DEFAULT_GAMMA


def _decode(data: bytes, *, grey: str) -> tuple[Image.Image, Mapping[Any, Any]]:
    # Not `Image.open`, whose pixel limit is a global of the process.
    with PngImagePlugin.PngImageFile(io.BytesIO(data)) as png:
        png.load()
        return _to_encodable_mode(png, grey=grey), png.info


def _to_encodable_mode(png: Image.Image, *, grey: str) -> Image.Image:
    """RGBA if any pixel is transparent, `grey` if the image is greyscale, else RGB."""
    if png.mode == "I;16":  # Pillow would clip it: take the high bytes, as it does for colours
        return Image.frombytes("L", png.size, png.tobytes()[1::2]).convert(grey)
    if not png.has_transparency_data:
        return _converted(png, grey if png.mode in ("1", "L") else "RGB")
    rgba = _converted(png, "RGBA")
    return rgba.convert("RGB") if rgba.getchannel("A").getextrema() == (255, 255) else rgba


def _converted(image: Image.Image, mode: str) -> Image.Image:
    # Pillow copies an image even if it has the mode: four bytes a pixel more.
    return image if image.mode == mode else image.convert(mode)


def _encode(
    image: Image.Image, info: Mapping[Any, Any], *, format: str, compression: int
) -> bytes | None:
    profile = info.get("icc_profile")
    # The header of an ICC profile names its colour space in these bytes.
    if profile and profile[16:20] != (b"GRAY" if image.mode == "L" else b"RGB "):
        return None  # the profile is for another colour space
    file = io.BytesIO()
    metadata = {"icc_profile": profile, "exif": info.get("exif", b"")}
    if format == "webp":
        is_small = image.width * image.height <= MAX_SMALL_PIXELS
        method = _DEFAULT_METHOD if is_small else _FRUGAL_METHOD
        image.save(file, "WEBP", quality=compression, method=method, **metadata)
    elif image.mode == "RGBA":
        return None
    else:
        subsampling = "4:4:4" if compression >= _FULL_COLOUR_QUALITY else "4:2:0"
        image.save(file, "JPEG", quality=max(1, compression), subsampling=subsampling, **metadata)
    return file.getvalue()
