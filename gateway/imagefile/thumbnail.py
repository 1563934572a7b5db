"""Makes a thumbnail of an image: a small WebP of its first frame.

Only `thumbnail_process` calls this, outside the workers: the bytes are those of strangers.
"""

from __future__ import annotations

import io
from typing import Final

from PIL import Image, ImageOps

MAX_EDGE: Final = 320
"""Pixels of the longer edge."""

_QUALITY: Final = 75
_METHOD: Final = 2
"""The effort of the encoder; more takes longer, for some per cent of the size."""
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
"""Of Pillow. Its other decoders are never tried."""


def make_thumbnail(data: bytes, *, max_pixels: int) -> bytes | None:
    """A WebP with edges of at most `MAX_EDGE`; None for bytes that cannot be decoded.

    Also None for more than `max_pixels`, before anything is decoded. A small image keeps its size.
    Colour profile and metadata are dropped, the orientation is applied.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                return None
            # A JPEG is decoded at an eighth, a quarter or half of its size, which is much faster.
            image.draft("RGB", (2 * MAX_EDGE, 2 * MAX_EDGE))
            image.load()
            return _encode(_shrunk(image))
    except Exception:  # noqa: BLE001 - whatever a decoder raises for bytes that are no image
        return None


def _shrunk(image: Image.Image) -> Image.Image:
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode == "I;16":  # Pillow would clip it: take the high bytes, as it does for colours
        image = Image.frombytes("L", image.size, image.tobytes()[1::2])
    small = image if image.mode == mode else image.convert(mode)
    small.thumbnail((MAX_EDGE, MAX_EDGE), reducing_gap=2.0)
    return ImageOps.exif_transpose(small)


def _encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY, method=_METHOD, exif=b"", icc_profile=b"")
    return file.getvalue()
