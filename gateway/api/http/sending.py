"""Sends large bodies without copying them, and measures how far clients have read.

The transport has a reference to the rest that the system does not accept at once, so a slow client
holds the bytes of its response and nothing more.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from aiohttp import hdrs, web

from gateway.api.http.parts import PART_BYTES, write_in_turns
from gateway.api.http.whole import WholeResponse

WRITE_STALL_SECONDS: Final = 60.0
"""A client that reads nothing for so long is disconnected."""

PROGRESS_CHECKS: Final = 12
"""How often in that time the progress of all clients is measured."""


async def send_body(request: web.Request, response: WholeResponse) -> web.StreamResponse:
    """Sends a response from its handler, which then lasts until the client has read nearly all.

    Returns normally if the client disconnects.
    """
    try:
        await response.prepare(request)
    except ConnectionError:
        # A client that disconnects is no error: its request is counted and logged like any other.
        response.force_close()
    return response


async def write_pieces(
    request: web.Request, response: web.StreamResponse, pieces: Sequence[bytes | memoryview]
) -> None:
    """Writes to a response that has begun, and waits until the client has read nearly all of it.

    A client may be as slow as it likes, unless it reads nothing for `WRITE_STALL_SECONDS`: then
    `connection` disconnects it. Raises `ConnectionError`.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has disconnected")
    if hdrs.TRANSFER_ENCODING in response.headers:  # as a chunk, RFC 9112 §7.1
        pieces = [b"%x\r\n" % sum(map(len, pieces)), *pieces, b"\r\n"]
    # Past aiohttp's own writer, which would copy the bytes.
    if sum(map(len, pieces)) > PART_BYTES:
        await write_in_turns(request, transport, pieces)
    else:
        transport.writelines(pieces)
    if transport.get_write_buffer_size():
        await request.writer.drain()
        if transport.is_closing():
            raise ConnectionResetError("the client has disconnected, or stopped reading")


def unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes that were written and have not reached the client's machine."""
    # The transport's buffer alone does not show progress: the system buffers megabytes of its own,
    # and accepts more only when a third of them is free again, which takes a slow client minutes.
    unacknowledged = bytearray(4)
    with suppress(OSError):  # where the system does not tell, only the buffer counts
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, unacknowledged)
    return transport.get_write_buffer_size() + int.from_bytes(unacknowledged, sys.byteorder)
