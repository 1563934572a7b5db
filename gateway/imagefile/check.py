"""Checks the structure of image files: `docs/reference/cache.md#bytes`.

Here are PNG, JPEG and WebP; `gif` and `svg` have modules of their own. Pixels are not decoded.
Conversion to another format is `convert`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from gateway.imagefile.checksum import QUICK_BYTES, crc32
from gateway.imagefile.facts import MAX_SMALL_PARTS, BadImage, ImageFacts
from gateway.imagefile.gif import SIGNATURES, check_gif
from gateway.imagefile.svg import is_svg
from gateway.imagefile.svg_process import check_svg_apart

MEDIA_TYPES: Final = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "svg": "image/svg+xml",
}
"""The formats that `check_image` knows. Only images of these are stored and have links."""

DOCUMENTS: Final = frozenset({"svg"})
"""The formats that a browser opens as a document, in which script could run."""

MIN_PART_BYTES: Final = 256
"""A file has at most one chunk or segment for so many bytes, beside `MAX_SMALL_PARTS`."""


QUICK_PARTS: Final = 300
"""Encoders write chunks of 8 KB, of which 2 MB have 256, or of 64 KB."""


def check_image(data: bytes, *, max_bytes: int, max_pixels: int) -> ImageFacts:
    """The format and size of an image that is complete from signature to end marker.

    Checks lengths, PNG checksums and end markers. A PNG, WebP or GIF must not have bytes after its
    end, and a JPEG must end in EOI. Takes about a millisecond per megabyte, but an SVG, which has
    no pixels, up to a second. Raises `BadImage`.
    """
    if len(data) > max_bytes:
        raise BadImage(f"larger than {max_bytes} bytes")
    facts = _check_format(data, max_pixels=max_pixels)
    if facts.format == "svg":
        return facts
    if facts.width < 1 or facts.height < 1:
        raise BadImage("no pixels")
    if facts.width * facts.height > max_pixels:
        raise BadImage(f"{facts.width}x{facts.height} is more than {max_pixels} pixels")
    return facts


def is_quick(data: bytes) -> bool:
    """Whether `check_image` takes less than half a millisecond: a PNG of not too many chunks.

    In a thread, each checksum would wait for the GIL, 24 times for a PNG of 2 MB.
    """
    if len(data) > QUICK_BYTES or not data.startswith(PNG_SIGNATURE):
        return False
    offset, parts_left = len(PNG_SIGNATURE), QUICK_PARTS
    while offset + 12 <= len(data) and parts_left:
        offset += 12 + int.from_bytes(data[offset : offset + 4])
        parts_left -= 1
    return offset + 12 > len(data)


def detect_format(data: bytes) -> str | None:
    """One of `MEDIA_TYPES` by the first bytes alone; None for anything else."""
    if data.startswith(PNG_SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(SIGNATURES):
        return "gif"
    return "svg" if is_svg(data) else None


def _check_format(data: bytes, *, max_pixels: int) -> ImageFacts:
    match detect_format(data):
        case "png":
            return check_png(data)
        case "jpeg":
            return _check_jpeg(data)
        case "webp":
            return _check_webp(data)
        case "gif":
            return check_gif(data, max_pixels=max_pixels)
        case "svg":
            return check_svg_apart(data)
    raise BadImage("neither PNG, JPEG, WebP, GIF nor SVG")


def _max_parts(data: bytes) -> int:
    return MAX_SMALL_PARTS + len(data) // MIN_PART_BYTES


def _too_many_parts(kind: str) -> BadImage:
    return BadImage(f"{kind} of too many small parts")


# ── PNG: chunks with length and checksum (PNG specification, sections 5 and 11) ──────────────

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS: Final = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
"""Colour type → its allowed bit depths."""
_CHUNK_HEAD: Final = struct.Struct(">I4s")
"""The length and the type of a chunk."""


def check_png(data: bytes) -> ImageFacts:
    """The format and size of a complete PNG. Raises `BadImage`."""
    chunks = png_chunks(data)
    kind, header = next(chunks)
    if kind != b"IHDR":
        raise BadImage("PNG does not start with IHDR")
    facts = _parse_ihdr(header)
    kinds = {kind for kind, _ in chunks}
    if b"IDAT" not in kinds:
        raise BadImage("PNG without IDAT")
    if b"IHDR" in kinds:
        raise BadImage("PNG with a second IHDR")
    return facts


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of each chunk, with checksums verified. IEND must end the data."""
    view, offset, kind = memoryview(data), len(PNG_SIGNATURE), b""
    parts_left, size = _max_parts(data), len(data)
    while kind != b"IEND":
        parts_left -= 1
        if parts_left < 0:
            raise _too_many_parts("PNG")
        start = offset + 8
        if start + 4 > size:
            raise BadImage("PNG is cut short")
        length, kind = _CHUNK_HEAD.unpack_from(data, offset)
        end = start + length
        if end + 4 > size:
            raise BadImage("PNG is cut short")
        if crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise BadImage("PNG chunk with a wrong checksum")
        yield kind, view[start:end]
        offset = end + 4
    if length:
        raise BadImage("PNG with a filled IEND")
    if offset != size:
        raise BadImage("PNG with bytes after IEND")


