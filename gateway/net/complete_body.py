"""Takes a body that has come out of aiohttp's reader.

This uses private parts of aiohttp: `tests/test_private_parts.py` fails if they change.
"""

from __future__ import annotations

from aiohttp import StreamReader
from aiohttp.streams import EMPTY_PAYLOAD


def take_complete(content: StreamReader) -> bytes:
    """What is left of a body whose end has come. Raises the exception that its reader has."""
    # Nearly every body is one piece, for which aiohttp's own way takes five times as long.
    if content is EMPTY_PAYLOAD or content.exception() is not None:
        return content.read_nowait()
    pieces, has_stopped = content._buffer, content._protocol._reading_paused  # noqa: SLF001
    if len(pieces) != 1 or content._buffer_offset or has_stopped:  # noqa: SLF001
        return content.read_nowait()
    # The reader's other counts are for bytes that are still to come, and there are none.
    content._size = 0  # noqa: SLF001
    return pieces.popleft()
