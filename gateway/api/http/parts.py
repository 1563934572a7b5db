"""Writes very large bodies in parts, each in a turn of the event loop of its own.

The system takes as much of a write as its buffer has room for, megabytes, and the event loop waits
while they are copied. When many images leave at the same time, it would wait for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final

from aiohttp import web

PART_BYTES: Final = 3 << 20
"""An image of 2 MB still leaves in one write."""

Pieces = Sequence[bytes | memoryview]


async def write_in_turns(
    request: web.BaseRequest, transport: asyncio.Transport, pieces: Pieces
) -> None:
    """Writes part after part, each when the client has read nearly all before it.

    Raises `ConnectionError` if the client disconnects.
    """
    protocol: Any = request.protocol  # an `Answering`
    for part in in_parts(pieces):
        if protocol.writing_paused:
            await request.writer.drain()
        await protocol.turns.next()
        if transport.is_closing():
            raise ConnectionResetError("the client has disconnected, or stopped reading")
        transport.writelines(part)


def in_parts(pieces: Pieces) -> Iterator[list[memoryview]]:
    """The pieces in parts of at most `PART_BYTES`, without a copy."""
    part: list[memoryview] = []
    room = PART_BYTES
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            part.append(rest[:room])
            rest = rest[room:]
            room -= len(part[-1])
            if not room:
                yield part
                part, room = [], PART_BYTES
    if part:
        yield part
