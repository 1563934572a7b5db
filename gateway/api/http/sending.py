"""Sending a large body: all of it at once, and not for ever to a reader that takes nothing.

It is handed to the transport as it lies in memory, past aiohttp's own writer, which would copy it:
what the system does not take at once the transport keeps by reference. So a slow reader holds what
it is sent, and nothing more.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
import time
from collections.abc import Sequence
from typing import Final

from aiohttp import hdrs, web

WRITE_STALL_SECONDS: Final = 60.0

LOOKS: Final = 60
"""How often in that time it is looked whether a very slow reader has taken anything."""


async def send_body(
    request: web.Request, response: web.StreamResponse, pieces: Sequence[bytes | memoryview]
) -> web.StreamResponse:
    """Sends a whole answer whose length its headers say; to HEAD without the body.

    A reader that leaves is no error: its answer is counted like any other.
    """
    try:
        await response.prepare(request)
        if request.method != hdrs.METH_HEAD:
            await write_pieces(request, response, pieces)
        await response.write_eof()
    except ConnectionError:
        response.force_close()
    return response


async def write_pieces(
    request: web.Request, response: web.StreamResponse, pieces: Sequence[bytes | memoryview]
) -> None:
    """Writes a body, or a part of one, to an answer that has begun; waits for the reader.

    A reader that takes nothing for a minute is cut off; one that takes a little may be as slow as
    it likes. Raises `ConnectionError`.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the reader has gone")
    is_chunked = hdrs.TRANSFER_ENCODING in response.headers
    transport.writelines(_as_chunk(pieces) if is_chunked else pieces)
    if transport.get_write_buffer_size():
        await _wait_for_reader(request)


def _as_chunk(pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """RFC 9112 §7.1."""
    return [b"%x\r\n" % sum(map(len, pieces)), *pieces, b"\r\n"]


async def _wait_for_reader(request: web.Request) -> None:
    """Returns when the transport has next to nothing left.

    In a task, because aiohttp's own waiting, once given up, cannot be taken up again.
    """
    draining = asyncio.create_task(request.writer.drain(), name="wait for a reader")
    waiting_bytes, moved_at = _waiting_bytes(request), time.monotonic()
    try:
        while not (await asyncio.wait({draining}, timeout=WRITE_STALL_SECONDS / LOOKS))[0]:
            left_bytes = _waiting_bytes(request)
            if left_bytes < waiting_bytes:
                waiting_bytes, moved_at = left_bytes, time.monotonic()
            elif time.monotonic() - moved_at >= WRITE_STALL_SECONDS:
                _cut_off(request)
                raise ConnectionResetError("the reader takes nothing")
        draining.result()
    finally:
        draining.cancel()


def _waiting_bytes(request: web.Request) -> int:
    """What was written and has not reached the reader's machine yet.

    Of that the system holds megabytes, and asks for more only when a third of them is gone: of a
    slow reader nothing else would be seen for minutes.
    """
    if request.transport is None:
        return 0
    return request.transport.get_write_buffer_size() + _unacknowledged_bytes(request.transport)


def _unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """What the system has sent or holds for sending; 0 where it does not say."""
    answer = bytearray(4)
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, answer)
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)


def _cut_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
