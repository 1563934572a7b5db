"""Failed authentication, counted per client: `docs/reference/errors.md#failed-authentication`.

Each client has a token bucket of attempts. While it is empty, this worker does not look up secrets
that it does not know, so guessing costs the store nothing. Every worker counts for itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from gateway.access.token_bucket import TokenBucket
from gateway.errors import ErrorCode, GatewayError, IncorrectKey

ATTEMPTS_PER_MINUTE: Final = 60
MAX_CLIENTS: Final = 10_000
"""Clients that one worker remembers; the least recently seen are forgotten."""

T = TypeVar("T")


@dataclass(slots=True)
class _Client:
    bucket: TokenBucket
    running: int = 0
    """Look-ups that hold a token: it is spent if they fail, and given back otherwise."""
    waiters: list[asyncio.Future[None]] = field(default_factory=list)


class Attempts:
    """Limits the failed attempts of each client.

    A client is any string; the caller decides which addresses are one client.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def fail(self, client: str) -> None:
        """Counts an attempt that failed without a look-up. Raises 429 beyond the limit."""
        bucket = self._find(client).bucket
        if not bucket.take(self._clock()):
            raise _too_many(bucket.seconds_until_next(self._clock()))

    async def look_up(self, client: str, look_up: Callable[[], Awaitable[T]]) -> T:
        """The result of `look_up`, whose `IncorrectKey` is a failed attempt.

        Raises 429 instead of looking up beyond the limit.
        """
        found = self._find(client)
        # The token is taken before the look-up, so that many at once cannot exceed the limit. Keys
        # of one address that are all valid only wait for each other.
        while not found.bucket.take(self._clock()):
            if not found.running:
                raise _too_many(found.bucket.seconds_until_next(self._clock()))
            found.waiters.append(asyncio.get_running_loop().create_future())
            await found.waiters[-1]
        found.running += 1
        has_failed = False
        try:
            return await look_up()
        except IncorrectKey:
            has_failed = True
            raise
        finally:
            found.running -= 1
            if not has_failed:
                found.bucket.give_back()
            _wake(found)

    def _find(self, client: str) -> _Client:
        found = self._clients.get(client)
        if found is None:
            rate = ATTEMPTS_PER_MINUTE / 60
            bucket = TokenBucket.full(ATTEMPTS_PER_MINUTE, per_second=rate, now=self._clock())
            found = self._clients[client] = _Client(bucket)
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        self._clients.move_to_end(client)
        return found


def _wake(client: _Client) -> None:
    """Lets waiting look-ups try again: one for the token, or all if no other will come back."""
    count = 1 if client.running else len(client.waiters)
    woken, client.waiters = client.waiters[:count], client.waiters[count:]
    for waiter in woken:
        if not waiter.done():  # done: its request was cancelled
            waiter.set_result(None)


def _too_many(seconds: float) -> GatewayError:
    # Without `x-should-retry: false`: behind a shared address, a retry with a valid key succeeds.
    return GatewayError(
        f"Too many failed attempts to authenticate from your address: {ATTEMPTS_PER_MINUTE} a "
        f"minute are allowed. Check the key, and try again in {math.ceil(seconds)} s.",
        type="requests",
        code=ErrorCode.RATE_LIMIT_EXCEEDED,
        headers={
            "Retry-After": str(math.ceil(seconds)),
            "retry-after-ms": str(math.ceil(seconds * 1000)),
        },
    )
