"""Turns of keys: each key has a few reading requests at work in a worker.

The others of the same key wait. So a client who sends thousands of them at once, each of which
reads much of the store or makes a thumbnail, keeps only itself waiting. Image requests have bounds
of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from gateway.api.auth import KEY
from gateway.api.middleware import Handler
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
                f"This key has {key.count} requests for usage or images of the dashboard open at "
                f"this worker. Please try again in {RETRY_SECONDS}s.",
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


def in_turn(handler: Handler) -> Handler:
    """Lets the requests of one key wait for each other. Those of admins never wait."""

    async def taking_turns(request: web.Request) -> web.StreamResponse:
        if KEY not in request:
            return await handler(request)
        async with request.app[TURNS].take(request[KEY].principal.key_id):
            return await handler(request)

    return taking_turns
