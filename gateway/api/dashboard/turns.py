"""Turns of the holders of keys: each key has a few requests of the page at work in a worker.

The others of the same key wait. So a holder who sends thousands of them at once, each of which
reads much of the store or makes a thumbnail, keeps only their own page waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from gateway.errors import ErrorCode, GatewayError

MAX_AT_ONCE: Final = 6
"""As many connections as a browser opens to one host."""
MAX_WAITING: Final = 250
"""More than the images of two pages of the gallery: behind a proxy with HTTP/2, a browser asks for
all of them at once."""
RETRY_SECONDS: Final = 1


@dataclass(slots=True)
class _Key:
    at_work: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_AT_ONCE))
    count: int = 0
    """Requests at work, and those that wait."""


class Turns:
    """The turns of all keys at one address of a worker."""

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}

    def __len__(self) -> int:
        return len(self._keys)

    @asynccontextmanager
    async def take(self, key_id: str) -> AsyncIterator[None]:
        """Waits for a turn of this key. Raises 503 if too many of its requests wait already."""
        key = self._keys.setdefault(key_id, _Key())
        if key.count >= MAX_AT_ONCE + MAX_WAITING:
            raise GatewayError(
                f"This key has {key.count} requests of the dashboard open at this worker. Please "
                f"try again in {RETRY_SECONDS}s.",
                code=ErrorCode.OVERLOADED,
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        key.count += 1
        try:
            async with key.at_work:
                yield
        finally:
            key.count -= 1
            if not key.count:
                del self._keys[key_id]


TURNS: Final = web.AppKey("turns", Turns)