def _parse_ihdr(header: memoryview) -> ImageFacts:
    if len(header) != 13:
        raise BadImage("PNG with a wrong IHDR")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(
        ">IIBBBBB", header
    )
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise BadImage("PNG with a wrong IHDR")
    return ImageFacts("png", width, height)


# ── JPEG: marker segments, with entropy-coded data after each SOS (ITU T.81, annex B) ────────

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_JPEG_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers without a length and a segment."""
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOFn: frame headers, which contain the size."""
_JPEG_FILL: Final = re.compile(rb"\xff++")
_SEARCHED_BYTES: Final = 1 << 20
_JPEG_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Ends entropy-coded data. A stuffed FF, a restart marker and a fill byte do not."""


def _check_jpeg(data: bytes) -> ImageFacts:
    facts: ImageFacts | None = None
    scans = 0
    for marker, segment in _jpeg_segments(data):
        if marker in _JPEG_FRAMES and facts is None:
            facts = _parse_sof(segment)
        scans += marker == _SOS
    if facts is None or not scans:
        raise BadImage("JPEG without a frame or a scan")
    # Multi-image files have further images after the first EOI, and the last one has its own.
    if not data.endswith(b"\xff\xd9"):
        raise BadImage("JPEG with bytes after EOI")
    return facts


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment from SOI to the first EOI."""
    offset, marker = 2, _SOI
    parts_left = _max_parts(data)
    while marker != _EOI:
        parts_left -= 1
        if parts_left < 0:
            raise _too_many_parts("JPEG")
        offset, marker = _jpeg_marker(data, offset)
        if marker in _JPEG_STANDALONE or marker == _EOI:
            continue
        end = _jpeg_segment_end(data, offset)
        yield marker, data[offset + 2 : end]
        offset = _jpeg_scan_end(data, end) if marker == _SOS else end


def _jpeg_marker(data: bytes, offset: int) -> tuple[int, int]:
    """The offset after the marker at `offset`, and the marker. FF may be repeated as fill."""
    fill = _JPEG_FILL.match(data, offset)
    end = offset if fill is None else fill.end()
    if end >= len(data):
        raise BadImage("JPEG is cut short")
    marker = data[end]
    if fill is None or marker in (0x00, _SOI):
        raise BadImage("JPEG with a damaged segment")
    return end + 1, marker


def _jpeg_segment_end(data: bytes, offset: int) -> int:
    if offset + 2 > len(data):
        raise BadImage("JPEG is cut short")
    (length,) = struct.unpack_from(">H", data, offset)
    if length < 2:
        raise BadImage("JPEG with a damaged segment")
    if offset + length > len(data):
        raise BadImage("JPEG is cut short")
    return offset + int(length)


def _jpeg_scan_end(data: bytes, offset: int) -> int:
    # In pieces that share a byte: one search holds the interpreter's lock, for a second in a file
    # of fill bytes.
    for start in range(offset, len(data), _SEARCHED_BYTES - 1):
        found = _JPEG_MARKER.search(data, start, start + _SEARCHED_BYTES)
        if found is not None:
            return found.start()
    raise BadImage("JPEG is cut short")


def _parse_sof(segment: bytes) -> ImageFacts:
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        raise BadImage("JPEG with a damaged frame header")
    height, width = struct.unpack_from(">HH", segment, 1)
    return ImageFacts("jpeg", width, height)


# ── WebP: a RIFF container (RFC 9649, section 2) ────────────────────────────────────────────


def _check_webp(data: bytes) -> ImageFacts:
    (size,) = struct.unpack_from("<I", data, 4)
    # Some encoders omit the pad byte after an odd length.
    if len(data) - 8 not in (size, size + (size & 1)):
        raise BadImage("WebP with a wrong length")
    chunks = _webp_chunks(data)
    kind, first = next(chunks, (b"", b""))
    facts = _parse_webp_header(kind, first)
    kinds = {kind} | {kind for kind, _ in chunks}
    if kinds.isdisjoint({b"VP8 ", b"VP8L", b"ANMF"}):
        raise BadImage("WebP without an image")
    return facts


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and first ten bytes of each chunk. The last one must end where the data ends."""
    offset = 12
    parts_left = _max_parts(data)
    while offset < len(data):
        parts_left -= 1
        if parts_left < 0:
            raise _too_many_parts("WebP")
        if offset + 8 > len(data):
            raise BadImage("WebP with a damaged chunk")
        (length,) = struct.unpack_from("<I", data, offset + 4)
        start, end = offset + 8, offset + 8 + length
        if end > len(data):
            raise BadImage("WebP is cut short")
        yield data[offset : offset + 4], data[start : min(start + 10, end)]
        offset = end + (length & 1)


def _parse_webp_header(kind: bytes, head: bytes) -> ImageFacts:
    # A key frame with its start code. The two highest bits of an edge are a scale (RFC 6386 §9.1).
    if kind == b"VP8 " and len(head) == 10 and not head[0] & 1 and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 6)
        return ImageFacts("webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L" and len(head) >= 5 and head[0] == 0x2F:
        # VP8L and VP8X store edges less one (RFC 9649).
        bits = int.from_bytes(head[1:5], "little")
        return ImageFacts("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X" and len(head) == 10:
        width, height = (int.from_bytes(head[i : i + 3], "little") + 1 for i in (4, 7))
        return ImageFacts("webp", width, height)
    raise BadImage("WebP with a damaged header")
