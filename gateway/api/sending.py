"""Sending a large body: in slices, and not for ever to a reader that takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from aiohttp import web

SLICE_BYTES: Final = 256 * 1024
WRITE_STALL_SECONDS: Final = 60.0


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
        step = response.write(part)
        while not await _is_done(step):
            left_bytes = _waiting_bytes(request)
            if left_bytes >= waiting_bytes:
                _cut_off(request)
                raise ConnectionResetError("the reader takes nothing")
            waiting_bytes, step = left_bytes, request.writer.drain()


async def _is_done(step: Coroutine[Any, Any, None]) -> bool:
    """False when it has not come to its end within a minute."""
    try:
        async with asyncio.timeout(WRITE_STALL_SECONDS):
            await step
    except TimeoutError:
        return False
    return True


def _waiting_bytes(request: web.Request) -> int:
    """What was written and the system has not taken over yet."""
    if request.transport is None:
        raise ConnectionResetError("the reader has gone")
    return request.transport.get_write_buffer_size()


def _cut_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
