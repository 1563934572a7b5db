"""Sending a large body: in slices, and not for ever to a reader that takes nothing."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

SLICE_BYTES: Final = 256 * 1024
WRITE_STALL_SECONDS: Final = 60.0


async def write_slices(
    request: web.Request, response: web.StreamResponse, piece: bytes | memoryview
) -> None:
    """Writes in slices; a reader that takes nothing for a minute is cut off."""
    view = memoryview(piece)
    for start in range(0, len(view), SLICE_BYTES):
        try:
            async with asyncio.timeout(WRITE_STALL_SECONDS):
                await response.write(view[start : start + SLICE_BYTES])
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the reader takes nothing") from None
