"""PNG files with arbitrary dimensions and data, valid by all checks of the gateway."""

from __future__ import annotations

import struct
import zlib


def write_png(width: int, height: int, pixels: bytes) -> bytes:
    """A file whose header has these dimensions, and whose data is `pixels`, which may not match.

    Lengths and checksums are correct.
    """
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum
