"""Sending a large body: in slices, and not for ever to a reader that takes nothing."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
import time
from typing import Final

from aiohttp import web

SLICE_BYTES: Final = 256 * 1024
WRITE_STALL_SECONDS: Final = 60.0

LOOKS: Final = 60
"""How often in that time it is looked whether a very slow reader has taken anything."""


async def write_slices(
    request: web.Request, response: web.StreamResponse, piece: bytes | memoryview
) -> None:
    """Writes in slices; a reader that takes nothing for a minute is cut off.

    One that takes a little may be as slow as it likes. Raises `ConnectionError`.
    """
    view = memoryview(piece)
    for start in range(0, len(view), SLICE_BYTES):
        part = view[start : start + SLICE_BYTES]
        waiting_bytes = _waiting_bytes(request) + len(part)
        try:
            async with asyncio.timeout(WRITE_STALL_SECONDS):
                await response.write(part)
        except TimeoutError:
            await _look_on(request, waiting_bytes)


async def _look_on(request: web.Request, waiting_bytes: int) -> None:
    """Returns when all is taken of which so much was waiting a minute ago.

    It has to look: aiohttp's own waiting for a reader, once given up, cannot be taken up again.
    """
    moved_at = time.monotonic() - WRITE_STALL_SECONDS
    while left_bytes := _waiting_bytes(request):
        if left_bytes < waiting_bytes:
            waiting_bytes, moved_at = left_bytes, time.monotonic()
        elif time.monotonic() - moved_at >= WRITE_STALL_SECONDS:
            _cut_off(request)
            raise ConnectionResetError("the reader takes nothing")
        await asyncio.sleep(WRITE_STALL_SECONDS / LOOKS)


def _waiting_bytes(request: web.Request) -> int:
    """What was written and has not reached the reader's machine yet.

    Of that the system holds megabytes, and asks for more only when a third of them is gone: of a
    slow reader nothing else would be seen for minutes.
    """
    if request.transport is None:
        raise ConnectionResetError("the reader has gone")
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
