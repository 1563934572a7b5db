"""Converts a PNG to another format."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from PIL import Image, PngImagePlugin

from gateway.imagefile.check import _PNG_SIGNATURE, _check_png, _png_chunks

# ── deriving: the same image in another format ────────────────────────────────────────────

TranscodedFormat: TypeAlias = Literal["jpeg", "webp"]

MAX_DERIVED_PIXELS: Final = 33_000_000
"""What is decoded at most: an image of 33 megapixels takes up to 700 MB while it is derived."""
_MAX_EDGE: Final = {"jpeg": 65_500, "webp": 16_383}
"""The longest edge that a format, or its encoder, can have."""
_PLAIN_GAMMA: Final = struct.pack(">I", 45_455)
"""What gAMA says of ordinary images: 1/2.2, as every viewer assumes where nothing is said."""
_FULL_COLOUR: Final = 90
"""From this quality on a JPEG keeps colour at full resolution."""


def as_transcoded_format(value: object) -> TranscodedFormat | None:
    """The format if it is one that can be derived."""
    return "jpeg" if value == "jpeg" else "webp" if value == "webp" else None


def transcode_image(
    data: bytes,
    *,
    format: TranscodedFormat,
    compression: int,
    max_pixels: int = MAX_DERIVED_PIXELS,
) -> bytes | None:
    """A whole PNG as JPEG or WebP, or None where that would not look like it.

    `compression` is `output_compression` of the images API, 0…100, and is taken as the encoder's
    quality: 100 is the best and the largest. At 90 and above a JPEG does not thin out its colour;
    a WebP always does, and is never lossless. Colour profile and orientation are kept, more than
    8 bits a channel are cut to 8; proof of origin (C2PA) is of the PNG's bytes and does not
    survive. None for: transparency in a JPEG (an alpha channel without any is dropped), animation,
    high dynamic range, pixels beyond `max_pixels`, edges beyond the format's, bytes that do not
    decode.

    The same bytes give the same bytes. Decodes and encodes, which takes a tenth to a quarter
    of a second of processor time a megapixel: call it in a thread.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return None
    try:
        facts = _check_png(data)
        longest = max(facts.width, facts.height)
        if facts.width * facts.height > max_pixels or longest > _MAX_EDGE[format]:
            return None
        if not _has_plain_colours(dict(_png_chunks(data))):
            return None
        # Not `Image.open`: its bound is a global of the process, and `max_pixels` is ours.
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as png:
            plain = _with_plain_pixels(png, grey="L" if format == "jpeg" else "RGB")
            return _encode_derived(plain, png.info, format=format, compression=compression)
    except (OSError, SyntaxError, ValueError):  # how Pillow says that it cannot
        return None


def _has_plain_colours(chunks: Mapping[bytes, memoryview]) -> bool:
    """Whether a PNG is one image whose colours other formats, and Pillow, can tell as well."""
    if not chunks.keys().isdisjoint({b"acTL", b"cICP"}):
        return False
    is_16_bit = chunks[b"IHDR"][8] == 16
    if is_16_bit and b"tRNS" in chunks:
        return False  # Pillow compares 16 bits of the transparent colour with 8 of the pixels
    is_named = not chunks.keys().isdisjoint({b"iCCP", b"sRGB"})
    return is_named or chunks.get(b"gAMA", _PLAIN_GAMMA) == _PLAIN_GAMMA


def _with_plain_pixels(png: Image.Image, *, grey: str) -> Image.Image:
    """RGB, RGBA where anything is transparent, `grey` where nothing has a colour."""
    if png.mode == "I;16":  # Pillow would clip it; the high bytes are what it takes of colours too
        return Image.frombytes("L", png.size, png.tobytes()[1::2]).convert(grey)
    if not png.has_transparency_data:
        return png.convert(grey if png.mode in ("1", "L") else "RGB")
    whole = png.convert("RGBA")
    return whole.convert("RGB") if whole.getchannel("A").getextrema() == (255, 255) else whole


def _encode_derived(
    plain: Image.Image, info: Mapping[Any, Any], *, format: str, compression: int
) -> bytes | None:
    profile = info.get("icc_profile")
    if profile and profile[16:20] != (b"GRAY" if plain.mode == "L" else b"RGB "):
        return None  # a profile of other colours than these
    file = io.BytesIO()
    kept = {"icc_profile": profile, "exif": info.get("exif", b"")}
    if format == "webp":
        plain.save(file, "WEBP", quality=compression, **kept)
    elif plain.mode == "RGBA":
        return None
    else:
        subsampling = "4:4:4" if compression >= _FULL_COLOUR else "4:2:0"
        plain.save(file, "JPEG", quality=max(1, compression), subsampling=subsampling, **kept)
    return file.getvalue()
